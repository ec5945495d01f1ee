"""Small images, a tiny backbone, and any method of the catalogue built on them. Knows no method by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from attar.data.images import Images, ImageSpec
from attar.methods.base import Method, Progress, Recipe, Setup, load, make_views, resolve_recipe
from attar.models.heads import MLP

NUM_IMAGES, SIZE, BATCH = 12, 32, 6
IMAGE = ImageSpec(size=SIZE, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

# Shared names of recipe fields (the same in every method), at sizes for tests. A method has some of them.
SMALL = {
    "queue_length": 16,
    "num_prototypes": 24,
    "num_clusters": 3,
    "min_cluster_size": 1,
    "projector_hidden_dim": 20,
    "projector_dim": 12,
    "predictor_hidden_dim": 20,
    "num_local_views": 2,
    "min_context": 3,
    "teacher_views": 0,
    "contrast_temperature": 0.5,  # at the paper's 0.07 a dozen images in 12 dimensions blow up within two steps
}


class ArrayStore:
    def __init__(self, canvases: np.ndarray):
        self.canvases = canvases

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        side = self.canvases.shape[1]
        return self.canvases[rows], np.tile(np.float32([0, 0, side, side]), (len(rows), 1))


def make_images(num: int = NUM_IMAGES) -> Images:
    """Images that differ in colour and stripes; stable ids have gaps, as where broken files were skipped."""
    random = np.random.default_rng(0)
    wave = np.sin(np.linspace(0, 1, SIZE)[:, None] * random.uniform(5, 40, num)[:, None, None])
    colour = random.uniform(30, 225, (num, 1, 1, 3))
    pixels = colour * (0.75 + 0.25 * wave[..., None]) * np.ones((1, 1, SIZE, 1)) + random.normal(
        0, 8, (num, SIZE, SIZE, 3)
    )
    return Images(
        name="stripes",
        store=ArrayStore(pixels.clip(0, 255).astype(np.uint8)),
        rows=np.arange(num),
        index=np.arange(num) * 3 + 2,
        canvas_size=SIZE,
        channels=3,
        digest="stripes",
        labels=np.arange(num) % 3,
        classes=("a", "b", "c"),
    )


@dataclass
class Bench:
    """One method on the small images, with a plain optimiser instead of the training loop."""

    method: Method
    make_views: Any
    images: Images
    setup: Setup
    total_steps: int = 8

    def __post_init__(self) -> None:
        trainable = [p for p in self.method.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(trainable, lr=0.05, momentum=0.9)

    def progress(self, step: int) -> Progress:
        return Progress(step, self.total_steps, step // 2, self.total_steps // 2)

    def batch(self, step: int, num: int = BATCH) -> Any:
        from attar.views.draws import Draws

        canvases = self.images.batch((np.arange(num) + step * num) % len(self.images))
        return self.make_views(canvases, Draws(0, canvases.index, epoch=self.progress(step).epoch))

    def backward(self, step: int) -> torch.Tensor:
        """Forward and backward, no update."""
        torch.manual_seed(step)
        self.optimiser.zero_grad()
        output = self.method(self.batch(step), self.progress(step))
        output.loss.backward()
        return output

    def train(self, steps: range) -> list[float]:
        losses = []
        for step in steps:
            losses.append(self.backward(step).loss.item())
            self.optimiser.step()
            self.method.after_step(self.progress(step))
        return losses


# What a method says it needs -> a tiny network of that kind.
BACKBONES = {"": "resnet8x0.5", "any": "vit_micro_p8", "class": "vit_micro_p8", "mean": "vit_micro_p8_gap"}


def tiny_backbone(seed: int = 0, name: str = "resnet8x0.5") -> Any:
    from attar.models.backbones import build_backbone

    torch.manual_seed(seed)
    return build_backbone(name, channels=3, image_size=SIZE)


def build(name: str, recipe: str | None = None, *, network: str | None = None, **settings: Any) -> Bench:
    """The method with its small recipe (else its first) at test sizes, and a random teacher if it needs one.

    network: the backbone, instead of a tiny one of the kind that the method needs.
    """
    module = load(name)
    recipe = recipe or ("small" if "small" in module.RECIPES else next(iter(module.RECIPES)))
    fields = {f.name for f in dataclasses.fields(module.RECIPES[recipe])}
    small = {k: v for k, v in SMALL.items() if k in fields and k not in settings}  # used or not
    resolved = replace(resolve_recipe(name, recipe, settings), batch_size=BATCH, epochs=2, **small)
    setup = Setup(image=IMAGE, images=make_images(), projector=pretrained_projector())
    if module.METHOD.needs_teacher:
        from attar.models.teachers import FrozenTeacher

        head, projector = _teacher_head(resolved), _teacher_projector(resolved)
        classes = setup.images.classes if head else ()
        setup.teacher = FrozenTeacher(tiny_backbone(seed=7), IMAGE, head, projector=projector, classes=classes)
    backbone = tiny_backbone(name=module.METHOD.backbone_name(network or BACKBONES[module.METHOD.needs_tokens]))
    method = module.METHOD(resolved, backbone, setup).train()
    return Bench(method, make_views(name, resolved, IMAGE, backbone), setup.images, setup)


def pretrained_projector() -> MLP:
    """As SimCLR v2 leaves it beside the backbone: three layers, the last one to be left out."""
    torch.manual_seed(6)
    dims = [tiny_backbone().num_features, 20, 18, 12]
    return MLP(dims, norm="batch", final_norm="batch_no_shift", bias=False, final_bias=False)


def _teacher_head(recipe: Recipe) -> MLP | None:
    """A classifier where the distiller wants its logits."""
    if getattr(recipe, "teacher_output", "") != "logits":
        return None
    torch.manual_seed(8)
    return MLP([tiny_backbone().num_features, 3])


def _teacher_projector(recipe: Recipe) -> MLP | None:
    """Besides the classifier, a head of the same features that embeds them."""
    if getattr(recipe, "teacher_output", "") != "logits":
        return None
    torch.manual_seed(9)
    width = tiny_backbone().num_features
    return MLP([width, width, width], norm=None)


def assert_same_step(
    method: Method, loss: torch.Tensor, expected: torch.Tensor, *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Equal values, and equal gradients of every trainable parameter; where one has none, the other has none.

    Gradients to a thousandth of their largest entry; those that are rounding alone, as of a bias before a batch norm,
    are small beside the largest of all.
    """
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=atol)
    trainable = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    found, wanted = (
        torch.autograd.grad(value, list(trainable.values()), retain_graph=True, allow_unused=True)
        for value in (loss, expected)
    )
    largest = max((float(gradient.abs().max()) for gradient in wanted if gradient is not None), default=0.0)
    assert largest > 0, "no parameter has a gradient"
    for name, own, other in zip(trainable, found, wanted, strict=True):
        assert (own is None) == (other is None), f"{name}: {'no' if own is None else 'a'} gradient"
        if own is not None and other is not None:
            floor = 1e-3 * float(other.abs().max()) + 1e-6 * largest
            torch.testing.assert_close(own, other, rtol=0, atol=floor, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def bench():
    """build(name, recipe=None, network=None, **settings) -> Bench."""
    return build


@pytest.fixture
def backbone():
    """tiny_backbone(seed=0, name="resnet8x0.5")."""
    return tiny_backbone
