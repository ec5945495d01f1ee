"""SEED: the student must see the same neighbours as a frozen self-supervised teacher; no labels.

Fang et al. 2021, arXiv:2101.04731. Recipe "soft" takes the targets of CompRess with one queue (Koohpayegani et al.
2020, arXiv:2010.14713) and keeps SEED's schedule, augmentation and projector; with its own, CompRess is the method
compress.

    s = projector(backbone(x)),  t = teacher(x), the same view x for both; all rows normalised
    A = the queue of earlier teacher embeddings, before them the image's own t if include_self
    loss = mean_i  - sum_{a in A}  softmax_a( <t_i, a> / t_T )  log softmax_a( <s_i, a> / t_S )

Recipe "small_patches" (for SwAV teachers) also cuts six small crops of each image, which both networks see; their term
has a queue of its own and is added with weight 1, a mean over all small crops.

State: after the optimiser's step, the teacher embeddings of this step, of all processes, enter the queue; those of the
first small crop of each image enter the queue of small crops. The teacher never changes, is in eval mode, gets inputs
in its own normalisation, and is not saved.

Is the target soft? At a teacher temperature of 0.01 (paper) or 1e-4 (published code) with the image itself among the
anchors, practically all probability lies on the image itself: the loss is then InfoNCE with the teacher's key, and the
neighbours teach nothing. Recipe "soft" leaves the image out and compares at 0.04: recommended. The metrics say
what the teacher really says: `teacher_entropy` in nats, `teacher_p_self`, `top1_agreement` (student and teacher find
the same nearest anchor).

Differs: paper and published code disagree in the teacher's temperature ("paper": 0.01, "released": 1e-4). The code's
5-epoch warm-up ends where it starts at a batch of 256, so there is none here. The width of the student's projector
matters more than the method (ResNet-18: 58.0 at 512, 60.3 at 2048); it is a field of the recipe.

Cost: one forward and backward pass of the student and one forward pass of the teacher an image, none with a cached
teacher; a queue of Q x E numbers.

Choose it when there is a good self-supervised teacher and the student shall be compared by cosine similarity, as in
retrieval and kNN; where the features themselves are wanted, `regression` is the simplest thing to beat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import BackboneError, RecipeError
from attar.losses import anchor_similarities, gather_rows, soft_cross_entropy
from attar.methods.anchors import probability_of, teacher_says
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, above
from attar.methods.multi_crop import check_local_views, local_view_size, require_local_size
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.queue import FeatureQueue, warn_of_long_queue
from attar.models.teachers import FrozenTeacher
from attar.models.tokens import patch_size
from attar.views.augmentation import Augmentation
from attar.views.batches import MultiCrop, OneView
from attar.views.makers import MakeMultiCrop, MakeOneView


@dataclass(frozen=True, kw_only=True)
class SEEDRecipe(Recipe):
    """SEED's own settings. Defaults are those of the paper with a MoCo v2 teacher."""

    student_temperature: float = 0.2  # section 3.3; CompRess 0.04
    teacher_temperature: float = 0.01  # section 3.3; published code 1e-4; CompRess 0.04
    include_self: bool = True  # the image's own teacher embedding is an anchor; CompRess False
    queue_length: int = 65536  # section 4.1; CompRess 128000
    projector_hidden_dim: int | None = None  # None: the width of the student's features, as the paper
    teacher_output: Literal["auto", "embedding", "features"] = "auto"  # auto: the projector's output where it was saved
    teacher_views: int = 0  # 0: the teacher runs in every step; n: n views per image, computed once and repeated
    num_local_views: int = 0  # small crops of each image; with SwAV teachers 6 (published code)
    local_scale: tuple[float, float] = (0.05, 0.14)  # of these
    local_size: float = 96 / 224  # their side as a share of the image's
    crop_scale: tuple[float, float] = (0.2, 1.0)  # of MoCo v2, as all of the augmentation
    colour_strength: float = 1.0  # times jitter 0.4, 0.4, 0.4, 0.1
    blur: float = 0.5  # probability

    used_with = {
        "local_scale": above("num_local_views"),
        "local_size": above("num_local_views"),
    }


PAPER = SEEDRecipe(  # section 4.1 and published code (jacobswan1/SEED, main.py)
    epochs=200,
    batch_size=256,
    optimiser="sgd",
    base_lr=0.03,
    weight_decay=1e-4,
    decay_bias_and_norm=True,
)
# as "paper", with what CompRess compares and its temperature, see above
SOFT = replace(PAPER, include_self=False, student_temperature=0.04, teacher_temperature=0.04)
RECIPES = {
    "paper": PAPER,
    "released": replace(PAPER, teacher_temperature=1e-4),  # as "paper"; published code, tools/opts.py
    "soft": SOFT,
    "small_patches": replace(  # as "paper", for SwAV teachers: published code, small_patch_builder.py; SwAV's views
        PAPER, epochs=400, num_local_views=6, crop_scale=(0.14, 1.0), colour_strength=2.0
    ),
    "small": replace(  # 32 px: ours, "soft" at the rates of MoCo's CIFAR-10 demo
        SOFT, weight_decay=5e-4, queue_length=4096, crop_scale=(0.2, 1.0), blur=0.0, projector_hidden_dim=512
    ),
}


def views(recipe: SEEDRecipe, image: ImageSpec, patch_size: int = 1) -> MakeOneView | MakeMultiCrop:
    """The same views for both networks; the augmentation the teacher was trained with."""
    s = recipe.colour_strength
    view = Augmentation(
        image,
        scale=recipe.crop_scale,
        flip=0.5,
        jitter=(0.4 * s, 0.4 * s, 0.4 * s, 0.1 * s),
        jitter_probability=0.8,
        grey=0.2,
        blur=recipe.blur,
        blur_sigma=(0.1, 2.0),
    )
    if recipe.num_local_views == 0:
        return MakeOneView(view)
    if recipe.teacher_views:
        raise RecipeError("seed: teacher_views keeps the answers to one view an image; leave out num_local_views.")
    local_size = local_view_size(image.size, recipe.local_size, patch_size)
    check_local_views("seed", recipe, image.size, local_size)
    local = replace(view, size=local_size, scale=recipe.local_scale)
    return MakeMultiCrop(global_views=[view], local_views=[local] * recipe.num_local_views)


class SEED(Method):
    """See the module's docstring. B images, E embedding of the teacher, Q queue."""

    needs_teacher = True
    recipe: SEEDRecipe
    projector: MLP

    def __init__(self, recipe: SEEDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        teacher = setup.require_teacher("seed", backbone)
        require_local_size(backbone, setup.image, recipe.num_local_views, recipe.local_size)
        if recipe.num_local_views:
            for one in getattr(teacher, "teachers", (teacher,)):  # several may answer as one
                if isinstance(one, FrozenTeacher):
                    _require_teachers_size(one, recipe, setup.image, patch_size(backbone))
        self.backbone = backbone
        hidden = recipe.projector_hidden_dim or backbone.num_features
        width = teacher.num_features_out
        warn_of_long_queue("seed", recipe.queue_length, len(setup.images))
        self.projector = MLP([backbone.num_features, hidden, width], norm=None)  # as deep as MoCo v2's, no batch norm
        self.queue = FeatureQueue(recipe.queue_length, width, setup.seed)
        self.local_queue = FeatureQueue(recipe.queue_length, width, setup.seed + 1) if recipe.num_local_views else None
        self.image = setup.image
        self._teacher = (teacher,)  # in a tuple: not a part of this module, neither trained nor saved
        self._new_keys: list[Tensor] = []  # of this step; they enter the queue after it
        self._new_local_keys: list[Tensor] = []

    def step(self, batch: OneView | MultiCrop, progress: Progress) -> StepOutput:
        images = batch.images if isinstance(batch, OneView) else batch.global_views[0]
        loss, s, t, metrics = self._compare(images, batch.index, self.queue, progress)
        self._new_keys.append(F.normalize(t.float(), dim=1))
        metrics["similarity_distillation"] = loss.detach()
        if self.local_queue is not None and isinstance(batch, MultiCrop):
            crops, index = torch.cat(batch.local_views), batch.index.repeat(len(batch.local_views))
            local_loss, _, local_t, _ = self._compare(crops, index, self.local_queue, progress)
            self._new_local_keys.append(F.normalize(local_t[: len(images)].float(), dim=1))
            metrics["similarity_distillation_local"] = local_loss.detach()
            loss = loss + local_loss
        return StepOutput(loss, metrics, s.detach(), t)

    def _compare(
        self, images: Tensor, index: Tensor, queue: FeatureQueue, progress: Progress
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Loss, embeddings (B, E) of student and teacher, and what the teacher says."""
        r = self.recipe
        s = self.projector(self.backbone(images))
        t = self._teacher[0](images, index, self.image, view=progress.epoch)
        own_key = t if r.include_self else None
        student_logits = anchor_similarities(s, own_key, queue.rows)  # (B, Q) or (B, 1 + Q)
        teacher_logits = anchor_similarities(t, own_key, queue.rows)
        loss = soft_cross_entropy(
            student_logits,
            teacher_logits,
            student_temperature=r.student_temperature,
            teacher_temperature=r.teacher_temperature,
        )
        says = teacher_says(student_logits, teacher_logits, teacher_temperature=r.teacher_temperature)
        if r.include_self:
            first = torch.zeros(len(t), dtype=torch.long, device=t.device)
            says["teacher_p_self"] = probability_of(first, teacher_logits, teacher_temperature=r.teacher_temperature)
        return loss, s, t, says

    def after_step(self, progress: Progress) -> None:
        self.queue.push(gather_rows(torch.cat(self._new_keys)))
        self._new_keys.clear()
        if self.local_queue is not None:
            self.local_queue.push(gather_rows(torch.cat(self._new_local_keys)))
            self._new_local_keys.clear()


def _require_teachers_size(teacher: FrozenTeacher, recipe: SEEDRecipe, image: ImageSpec, patch: int) -> None:
    """Does the teacher take the student's local views, as large as it sees them? patch: the student's.

    Raises:
        RecipeError: if not; it names the nearest local_size that suits both, where there is one.
    """
    side = local_view_size(image.size, recipe.local_size, patch)
    scale = teacher.image.size / image.size
    try:
        teacher.backbone.require_size(round(side * scale), setting="local_size")
    except BackboneError as error:
        multiple = patch_size(teacher.backbone)
        least = local_view_size(image.size, 0.0, patch)
        both = [s for s in range(least, image.size, least) if multiple > 1 and round(s * scale) % multiple == 0]
        nearest = min(both, key=lambda s: abs(s - image.size * recipe.local_size), default=None)
        advice = (
            f"-s local_size={nearest / image.size:.4g} suits both"
            if nearest
            else "-s num_local_views=0 leaves them out"
        )
        raise RecipeError(f"seed: the teacher sees the local views too, but {error} {advice}.") from error


METHOD = SEED
