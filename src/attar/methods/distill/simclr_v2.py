"""SimCLR v2: unlabelled images serve twice, to pretrain a large network and, once it is fine-tuned on few labels, to
teach what it says of them to a small one. This is the last stage; the others are runs of their own.

Chen et al. 2020, arXiv:2006.10029, section 3. The stages, joined by files (docs/pipelines.md has all in one):

    1  attar pretrain PHOTOS   --method simclr --recipe v2 --out big              a large network, three-layer projector
    2  attar pretrain LABELLED --method finetune --init big --out tuned           from the projector's first layer
    3  attar distill  PHOTOS   --method simclr_v2 --teacher tuned --out small     the same or a smaller network

    s = classifier(backbone(x)),  t = teacher(x): logits over its N classes, the same view x for both
    soft = T^2 mean_i  - sum_n softmax(t_i / T)_n log softmax(s_i / T)_n
    loss = (1 - a) soft + a mean over the labelled images of CE(s_i, y_i)

T is `temperature`, a `label_weight`: 0 needs no labels. A labelled image counts if it is in the share `label_fraction`,
the one that `finetune` takes with the same `label_seed`. The mean over these is estimated from every batch, whose sum
is divided by the number expected in it. There is no state besides the weights; the teacher is frozen, in eval mode.

Differs: the published code of this stage is a notebook of ten steps: crop and mirror, LARS, T = 1, factor T^2, and a
rate of 2.0 that falls by a cosine. Its loss and views are in all recipes, its rate in "released"; it is too short to
have a length, so epochs and batch there are the paper's. "paper" has the rate of the paper's pretraining, 0.1 times the
root of the batch with a warm-up (section 3.1), which peaks at 6.4. T is the paper's for a smaller student; for one of
the teacher's size it has 0.1. The classes are the teacher's, so images need no labels.

Cost: one step of the student and one forward pass of the teacher; with teacher_views the teacher is asked once.

Choose it when few of many images are labelled: the unlabelled ones carry most of the gain. With labels for all of them
take `kd`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import Images, ImageSpec
from attar.data.splits import labelled_share
from attar.errors import RecipeError
from attar.losses import soft_cross_entropy
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above, below
from attar.methods.supervised.supervised import labelled_view
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class SimCLRv2Recipe(Recipe):
    """Settings of SimCLR v2's distillation."""

    temperature: float = 1.0  # T, of both; published notebook
    label_weight: float = 0.0  # a; eq. 3 writes 1 - alpha
    label_fraction: float = 1.0  # of each class, of what is labelled; section 4: 0.01 and 0.1
    label_seed: int = 0  # which of them
    teacher_output: Literal["logits"] = "logits"  # of the classifier it was fine-tuned with
    teacher_views: int = 0  # 0: the teacher runs in every step; n: n views per image, computed once and repeated
    crop_scale: tuple[float, float] = (0.08, 1.0)  # crop and mirror alone

    used_with = {
        "label_fraction": above("label_weight"),
        "label_seed": below("label_fraction", 1),
    }


PAPER = SimCLRv2Recipe(  # as in pretraining (section 3.1), for 400 epochs
    epochs=400,  # paper's settings, as two summaries of it give them
    batch_size=4096,
    optimiser="lars",
    base_lr=0.1,
    lr_scaling="sqrt",
    warmup_fraction=0.05,
    weight_decay=1e-4,
)
RECIPES = {
    "paper": PAPER,
    # as "paper"; rate: google-research/simclr, colabs/distillation_self_training.ipynb
    "released": replace(PAPER, base_lr=2.0, lr_scaling="none", warmup_fraction=0.0),
    "small": SimCLRv2Recipe(  # 32 px: ours, the rates of `supervised`
        epochs=100,
        batch_size=64,
        optimiser="sgd",
        base_lr=0.2,
        weight_decay=5e-4,
        decay_bias_and_norm=True,
        crop_scale=(0.2, 1.0),
    ),
}


def views(recipe: SimCLRv2Recipe, image: ImageSpec) -> MakeOneView:
    """One view, the same for student and teacher."""
    return labelled_view(image, crop="resized", crop_scale=recipe.crop_scale)


class SimCLRv2(Method):
    """See the module's docstring. B images, N classes of the teacher."""

    needs_teacher = True
    recipe: SimCLRv2Recipe
    classifier: MLP
    labels: Tensor  # (num_ids,) as the teacher numbers classes, -1 where none counts

    def __init__(self, recipe: SimCLRv2Recipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = setup.require_teacher("simclr_v2", backbone)
        if not recipe.label_weight <= 1:
            raise RecipeError(f"simclr_v2: label_weight={recipe.label_weight} is not accepted; give 0 to 1.")
        self.backbone = backbone
        self.class_names = getattr(teacher, "classes", ()) or tuple(map(str, range(teacher.num_features_out)))
        self.classifier = MLP([backbone.num_features, teacher.num_features_out])
        labels = labels_by_id(setup.images, self.class_names, recipe) if recipe.label_weight else np.zeros(0, np.int64)
        self.register_buffer("labels", torch.from_numpy(labels), persistent=False)  # of the images, not of the run
        self.labelled_share = float((labels >= 0).sum() / len(setup.images))
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        features = self.backbone(batch.images)
        s = self.classifier(features).float()  # (B, N)
        t = self._teacher[0](batch.images, batch.index, self.image, view=progress.epoch)
        T, a = self.recipe.temperature, self.recipe.label_weight
        soft = T**2 * soft_cross_entropy(s, t, student_temperature=T, teacher_temperature=T)
        taught = torch.softmax(t / T, dim=1)
        metrics = {
            "soft_targets": soft.detach(),
            "teacher_entropy": torch.special.entr(taught).sum(dim=1).mean(),
            "teacher_agreement": (s.argmax(dim=1) == t.argmax(dim=1)).float().mean(),
        }
        loss = (1 - a) * soft
        if a:
            hard = F.cross_entropy(s, self.labels[batch.index], ignore_index=-1, reduction="sum")
            hard = hard / (len(s) * self.labelled_share)
            loss = loss + a * hard
            metrics["cross_entropy"] = hard.detach()
        return StepOutput(loss, metrics, features.detach())


def labels_by_id(images: Images, classes: tuple[str, ...], recipe: SimCLRv2Recipe) -> np.ndarray:
    """The labels that count, by stable id and in the teacher's numbers; -1 elsewhere.

    Raises:
        RecipeError: no labels, or a class that the teacher does not know.
    """
    if images.labels is None:
        raise RecipeError(
            f"simclr_v2: label_weight={recipe.label_weight} wants labels, and {images.name} has none. Name them "
            "(--labels folder, or a column), or leave label_weight out."
        )
    names = images.classes or tuple(map(str, range(images.num_classes)))
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise RecipeError(
            f"simclr_v2: the teacher knows no class {unknown[0]!r}; it knows {', '.join(map(repr, classes[:10]))}."
        )
    number = np.array([classes.index(name) for name in names])
    known = np.full(images.num_ids, -1, dtype=np.int64)
    rows = labelled_share(images, recipe.label_fraction, recipe.label_seed)
    known[images.index[rows]] = number[images.labels[rows]]
    return known


METHOD = SimCLRv2
