"""Deep metric learning: images of a class lie near each other, others apart, so that new classes can be found too.
One method with a choice of loss, on pairs, on triplets, or on a proxy of each class.

Schroff et al. 2015, arXiv:1503.03832 (triplet); Musgrave et al. 2020, arXiv:2003.08505 (how little the losses differ
where all are tuned alike). The embedding is z = projector(backbone(x)), or the features where there is no projector;
y the labels; the rows of all processes are compared.

    contrastive_pair   all pairs of the batch, z normalised                          Hadsell et al. 2006
    triplet            mined triplets of the batch, z normalised                     Schroff et al. 2015
    n_pair             tuples of two images of each class, z not normalised          Sohn 2016
    center             cross-entropy + center_weight * distance to the class' centre Wen et al. 2016
    sphereface         softmax over cosines, the own angle multiplied                arXiv:1704.08063
    cosface, arcface   softmax over cosines, with a margin of cosine or of angle     arXiv:1801.09414, arXiv:1801.07698
    proxy_nca          one proxy of each class                                       arXiv:1703.07464
    soft_triple        several proxies of each class                                 arXiv:1909.05235

The last five are pytorch-metric-learning's (pip install 'attar[metric]'); their proxies are trained like the network.
State of center: the centres, which begin at 0 and after every step move by `center_rate` towards the mean of their
images in the batch. Proxies and centres are saved with the run's checkpoint.

Differs: batches are drawn at random, where most papers draw so many images of so many classes; take batches in which a
class occurs at least twice. Training settings are those of `supervised`. SoftTriple's regulariser is left out.

Cost: one forward and backward pass of one view.

Choose it when labels tell which images belong together and new classes will come, or for search by image: measure
with the protocol `retrieval`. For fixed classes `supervised` is simpler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import MissingDependency, RecipeError
from attar.losses import (
    all_pairs,
    center,
    center_steps,
    class_pairs,
    contrastive_pair,
    gather_rows,
    mined_triplets,
    n_pair,
    triplet,
)
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, one_of
from attar.methods.supervised.supervised import labelled_view
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView
from attar.views.makers import MakeOneView

MARGINS = {"contrastive_pair": 1.0, "triplet": 0.2}  # of ours; the package's losses have their papers' own
# name -> class of pytorch_metric_learning.losses, and its settings besides margin and scale
PROXY_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sphereface": ("SphereFaceLoss", {}),
    "cosface": ("CosFaceLoss", {}),
    "arcface": ("ArcFaceLoss", {}),
    "proxy_nca": ("ProxyNCALoss", {}),
    "soft_triple": ("SoftTripleLoss", {"centers_per_class": 10}),
}
WITH_MARGIN = ("contrastive_pair", "triplet", "sphereface", "cosface", "arcface", "soft_triple")


@dataclass(frozen=True, kw_only=True)
class MetricRecipe(Recipe):
    """Settings of metric learning."""

    loss: Literal[
        "contrastive_pair",
        "triplet",
        "n_pair",
        "center",
        "sphereface",
        "cosface",
        "arcface",
        "proxy_nca",
        "soft_triple",
    ]
    margin: float | None = None  # None: the loss' own; FaceNet 0.2; in degrees for arcface
    mining: Literal["hard", "semihard", "all"] = "semihard"  # of triplet; FaceNet section 3.2
    center_weight: float = 0.003  # of center; Wen et al. section 4: lambda
    center_rate: float = 0.5  # of center; Wen et al. section 4: alpha
    norm_weight: float = 0.002  # of n_pair; reg_lambda of tensorflow's npairs_loss, which takes half of it
    projector_dim: int | None = None  # width of a linear layer to the embedding; None: the features are the embedding
    crop: Literal["resized", "padded"] = "resized"
    crop_scale: tuple[float, float] = (0.16, 1.0)  # of the resized crop; KevinMusgrave/powerful-benchmarker: configs/

    used_with = {
        "margin": one_of("loss", *WITH_MARGIN),
        "mining": one_of("loss", "triplet"),
        "center_weight": one_of("loss", "center"),
        "center_rate": one_of("loss", "center"),
        "norm_weight": one_of("loss", "n_pair"),
        "crop_scale": one_of("crop", "resized"),
    }


TRIPLET = MetricRecipe(  # ours: as `supervised` at half its rate, falling by a cosine; the loss: FaceNet
    epochs=90,
    batch_size=256,
    optimiser="sgd",
    base_lr=0.05,
    warmup_fraction=5 / 90,
    weight_decay=1e-4,
    decay_bias_and_norm=True,
    loss="triplet",
)
SMALL = replace(TRIPLET, batch_size=128, base_lr=0.1, weight_decay=5e-4, crop="padded")  # 32 px: ours
RECIPES = {
    "triplet": TRIPLET,
    "contrastive_pair": replace(TRIPLET, loss="contrastive_pair"),  # as "triplet", with the loss of Hadsell et al. 2006
    "n_pair": replace(TRIPLET, loss="n_pair"),  # as "triplet", with the loss of Sohn 2016
    "center": replace(TRIPLET, loss="center"),  # as "triplet", with the loss of Wen et al. 2016
    "sphereface": replace(TRIPLET, loss="sphereface"),  # as "triplet", with the loss of arXiv:1704.08063
    "cosface": replace(TRIPLET, loss="cosface"),  # as "triplet", with the loss of arXiv:1801.09414
    "arcface": replace(TRIPLET, loss="arcface"),  # as "triplet", with the loss of arXiv:1801.07698
    "proxy_nca": replace(TRIPLET, loss="proxy_nca"),  # as "triplet", with the loss of arXiv:1703.07464
    "soft_triple": replace(TRIPLET, loss="soft_triple"),  # as "triplet", with the loss of arXiv:1909.05235
    "small": SMALL,
}


def views(recipe: MetricRecipe, image: ImageSpec) -> MakeOneView:
    return labelled_view(image, crop=recipe.crop, crop_scale=recipe.crop_scale)


class Metric(Method):
    """See the module's docstring. B images, E embedding, N classes."""

    needs_labels = True
    batch_coupled = True
    recipe: MetricRecipe
    centres: Tensor  # (N, E), of center

    def __init__(self, recipe: MetricRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        if recipe.margin is not None and not recipe.margin > 0:
            raise RecipeError(f"metric: margin={recipe.margin} is not accepted; give a number above 0.")
        self.backbone = backbone
        width, num_classes = backbone.num_features, setup.images.num_classes
        if recipe.projector_dim is not None:
            self.projector = MLP([width, recipe.projector_dim])
            width = recipe.projector_dim
        if recipe.loss == "center":
            self.classifier = MLP([backbone.num_features, num_classes])
            self.register_buffer("centres", torch.zeros(num_classes, width))
            self._seen: list[tuple[Tensor, Tensor]] = []  # embeddings and labels since the last update
        elif recipe.loss in PROXY_LOSSES:
            self.proxies = proxy_loss(recipe, num_classes, width)

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        features = self.backbone(batch.images)
        z = features if self.projector is None else self.projector(features)  # (B, E)
        terms = self._terms(features, z.float(), batch.labels)
        loss = sum(terms.values(), torch.zeros((), device=z.device))
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()}, z.detach())

    def _terms(self, features: Tensor, z: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the loss by name."""
        r = self.recipe
        if r.loss == "center":
            assert self.classifier is not None
            hard = F.cross_entropy(self.classifier(features).float(), labels)
            self._seen.append((z.detach(), labels))
            return {"cross_entropy": hard, "center": r.center_weight * center(z, labels, self.centres)}
        if r.loss in PROXY_LOSSES:
            with torch.autocast(z.device.type, enabled=False):
                return {r.loss: self.proxies(z, labels)}
        rows, names = gather_rows(z), gather_rows(labels)
        margin = MARGINS.get(r.loss, 0.0) if r.margin is None else r.margin
        if r.loss == "n_pair":
            tuples = class_pairs(names)
            total = sum(
                (len(i) * n_pair(rows[i], rows[j], norm_weight=r.norm_weight) for i, j in tuples), 0 * rows.sum()
            )
            return {"n_pair": total / max(sum(len(i) for i, _ in tuples), 1)}
        rows = F.normalize(rows, dim=1)
        if r.loss == "triplet":
            i, p, n = mined_triplets(rows, names, mining=r.mining)
            return {"triplet": triplet(rows[i], rows[p], rows[n], margin=margin)}
        i, j, same = all_pairs(names)
        return {"contrastive_pair": contrastive_pair(rows[i], rows[j], same, margin=margin)}

    def after_step(self, progress: Progress) -> None:
        if self.recipe.loss == "center":
            z, labels = (gather_rows(torch.cat(parts)) for parts in zip(*self._seen, strict=True))
            self.centres += self.recipe.center_rate * center_steps(z, labels, self.centres)
            self._seen.clear()


def proxy_loss(recipe: MetricRecipe, num_classes: int, width: int) -> nn.Module:
    """A loss of pytorch-metric-learning with its own weights: (embeddings (B, E), labels (B,)) -> scalar."""
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise MissingDependency(
            f"metric: loss={recipe.loss} needs pytorch-metric-learning; install it with: pip install 'attar[metric]'. "
            "Without it there are contrastive_pair, triplet, n_pair and center."
        ) from error
    name, settings = PROXY_LOSSES[recipe.loss]
    if recipe.margin is not None:
        settings = {**settings, "margin": recipe.margin}
    return getattr(losses, name)(num_classes=num_classes, embedding_size=width, **settings)


METHOD = Metric
