"""DoGo, distil on the go: a small and a large network are trained together without labels, each by its own
self-supervised loss on its own views, and each learns how alike the other finds the images of the batch.

Bhat et al. 2021, arXiv:2104.09866.

    z_m = projector_m(backbone_m(view)),  views x_m, y_m of network m = 1 (kept), 2 (peer), all drawn independently
    P_m = softmax_j( cos(z_m(x_i), z_m(y_j)) / t )   row i: how alike image i finds all images of the batch
    loss = L(z_1) + w_1 mean_i KL( sg(P_2i) || P_1i )  +  L(z_2) + w_2 mean_i KL( sg(P_1i) || P_2i );   sg: no gradient

L is NT-Xent (objective "nt_xent") or SimSiam's ("simsiam"); with SimSiam, predictions p = predictor(z) take the place
of z where a network is the student. There is no state besides the weights. Across processes second views are gathered,
with gradient.

The peer is a network of the recipe's choice (`-s peer=resnet50`), trained from new weights. The run keeps it with its
projector in RUN/peer, a network like any other: `attar evaluate RUN/peer SOURCE`.

One optimiser, AdamW, trains both. That is the published code's Adam for each: the two losses share no parameter, as
targets are detached, and Adam treats every parameter by itself; a weight decay of 1e-6 times the learning rate is
nothing, decoupled or not.

Differs: the published code takes the mean over all B x B entries, so its template's weights of 100 and 1 at a batch of
256 are 0.39 and 0.0039 of the mean over rows. Its cosine schedule is stepped in a way that leaves the rate constant.
"released" has both as they run there; "paper" has the cosine that was meant, and the template's weights too, as the
paper's own could not be looked up. "small" has both weights at 0.1. At 1 two new networks soonest agree by finding all
images alike: on 1500 images of CIFAR-10 the spread of embeddings fell to 0.3 and NT-Xent rose; at 0.1 it stays at 0.95
and NT-Xent falls as without a peer. `-s own_views=False` shows both networks the same two views.

Cost: two forward and backward passes of both networks, and four views an image instead of two. Count the peer when
comparing: the small network trained alone for the same time is the arm to beat.

Choose it when a small network learns too little by itself and there is no trained teacher; with a teacher at hand
`seed` is cheaper and better understood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import negative_cosine, nt_xent, peer_similarity
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, Trained, one_of
from attar.models.backbones import Backbone, build_backbone
from attar.models.heads import MLP
from attar.views.augmentation import Augmentation
from attar.views.batches import MultiCrop
from attar.views.makers import MakeMultiCrop


@dataclass(frozen=True, kw_only=True)
class DoGoRecipe(Recipe):
    """DoGo's own settings."""

    peer: str  # the other network: any name that --backbone takes
    peer_stem: Literal["standard", "small"] = "standard"  # small: ResNets of timm on small images
    objective: Literal["nt_xent", "simsiam"] = "nt_xent"
    own_views: bool = True  # each network sees two views of its own; False: both see the same two
    distillation_weight: float = 100 / 256  # w_1; published template: 100, as a mean over entries at a batch of 256
    peer_distillation_weight: float = 1 / 256  # w_2; published template: 1, likewise
    similarity_temperature: float = 0.1  # t
    temperature: float = 0.5  # of NT-Xent
    projector_hidden_dim: int = 512  # NT-Xent 512, SimSiam 2048
    projector_dim: int = 128  # NT-Xent 128, SimSiam 2048
    predictor_hidden_dim: int = 512  # SimSiam
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour_strength: float = 0.5  # times jitter 0.8, 0.8, 0.8, 0.2; SimCLR's for CIFAR-10, and 1 for photographs
    blur: float = 0.0  # probability

    used_with = {
        "temperature": one_of("objective", "nt_xent"),
        "predictor_hidden_dim": one_of("objective", "simsiam"),
    }


PAPER = DoGoRecipe(  # published template (NeurAI-Lab/DoGo, branch dogo), with the cosine schedule that was meant
    epochs=1000,
    batch_size=256,
    optimiser="adamw",
    base_lr=3e-4,
    lr_scaling="none",
    weight_decay=1e-6,
    peer="resnet50",
)
SMALL = replace(  # ours: 32 px, mutual learning of equal weight, see above
    PAPER,
    base_lr=1e-3,
    warmup_fraction=0.02,
    peer="resnet20",
    distillation_weight=0.1,
    peer_distillation_weight=0.1,
    crop_scale=(0.2, 1.0),
)
_SIMSIAM = {"objective": "simsiam", "projector_hidden_dim": 2048, "projector_dim": 2048}
RECIPES = {
    "paper": PAPER,
    # as "paper", with the published code's heads for SimSiam
    "paper_simsiam": replace(PAPER, **_SIMSIAM),  # type: ignore[arg-type]
    # as "paper", at the constant rate that the published code has when it runs
    "released": replace(PAPER, schedule="constant"),
    "small": SMALL,
    # ours: as "small", with the heads for SimSiam
    "small_simsiam": replace(SMALL, **_SIMSIAM),  # type: ignore[arg-type]
}


def views(recipe: DoGoRecipe, image: ImageSpec) -> MakeMultiCrop:
    """Two of the kept network, then two of the peer; all by SimCLR's augmentation, drawn independently."""
    s = recipe.colour_strength
    view = Augmentation(
        image,
        scale=recipe.crop_scale,
        flip=0.5,
        jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s),
        jitter_probability=0.8,
        grey=0.2,
        blur=recipe.blur,
        blur_sigma=(0.1, 2.0),
    )
    return MakeMultiCrop(global_views=[view] * (4 if recipe.own_views else 2))


def heads(num_features: int, recipe: DoGoRecipe) -> tuple[MLP, MLP | None]:
    """Projector and, for SimSiam, predictor of one of the two networks."""
    dims = [num_features, recipe.projector_hidden_dim, recipe.projector_dim]
    if recipe.objective == "nt_xent":
        return MLP(dims, norm="batch", bias=False), None
    projector = MLP(dims, norm="batch", final_norm="batch_no_affine", bias=False, final_bias=False)  # as in simsiam.py
    return projector, MLP([dims[-1], recipe.predictor_hidden_dim, dims[-1]], norm="batch", bias=False)


class DoGo(Method):
    """See the module's docstring. B images, E embedding (each network its own)."""

    batch_coupled = True
    recipe: DoGoRecipe
    projector: MLP

    def __init__(self, recipe: DoGoRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        learns = recipe.distillation_weight or recipe.peer_distillation_weight
        if "similarity_temperature" in recipe.given and not learns:
            raise RecipeError(
                "dogo: similarity_temperature would be ignored: distillation_weight and peer_distillation_weight are "
                "0. Leave it out, or set one of them to a number above 0."
            )
        self.backbone = backbone
        self.projector, self.predictor = heads(backbone.num_features, recipe)
        self.peer = build_backbone(
            recipe.peer, channels=setup.image.channels, image_size=setup.image.size, stem=recipe.peer_stem
        )
        self.peer_projector, self.peer_predictor = heads(self.peer.num_features, recipe)

    def step(self, batch: MultiCrop, progress: Progress) -> StepOutput:
        recipe, views = self.recipe, batch.global_views
        shown, taught, own = self._learn(views[:2], self.backbone, self.projector, self.predictor)
        peer_shown, peer_taught, peers = self._learn(views[-2:], self.peer, self.peer_projector, self.peer_predictor)
        t = recipe.similarity_temperature
        from_peer = peer_similarity(*taught, *peer_shown, temperature=t)  # detaches what the peer shows
        to_peer = peer_similarity(*peer_taught, *shown, temperature=t)
        loss = own + recipe.distillation_weight * from_peer + peers + recipe.peer_distillation_weight * to_peer
        metrics = {
            recipe.objective: own.detach(),
            f"peer_{recipe.objective}": peers.detach(),
            "similarity_kl": from_peer.detach(),
            "peer_similarity_kl": to_peer.detach(),
            "peer_embedding_std": _spread(peer_shown[0]),
        }
        return StepOutput(loss, metrics, shown[0].detach(), shown[1].detach())

    def _learn(
        self, views: Sequence[Tensor], backbone: Backbone, projector: MLP, predictor: MLP | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What a network shows its peer, what it is taught at (of two views, (B, E)), and its self-supervised loss."""
        z = [projector(backbone(view)) for view in views]
        if predictor is None:
            return z, z, nt_xent(*z, temperature=self.recipe.temperature)
        p = [predictor(view) for view in z]
        return z, p, (negative_cosine(p[0], z[1]) + negative_cosine(p[1], z[0])) / 2

    def others(self) -> Mapping[str, Trained]:
        return {"peer": Trained(self.peer, self.peer_projector)}


def _spread(z: Tensor) -> Tensor:
    """embedding_std of health.jsonl, for the peer: 1 for evenly spread directions, 0 when it has collapsed."""
    directions = F.normalize(z.detach().float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5


METHOD = DoGo
