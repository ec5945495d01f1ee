"""CompRess: an image must have the same neighbours for the student as for a frozen self-supervised teacher.

Koohpayegani et al. 2020, arXiv:2010.14713. Recipes "2q" (each network compares in its own space) and "1q" (both
compare with the teacher's embeddings).

    t = teacher(x),  s = student(x), the same view x for both; all rows normalised
    2q: A_t, A_s = queues of earlier embeddings of the teacher and of the slow student, row a of both the same image
    1q: A_s = A_t, and s goes through one linear layer into the teacher's space
    loss = mean_i  - sum_a  softmax_a( <t_i, A_t[a]> / T )  log softmax_a( <s_i, A_s[a]> / T )

The image itself is never among the anchors: it enters the queues after it was compared. That, and one temperature of
0.04, keep the targets soft: see `teacher_entropy` among the metrics.

State, moved after the optimiser's step: in 2q the slow student f_m <- m f_m + (1 - m) f over parameters, with batch
statistics of its own forward passes; then the embeddings of this step, of all processes, enter the queues: the
teacher's, and in 2q the slow student's beside them.

Differs: the paper writes KL, which has the same gradient (metric `kl`). The published code begins with queues of
uniform random rows of length about 1, here they are unit vectors. Paper and code agree in the numbers, so there is no
recipe "released". SEED's recipe "soft" is the loss of 1q on SEED's schedule, augmentation and deeper projector; 1q here
has CompRess' own.

Cost: one pass of the teacher and one of the student a step; 2q adds a pass of the slow student without gradient.
Choose it when no labels exist and the student should keep the teacher's neighbourhoods; 1q was the better of the two
for ResNet-18 (62.6 against 61.7 linear) and needs no second network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.losses import anchor_similarities, gather_rows, soft_cross_entropy
from attar.methods.anchors import teacher_says
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, one_of
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.views.augmentation import Augmentation
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class CompRessRecipe(Recipe):
    """CompRess' own settings. Defaults are those of the paper on ImageNet."""

    own_queue: bool  # 2q: the student has a queue of its own; 1q: it is compared with the teacher's
    temperature: float = 0.04  # section 4; of both networks
    queue_length: int = 128000  # section 4
    momentum: float = 0.999  # of the slow student, section 4; 2q only
    teacher_output: Literal["auto", "embedding", "features"] = "features"  # section 4: after the pooling, no head
    teacher_views: int = 0  # 0: the teacher runs in every step; n: n views per image, computed once and repeated
    crop_scale: tuple[float, float] = (0.08, 1.0)  # published code: crop and flip, nothing else

    used_with = {"momentum": one_of("own_queue", True)}


TWO = CompRessRecipe(
    epochs=130,
    batch_size=256,
    optimiser="sgd",
    base_lr=0.01,
    schedule="step",
    lr_drops=(90 / 130, 120 / 130),
    lr_drop_factor=0.2,
    weight_decay=1e-4,
    decay_bias_and_norm=True,
    own_queue=True,
)
RECIPES = {
    "2q": TWO,  # section 4; the published code (UMBCvision/CompRess) has the same numbers
    "1q": replace(TWO, own_queue=False),  # as "2q"
    "small": replace(  # 32 px: ours, "1q" with the rates of MoCo's CIFAR-10 demo
        TWO,
        own_queue=False,
        teacher_output="auto",  # an embedding spreads wider than rectified features, which all look alike at 0.04
        base_lr=0.03,
        schedule="cosine",
        lr_drops=(),
        weight_decay=5e-4,
        queue_length=4096,
        crop_scale=(0.2, 1.0),
    ),
}


def views(recipe: CompRessRecipe, image: ImageSpec) -> MakeOneView:
    """One weak view for both networks."""
    return MakeOneView(Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0))


class CompRess(Method):
    """See the module's docstring. B images, D student's features, E teacher's, Q queue."""

    needs_teacher = True
    recipe: CompRessRecipe

    def __init__(self, recipe: CompRessRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = setup.require_teacher("compress", backbone)
        self.backbone = backbone
        width = teacher.num_features_out
        warn_of_long_queue("compress", recipe.queue_length, len(setup.images))
        self.teacher_queue = FeatureQueue(recipe.queue_length, width, setup.seed)
        self.student_queue: FeatureQueue | None = None
        self.slow_student: MomentumTeacher | None = None
        if recipe.own_queue:
            self.student_queue = FeatureQueue(recipe.queue_length, backbone.num_features, setup.seed)
            self.slow_student = MomentumTeacher(backbone)
        else:
            self.projector = MLP([backbone.num_features, width], norm=None)
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved
        self._new_keys: list[tuple[Tensor, Tensor | None]] = []  # of this step; they enter the queues after it

    @property
    def student(self) -> nn.Module:
        """s: in 2q the backbone alone."""
        return self.backbone if self.projector is None else nn.Sequential(self.backbone, self.projector)

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        temperature = self.recipe.temperature
        s = self.student(batch.images)  # (B, E), in 2q (B, D)
        t = self._teacher[0](batch.images, batch.index, self.image, view=progress.epoch)  # (B, E)
        k = None if self.slow_student is None else self.slow_student(batch.images)  # (B, D)
        anchors = self.teacher_queue if self.student_queue is None else self.student_queue
        student_logits = anchor_similarities(s, None, anchors.rows)  # (B, Q)
        teacher_logits = anchor_similarities(t, None, self.teacher_queue.rows)  # (B, Q)
        loss = soft_cross_entropy(
            student_logits, teacher_logits, student_temperature=temperature, teacher_temperature=temperature
        )
        says = teacher_says(student_logits, teacher_logits, teacher_temperature=temperature)
        self._new_keys.append((t, k))
        metrics = {
            "similarity_distillation": loss.detach(),
            "kl": loss.detach() - says["teacher_entropy"],
            **says,
        }
        return StepOutput(loss, metrics, s.detach(), t if k is None else k)

    def after_step(self, progress: Progress) -> None:
        if self.slow_student is not None:
            self.slow_student.update(self.backbone, self.recipe.momentum)
        self.teacher_queue.push(_gathered([t for t, _ in self._new_keys]))
        if self.student_queue is not None:
            self.student_queue.push(_gathered([k for _, k in self._new_keys if k is not None]))
        self._new_keys.clear()


def _gathered(rows: list[Tensor]) -> Tensor:
    """Unit rows of all processes, in an order that is the same for both queues."""
    return gather_rows(F.normalize(torch.cat(rows).float(), dim=1))


METHOD = CompRess
