"""CMC: lightness and colour of an image are two views of one scene, and each must recognise the other among those of
all images. What both tell, the objects, is learnt; what only one tells is not.

Tian, Krishnan and Isola 2020, arXiv:1906.05849.

    x -> Lab;  v_1 = its lightness L, v_2 = its colour ab;  z_i = n(W_i f_i(v_i) + b_i)
    M_i    memory banks, one unit row per training image in each
    loss = sum over i != j of D(z_i, M_j): D(z_1, M_2) + D(z_2, M_1)
    D    = NCE or softmax of recognising the row of the own image among others, see inst_disc

What is exported is one network that takes images like any other: `lab_NAME` (models/lab.py) undoes the normalisation,
converts to Lab, and runs f_1 and f_2, two networks NAME, side by side; its features are both outputs joined, which
is what the paper evaluates. So training, evaluation, distillation and export see an ordinary backbone, and a half of
its features is a view. Ask for a NAME, and lab_NAME is built; for the cost of one, ask for half its width. lab3_NAME
has a network for each of L, a and b, and the loss is over all pairs of the three (the paper's full graph, section 3.3).

State: the banks, moved after the optimiser's step, each with its own view's embeddings,
M_i <- n(m M_i + (1 - m) z_i); one Z of NCE for each bank, estimated on the first batch and kept. All are saved.

Differs: the published code converts with 8-bit colours on the CPU; here Lab is computed in float32 on the device, from
crops that are resampled in RGB. One draw of negatives serves the batch, see inst_disc. "small" has the
softmax, which the code offers and reports as better, over all images; its other numbers are those for STL-10.

Cost: two networks on one view, twice a step of inst_disc, also when it is used; two banks of N * E numbers. Three of
each with lab3_NAME.

Choose it when colour carries meaning and is not simply the opposite of lightness, or as the pattern for other pairs of
sensors; grey images have no second view (an error), and ordinary photographs gain more from SimCLR or MoCo v2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import gather_rows
from attar.methods.base import Method, Progress, Setup, StepOutput
from attar.methods.memory import MemoryRecipe, discriminate, new_banks
from attar.models.backbones import Backbone
from attar.models.heads import MLP
from attar.models.lab import PARTS, LabParts, prefix_of
from attar.views.augmentation import Augmentation
from attar.views.batches import OneView
from attar.views.makers import MakeOneView


@dataclass(frozen=True, kw_only=True)
class CMCRecipe(MemoryRecipe):
    """CMC's own settings, besides those of the bank (published code: momentum 0.5, E = 128)."""

    crop_scale: tuple[float, float]  # published code: (0.08, 1) for ResNets on ImageNet, else (0.2, 1)


RECIPES = {
    "photo": CMCRecipe(  # ResNet-50 for each view: published code (HobbitLong/CMC, train_CMC.py)
        epochs=240,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.06,  # 0.03 at a batch of 128
        schedule="step",
        lr_drops=(120 / 240, 160 / 240, 200 / 240),
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        objective="nce",
        num_negatives=16384,
        temperature=0.07,
        crop_scale=(0.08, 1.0),
    ),
    "small": CMCRecipe(  # 32 px: published code for STL-10; that the softmax goes over all images is ours
        epochs=240,
        batch_size=128,
        optimiser="sgd",
        base_lr=0.06,
        schedule="step",
        lr_drops=(120 / 240, 160 / 240, 200 / 240),
        weight_decay=1e-4,
        decay_bias_and_norm=True,
        objective="softmax",
        num_negatives=None,
        temperature=0.1,  # published code, STL-10
        crop_scale=(0.2, 1.0),
    ),
}


def views(recipe: CMCRecipe, image: ImageSpec) -> MakeOneView:
    """Crop and flip; colours are left alone, for they are a view. The split is the backbone's."""
    return MakeOneView(Augmentation(image, scale=recipe.crop_scale, flip=0.5, jitter=None, grey=0.0, blur=0.0))


class CMC(Method):
    """See the module's docstring. B images, V views, D features of each, E embedding."""

    recipe: CMCRecipe

    def __init__(self, recipe: CMCRecipe, backbone: Backbone, setup: Setup):
        super().__init__(recipe)
        parts = backbone.network
        if not isinstance(parts, LabParts):
            raise RecipeError(
                f"cmc: it needs a backbone in two halves, or three parts, but was given {backbone.spec.name}; "
                f"build {self.backbone_name(backbone.spec.name)}."
            )
        parts.expect(setup.image.mean, setup.image.std)
        self.backbone, self.names = backbone, parts.names
        width = backbone.num_features // len(self.names)
        self.projectors = nn.ModuleList(MLP([width, recipe.projector_dim]) for _ in self.names)
        self.banks = nn.ModuleList(new_banks(recipe, setup, "cmc", len(self.names)))
        self._seen: list[tuple[Tensor, ...]] = []  # ids and embeddings of this step, for the banks after it

    @staticmethod
    def backbone_name(asked: str) -> str:
        return asked if prefix_of(asked) in PARTS else f"lab_{asked}"

    def step(self, batch: OneView, progress: Progress) -> StepOutput:
        features = self.backbone(batch.images).chunk(len(self.names), dim=1)  # (B, D) each
        z = [projector(part) for projector, part in zip(self.projectors, features)]  # (B, E) each
        terms = {
            f"{one}_to_{other}": discriminate(bank, z_one, batch.index, self.recipe, progress.step)  # type: ignore[arg-type]
            for one, z_one in zip(self.names, z)
            for other, bank in zip(self.names, self.banks)
            if one != other
        }
        z = [row.detach() for row in z]
        self._seen.append((batch.index, *z))
        return StepOutput(sum(terms.values(), z[0].new_zeros(())), {k: v.detach() for k, v in terms.items()}, *z[:2])

    def after_step(self, progress: Progress) -> None:
        index, *z = (gather_rows(torch.cat(parts)) for parts in zip(*self._seen))
        for bank, rows in zip(self.banks, z):
            bank.update(index, rows)  # type: ignore[operator]
        self._seen.clear()


METHOD = CMC
