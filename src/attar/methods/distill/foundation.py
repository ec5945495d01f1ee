"""Foundation: any large frozen network teaches a small one, patiently, on mixed views that both see alike.

Beyer et al. 2021, arXiv:2106.05237 ("a good teacher is patient and consistent": the very same view for both, mixup,
long training), with the two terms of the library lightly-train (distillation v3, 2025), which no paper defines.

    x = lambda * view_i + (1 - lambda) * view_{i+1},  lambda uniform in [0, 1):  one mixed view for both
    s, S = student(x): features and their map;  t, M = teacher(x)
    global = mean_i  - sum_a  softmax_a( <t_i, a> / T )  log softmax_a( <linear(s_i), a> / T ),  rows normalised,
             over the anchors a: all t of this step, the image's own among them, and a queue of earlier ones
    tokens = mean over images and places n of  KL( softmax_m(<M_n, M_m> / T) || softmax_m(<S_n, S_m> / T) ),
             S mapped by a linear layer of its own and resized to the teacher's grid, tokens normalised
    loss = global + token_weight * tokens

The first term carries what an image is, the second where in it things are. Teachers: runs, timm models with their
weights, several at once (--teacher A,B: their answers side by side, each with the same say).

State: after the optimiser's step, the teacher's features of this step, of all processes, enter the queue.

Differs: Beyer et al. distil a classifier's logits, the classes being the anchors; here no head is needed. lightly-train
draws one lambda for a batch and a random partner; here each image has its own lambda and its neighbour in the batch,
which is random too. Its queue is each GPU's own and starts with zeros; here it is one for all and starts with random
unit vectors, and this step's features stand before it instead of in it. At one temperature of 0.07 cross-entropy and
KL of the global term have the same gradient; the metric `kl` is the latter.

Cost: the teacher's forward pass in every step is most of it, because mixed views cannot be looked up in a cache.
Choose it when a strong network exists and a small one is wanted for many uses, dense ones too, and there is time for
hundreds of epochs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import anchor_similarities, first_own_row, gather_rows, soft_cross_entropy, token_similarity
from attar.methods.anchors import probability_of, teacher_says
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput
from attar.models.backbones import Backbone, patch_map
from attar.models.heads import MLP
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.views.augmentation import Augmentation
from attar.views.batches import MixedView, mix
from attar.views.makers import MakeMixedView


@dataclass(frozen=True, kw_only=True)
class FoundationRecipe(Recipe):
    """Defaults are those of lightly-train's distillation v3, read in its code, for a student with batch norm."""

    temperature: float = 0.07  # of both networks and both terms
    queue_length: int = 8192  # from 20,000 images on; a half to a quarter of the images for fewer
    token_weight: float = 1.0  # 0: the global term alone, as its v1, for students or teachers without a map
    mixup: bool = True
    teacher_output: Literal["auto", "embedding", "features"] = "features"  # others only without tokens
    crop_scale: tuple[float, float] = (0.14, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8


V3 = FoundationRecipe(  # lightly-ai/lightly-train, _methods/, distillation v3
    epochs=300,  # advice of the library: 100 to 3000
    batch_size=1536,
    optimiser="adamw",
    base_lr=5e-4 / 1536**0.5,
    lr_scaling="sqrt",
    warmup_fraction=10 / 300,  # lightly-ai/lightly-train: _methods/method.py, 10 epochs, at most a tenth
    weight_decay=1e-6,
    clip_gradient=1.0,
)
RECIPES = {
    "v3": V3,
    "transformer": replace(V3, weight_decay=0.04),  # as "v3", which decays students with attention or layer norm so
    # 32 px: ours
    "small": replace(V3, batch_size=256, base_lr=2e-3 / 256**0.5, queue_length=2048, crop_scale=(0.2, 1.0)),
}


def views(recipe: FoundationRecipe, image: ImageSpec) -> MakeMixedView:
    """One view for both networks, and its share in the mixture."""
    return MakeMixedView(
        Augmentation(
            image,
            scale=recipe.crop_scale,
            flip=0.5,
            jitter=recipe.jitter,
            jitter_probability=recipe.jitter_probability,
            grey=0.2,
            blur=0.0,
        )
    )


class Foundation(Method):
    """See the module's docstring. B images, D and E features of student and teacher, N places, Q queue."""

    needs_teacher = True
    batch_coupled = True
    recipe: FoundationRecipe
    projector: MLP

    def __init__(self, recipe: FoundationRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = setup.require_teacher("foundation", backbone)
        if recipe.token_weight and not hasattr(teacher, "features_and_map"):
            raise RecipeError("foundation: this teacher shows no map of its places; set token_weight=0.")
        if recipe.token_weight and getattr(teacher, "head", None) is not None:
            raise RecipeError("foundation: a map belongs to features; set teacher_output=features, or token_weight=0.")
        self.backbone = backbone
        width = teacher.num_features_out
        warn_of_long_queue("foundation", recipe.queue_length, len(setup.images))
        self.projector = MLP([backbone.num_features, width], norm=None)
        self.token_projector = nn.Linear(_map_width(backbone), width) if recipe.token_weight else None
        for linear in (self.projector[0], self.token_projector):
            if isinstance(linear, nn.Linear):
                nn.init.trunc_normal_(linear.weight, std=0.02)
        self.queue = FeatureQueue(recipe.queue_length, width, setup.seed)
        self.image = setup.image
        self._teacher: tuple[Any] = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved
        self._new_keys: list[Tensor] = []  # of this step; they enter the queue after it

    def step(self, batch: MixedView, progress: Progress) -> StepOutput:
        images = mix(batch.images, following(batch.images), batch.share) if self.recipe.mixup else batch.images
        if self.token_projector is None:
            features, t = self.backbone(images), self._teacher[0](images, batch.index, self.image, view=progress.epoch)
            tokens = features.new_zeros((), dtype=torch.float32)
        else:
            features, student_map = self.backbone.features_and_map(images)
            t, teacher_map = self._teacher[0].features_and_map(images, self.image)
            tokens = self._token_term(self.token_projector, student_map, teacher_map)
        s = self.projector(features)  # (B, E)
        keys = F.normalize(t.float(), dim=1)
        loss, metrics = self._global_term(s, keys)
        self._new_keys.append(keys)
        if self.token_projector is not None:
            metrics["token_similarity"] = tokens.detach()
        return StepOutput(loss + self.recipe.token_weight * tokens, metrics, s.detach(), keys)

    def _global_term(self, s: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        temperature = self.recipe.temperature
        anchors = torch.cat([gather_rows(keys), self.queue.rows])  # this step's of all processes, then earlier ones
        student_logits = anchor_similarities(s, None, anchors)
        teacher_logits = anchor_similarities(keys, None, anchors)
        loss = soft_cross_entropy(
            student_logits, teacher_logits, student_temperature=temperature, teacher_temperature=temperature
        )
        says = teacher_says(student_logits, teacher_logits, teacher_temperature=temperature)
        own = first_own_row(len(keys)) + torch.arange(len(keys), device=keys.device)
        p_self = probability_of(own, teacher_logits, teacher_temperature=temperature)
        kl = loss.detach() - says["teacher_entropy"]
        return loss, {"similarity_distillation": loss.detach(), "kl": kl, "teacher_p_self": p_self, **says}

    def _token_term(self, projector: nn.Linear, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        teacher = self._teacher[0]
        wanted = patch_map(teacher.backbone, teacher_map) if hasattr(teacher, "backbone") else teacher_map
        given = projector(patch_map(self.backbone, student_map).movedim(1, -1)).movedim(-1, 1).float()
        if given.shape[2:] != wanted.shape[2:]:
            given = F.interpolate(given, size=wanted.shape[2:], mode="bilinear", align_corners=False)
        as_tokens = lambda grid: grid.flatten(2).transpose(1, 2)  # noqa: E731  (B, N, width)
        return token_similarity(as_tokens(given), as_tokens(wanted), temperature=self.recipe.temperature)

    def after_step(self, progress: Progress) -> None:
        self.queue.push(gather_rows(torch.cat(self._new_keys)))
        self._new_keys.clear()


def following(images: Tensor) -> Tensor:
    """Image i + 1 for every image i, around all processes. (B, C, H, W)."""
    firsts = gather_rows(images[:1])
    return torch.cat([images[1:], firsts[(first_own_row(1) + 1) % len(firsts)][None]])


@torch.no_grad()
def _map_width(backbone: Backbone) -> int:
    """Channels of the map; a network without one is told so by `features_and_map`."""
    shape = backbone.map_shape()
    return patch_map(backbone, torch.empty(1, *shape)).shape[1]


METHOD = Foundation
