"""Fine-tuning: train a pretrained network on labels, few of them, from a layer inside its projector.

The second stage of SimCLR v2, Chen et al. 2020, arXiv:2006.10029, section 3. `--init RUN` names the pretrained run.

    f = backbone(x),  p_k = the first k layers of the run's projector, each with its norm and activation
    logits = W p_k(f) + b,  W and b zero at first;  loss = mean_i CE(logits_i, y_i)

k is `from_layer`: 0 puts the classifier on the features, as is usual; 1 is SimCLR v2's with three layers, as the first
layer of a deep projector still is of use for classes. All of backbone, p_k, W and b are trained; the classifier that is
kept with the run is p_k and the last linear layer together. Of the labelled images a share is used (`label_fraction`),
the same share of every class, chosen by the images' ids and `label_seed`. There is no state besides the weights.

Differs: images are normalised as in the first run, where the code has pixels in [0, 1]. "small" trains with SGD, for
images of 32 px; its numbers are ours.

Cost: one forward and backward pass of one view, of few images.

Choose it when some of your images are labelled, and all of them have trained a network without labels; then teach a
small network by it with `simclr_v2`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from attar.data.images import Images, ImageSpec
from attar.data.splits import labelled_share
from attar.errors import RecipeError
from attar.methods.base import Method, Progress, Recipe, Setup, StepOutput, below
from attar.methods.supervised.supervised import labelled_view
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """Fine-tuning's own settings."""

    from_layer: int = 1  # section 4.2: the first of three; 0: from the features
    label_fraction: float = 1.0  # of each class; section 4: 0.01, 0.1 and 1
    label_seed: int = 0  # which of them
    crop_scale: tuple[float, float] = (0.08, 1.0)  # appendix: crop and mirror alone

    used_with = {"label_seed": below("label_fraction", 1)}


RECIPES = {
    "paper": FinetuneRecipe(  # published command (google-research/simclr, README.md): no weight decay, no warm-up
        epochs=60,  # for 1 % of the labels, published command; paper, as summaries of it say: 30 for 10 % and for all
        batch_size=1024,
        optimiser="lars",
        base_lr=0.005,
        lr_scaling="sqrt",
    ),
    "small": FinetuneRecipe(  # 32 px: ours
        epochs=60,
        batch_size=64,
        optimiser="sgd",
        base_lr=0.4,  # 0.1 at a batch of 64
        crop_scale=(0.2, 1.0),
    ),
}


def views(recipe: FinetuneRecipe, image: ImageSpec) -> MakeOneView:
    return labelled_view(image, crop="resized", crop_scale=recipe.crop_scale)


class Finetune(Method):
    """See the module's docstring. B images, D features, N classes."""

    needs_labels = True
    recipe: FinetuneRecipe
    classifier: MLP

    def __init__(self, recipe: FinetuneRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        self.backbone = backbone
        self.classifier = classifier_on(setup.projector, backbone, recipe.from_layer, setup.images.num_classes)

    @staticmethod
    def training_images(images: Images, recipe: FinetuneRecipe) -> Images:
        if recipe.label_fraction == 1:
            return images
        return images.subset(labelled_share(images, recipe.label_fraction, recipe.label_seed))

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        assert batch.labels is not None
        features = self.backbone(batch.images)
        logits = self.classifier(features).float()  # (B, N)
        loss = F.cross_entropy(logits, batch.labels)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy}, features.detach())


def classifier_on(projector: nn.Module | None, backbone: Backbone, num_layers: int, num_classes: int) -> MLP:
    """The first layers of a projector, with their weights, and a linear layer of zeros above them.

    Raises:
        RecipeError: there is no projector, or it has no such layers before its last.
    """
    if num_layers == 0:
        head = MLP([backbone.num_features, num_classes])
    else:
        if not isinstance(projector, MLP):
            raise RecipeError(
                f"finetune: from_layer={num_layers} starts inside a projector, and there is no run that kept one. Name "
                "such a run (--init RUN; simclr keeps it), or start from the features (-s from_layer=0)."
            )
        seen, *hidden, _ = projector.spec["dims"]
        if seen != backbone.num_features:
            raise RecipeError(
                f"finetune: from_layer={num_layers} starts inside a projector, and the run's takes {seen} features; "
                f"{backbone.spec.name} has {backbone.num_features}. Start from the features (-s from_layer=0), or give "
                "the run's own network as --backbone."
            )
        if not 0 < num_layers <= len(hidden):
            raise RecipeError(
                f"finetune: from_layer={num_layers} is not accepted: the projector has {len(hidden) + 1} layers, of "
                f"which 0 to {len(hidden)} can be kept."
            )
        kept = {**projector.spec, "final_norm": None, "final_bias": True}
        head = MLP.from_spec({**kept, "dims": [*projector.spec["dims"][: num_layers + 1], num_classes]})
        for own, first in zip(list(head)[:-1], projector):
            own.load_state_dict(first.state_dict())
    last = head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


METHOD = Finetune
