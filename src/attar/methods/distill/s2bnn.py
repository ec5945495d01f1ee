"""S2-BNN: a network of 1-bit weights and activations learns from a frozen real one, without labels or negatives.

Shen et al. 2021, arXiv:2102.08946. The binary networks are those of models/binary.py (ReActNet).

    s = projector(student(x1)),  t = teacher(x1), the same view; rows normalised; E their width
    distillation = mean_i  - sum_{d=1..E}  softmax(t_i / T)_d  log softmax(s_i / T)_d
    contrastive  = MoCo v2's loss: s against the slow student's k of a second view x2, among a queue of earlier k
    loss = distillation_weight * distillation + contrastive_weight * contrastive

Two stages, two runs: first real weights with binary activations, then all binary, started from the first.

    attar distill PHOTOS --teacher T --method s2bnn --backbone bnn_resnet20_real --out stage1
    attar distill PHOTOS --teacher T --method s2bnn --backbone bnn_resnet20 --init stage1 --out stage2
    attar export stage2 --format packed

Is that softmax a distribution? Of unit vectors of 128 numbers, at a temperature of 0.2, it is nearly uniform (4.755 of
4.852 nats) and its KL is ||s - t||^2 / (2 E T^2) within a percent: a regression of the teacher's embedding. Metric
`kl`, that divergence.

State: with distillation alone there is no state besides the weights. With a contrastive term, after the optimiser's
step, the slow student f_m <- m f_m + (1 - m) f over parameters, and then its embeddings of this step, of all processes,
enter the queue.

Differs: the published code keeps the slow student and the queue also where they are not used, and trains on against
random weights when the teacher's file is missing; here that is an error. Adam with weight decay 0 is AdamW's; recipe
"contrastive" decays 1e-4 as the code does, decoupled from the gradient. The paper shuffles the keys over GPUs, here
batch statistics are taken over groups of images as in MoCo (`bn_group_size`). Recipe "contrastive" learns nothing
from the teacher but is told how far from it the student is (metric `distillation`); without a teacher, take moco.
The norms and shifts of a binary network are as many as its words of 32 bits: a small one shrinks less than 32-fold.

Cost: a binary layer costs a little more to train than a real one here; the teacher adds its forward pass, a
contrastive term a second view and the slow student.
Choose it when the student must be tiny or will run on 1-bit hardware; otherwise distil into a small real network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import gather_rows, info_nce, soft_cross_entropy
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.models.backbones import Backbone
from attar.models.batch_norm import check_groups, in_groups
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.views.augmentation import Augmentation
from attar.views.batches import OneView, TwoViews
from attar.views.makers import MakeOneView, MakeTwoViews


@dataclass(frozen=True, kw_only=True)
class S2BNNRecipe(Recipe):
    """S2-BNN's own settings. Defaults are those of the published code on ImageNet, of each of the two stages."""

    distillation_weight: float = 1.0
    contrastive_weight: float = 0.0  # section 3.3: 1 in "both"
    temperature: float = 0.2  # of both terms
    queue_length: int = 65536  # of the contrastive term, as MoCo
    momentum: float = 0.999
    bn_group_size: int = 32
    projector_hidden_dim: int | None = None  # None: the width of the features, 1024 for ReActNet
    teacher_output: Literal["auto", "embedding", "features"] = "auto"
    teacher_views: int = 0  # 0: the teacher runs in every step; n: n views per image, computed once and repeated
    crop_scale: tuple[float, float] = (0.2, 1.0)  # MoCo v2's; the rest of its augmentation is weakened
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.6
    blur: float = 0.2  # probability

    used_with = {
        "queue_length": above("contrastive_weight"),
        "momentum": above("contrastive_weight"),
        "bn_group_size": above("contrastive_weight"),
    }


DISTILLATION = S2BNNRecipe(  # published code (szq0214/S2-BNN)
    epochs=200, batch_size=256, optimiser="adamw", base_lr=3e-4, lr_scaling="none", schedule="linear"
)
RECIPES = {
    "distillation": DISTILLATION,
    # as "distillation"; weights 1 and 1: section 3.3
    "both": replace(DISTILLATION, contrastive_weight=1.0, weight_decay=1e-4, decay_bias_and_norm=True),
    "contrastive": replace(  # as "distillation"; decay: published code
        DISTILLATION, distillation_weight=0.0, contrastive_weight=1.0, weight_decay=1e-4, decay_bias_and_norm=True
    ),
    "small": replace(DISTILLATION, base_lr=2e-3, queue_length=4096, blur=0.0),  # 32 px: ours
}


def views(recipe: S2BNNRecipe, image: ImageSpec) -> MakeOneView | MakeTwoViews:
    """One view for both networks; a second for the keys of the contrastive term."""
    view = Augmentation(
        image,
        scale=recipe.crop_scale,
        flip=0.5,
        jitter=recipe.jitter,
        jitter_probability=recipe.jitter_probability,
        grey=0.2,
        blur=recipe.blur,
        blur_sigma=(0.1, 2.0),
    )
    if not recipe.contrastive_weight:
        return MakeOneView(view)
    if recipe.teacher_views:
        raise RecipeError("s2bnn: teacher_views keeps the answers to one view an image; leave out contrastive_weight.")
    return MakeTwoViews(view)


class S2BNN(Method):
    """See the module's docstring. B images, E embedding of the teacher, Q queue."""

    needs_teacher = True
    recipe: S2BNNRecipe
    projector: MLP

    def __init__(self, recipe: S2BNNRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = setup.require_teacher("s2bnn", backbone)
        if not recipe.distillation_weight + recipe.contrastive_weight > 0:
            raise RecipeError("s2bnn: distillation_weight and contrastive_weight are both 0; nothing would be learnt.")
        check_groups("s2bnn", backbone, recipe.given)
        self.backbone = backbone
        width = teacher.num_features_out
        self.projector = MLP(
            [backbone.num_features, recipe.projector_hidden_dim or backbone.num_features, width], norm=None
        )
        if isinstance(setup.projector, MLP) and setup.projector.spec == self.projector.spec:
            self.projector.load_state_dict(setup.projector.state_dict())  # stage 2 starts from all of stage 1
        self.slow_student: MomentumTeacher | None = None
        self.queue: FeatureQueue | None = None
        if recipe.contrastive_weight:
            warn_of_long_queue("s2bnn", recipe.queue_length, len(setup.images))
            self.slow_student = MomentumTeacher(self.student)
            self.queue = FeatureQueue(recipe.queue_length, width, setup.seed)
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved
        self._new_keys: list[Tensor] = []  # of this step; they enter the queue after it

    @property
    def student(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def step(self, batch: OneView | TwoViews, progress: Progress) -> StepOutput:
        r = self.recipe
        images = batch.images if isinstance(batch, OneView) else batch.view1
        size = r.bn_group_size
        s = self.student(images) if self.queue is None else in_groups(self.student, images, size, interleaved=False)
        t = self._teacher[0](images, batch.index, self.image, view=progress.epoch)  # (B, E)
        unit_s, unit_t = F.normalize(s.float(), dim=1), F.normalize(t, dim=1)
        temperatures = {"student_temperature": r.temperature, "teacher_temperature": r.temperature}
        distillation = soft_cross_entropy(unit_s, unit_t, **temperatures)
        loss = r.distillation_weight * distillation
        metrics = {
            "distillation": distillation.detach(),
            "kl": distillation.detach() - soft_cross_entropy(unit_t, unit_t, **temperatures),
        }
        positives = t
        if self.queue is not None and self.slow_student is not None and isinstance(batch, TwoViews):
            with torch.no_grad():
                k = in_groups(self.slow_student, batch.view2, size, interleaved=True)
            contrastive = info_nce(s, k, temperature=r.temperature, negatives=self.queue.rows)
            self._new_keys.append(F.normalize(k.float(), dim=1))
            loss = loss + r.contrastive_weight * contrastive
            metrics["info_nce"] = contrastive.detach()
            positives = k
        return StepOutput(loss, metrics, s.detach(), positives)

    def after_step(self, progress: Progress) -> None:
        if self.queue is not None and self.slow_student is not None:
            self.slow_student.update(self.student, self.recipe.momentum)
            self.queue.push(gather_rows(torch.cat(self._new_keys)))
            self._new_keys.clear()


METHOD = S2BNN
