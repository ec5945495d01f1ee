"""Knowledge distillation: name the class of an image, and be as unsure about the others as a trained teacher is.

Hinton et al. 2015, arXiv:1503.02531. Recipe "small": the CIFAR-100 settings of Tian et al. 2020, arXiv:1910.10699.

    s = classifier(backbone(x)),  t = teacher(x): logits over the same N classes, the same view x for both
    loss = ce_weight CE(s, y) + kd_weight T^2 mean_i KL( softmax(t_i / T) || softmax(s_i / T) )

T is `temperature`. The factor T^2 keeps the weight of the soft targets when T changes, as their gradient shrinks with
1 / T^2. There is no state besides the weights; the teacher is frozen, in eval mode, and gets inputs in its own
normalisation.

Differs: the paper gives no full recipe for photographs; "paper" has what its speech experiment has (section 4.1: "a
relative weight of 0.5" of the labels, read as 0.5 to 0.5 though it may mean 0.5 to 1; of "temperatures of [1, 2, 5,
10]" the best, in bold there, which is 2 from memory) and the schedule of `supervised`. "small" has the weights 0.1 and
0.9 of the code of Tian et al. (RepDistiller), the baseline of the distillation literature. The KD rows printed there
are copied from paper to paper, and higher when they are run anew: measure your own.

Cost: one step of the student and one forward pass of the teacher; with teacher_views the teacher is asked once.

Choose it when you have labels and a larger network trained on them: it is the first thing to try, and hard to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

from attar.methods.base import Method, Progress, Setup, StepOutput
from attar.methods.distill.labelled import PHOTO, SMALL, LabelledRecipe, distilled, labelled_teacher, views
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView


@dataclass(frozen=True, kw_only=True)
class KDRecipe(LabelledRecipe):
    """KD's own settings."""

    teacher_views: int = 0  # 0: the teacher runs in every step; n: n views per image, computed once and repeated


RECIPES = {
    "paper": KDRecipe(**PHOTO, ce_weight=0.5, kd_weight=0.5, temperature=2.0),  # section 4.1; schedule: He et al. 2016
    "small": KDRecipe(**SMALL, ce_weight=0.1, kd_weight=0.9),  # RepDistiller: -r 0.1 -a 0.9
}


class KD(Method):
    """See the module's docstring. B images, N classes."""

    needs_teacher = True
    needs_labels = True
    recipe: KDRecipe
    classifier: MLP

    def __init__(self, recipe: KDRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = MLP([backbone.num_features, setup.images.num_classes])
        self.image = setup.image
        self._teacher = (labelled_teacher("kd", setup, backbone),)  # in a tuple: not a part of this module

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        features = self.backbone(batch.images)
        logits = self.classifier(features)  # (B, N)
        taught = self._teacher[0](batch.images, batch.index, self.image, view=progress.epoch)
        return distilled(self.recipe, logits, taught, batch.labels, features)


METHOD = KD
__all__ = ["METHOD", "RECIPES", "views"]
