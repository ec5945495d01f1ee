"""What is measured and on what: Task, Subject, and the shape of a protocol and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.data.images import Images, ImageSpec
from attar.errors import RecipeError
from attar.evaluation.features import Features, extract_features

if TYPE_CHECKING:
    from attar.models.backbones import BackboneSpec


@dataclass(frozen=True)
class Task:
    """Labelled images and how to compute. train fits the probes, test is only ever measured.

    Labels of both run from 0 to len(classes) - 1, none unknown, every class present in train.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "auto"
    batch_size: int = 256
    progress: bool = True

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def train_labels(self) -> np.ndarray:
        assert self.train.labels is not None
        return self.train.labels

    @property
    def test_labels(self) -> np.ndarray:
        assert self.test.labels is not None
        return self.test.labels


@dataclass(frozen=True)
class Classifier:
    """The head that a run was trained with: features (B, D) to logits (B, N) of these classes."""

    head: nn.Module
    classes: tuple[str, ...]

    def order(self, wanted: Sequence[str]) -> list[int]:
        """The columns of the wanted classes, matched by name.

        Raises:
            RecipeError: it tells other classes apart.
        """
        if set(self.classes) != set(wanted) or len(self.classes) != len(wanted):
            few = lambda names: ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")  # noqa: E731
            raise RecipeError(
                f"its classifier tells {len(self.classes)} classes apart ({few(self.classes)}), the images show "
                f"{len(wanted)} ({few(wanted)}); they must be the same, in any order."
            )
        return [self.classes.index(name) for name in wanted]


@dataclass
class Subject:
    """One line of the table: a backbone, the input it expects, and its features of the task's images.

    name: model, random_init, pixels, hog, teacher or pretrained. settings: what a reader must know about it.
    classifier: its own, where it was trained with one. teacher: of the model. exits: its early exits by name, from the
    shallowest, each with its own classifier.
    """

    name: str
    backbone: nn.Module
    image: ImageSpec
    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    classifier: Classifier | None = None
    teacher: Subject | None = None
    exits: Mapping[str, Subject] = field(default_factory=dict)

    @cached_property
    def train(self) -> Features:
        """Extracted once, shared by all protocols; on the task's device."""
        return self._extract(self.task.train)

    @cached_property
    def test(self) -> Features:
        return self._extract(self.task.test)

    @property
    def spec(self) -> BackboneSpec:
        return self.backbone.spec  # type: ignore[return-value]

    @property
    def num_features(self) -> int:
        return int(self.backbone.num_features)  # type: ignore[arg-type]

    @property
    def train_labels(self) -> Tensor:
        assert self.train.labels is not None
        return self.train.labels

    def _extract(self, images: Images) -> Features:
        task = self.task
        features = extract_features(
            self.backbone,
            images,
            self.image,
            device=task.device,
            batch_size=task.batch_size,
            precision=task.precision,
            progress=task.progress,
            description=f"features of {self.name}",
        )
        return features.to(task.device)


@dataclass(frozen=True)
class Outcome:
    """What a protocol found for one subject at one point of its settings.

    scores: class probabilities of the test images, float64 (M, N), one array for each seed.
    settings: for the table. variant: tells the outcomes of one protocol apart; the same for every subject.
    by_image: further metrics, each with its value for every test image, (M,); of outcomes with one seed.
    """

    scores: list[np.ndarray]
    settings: dict[str, Any]
    variant: str = ""
    by_image: Mapping[str, np.ndarray] = field(default_factory=dict)


def _default(protocol: Protocol, name: str) -> Any:
    return next(f.default for f in fields(protocol) if f.name == name)


@dataclass(frozen=True)
class Protocol:
    """A way to measure a subject. Subclasses are frozen dataclasses whose fields are the settings a person may give.

    name: as typed. bare: the field that values without a name fill, as in `knn:200`. learns: the labels of the training
    images matter.
    """

    name: ClassVar[str]
    bare: ClassVar[str]
    learns: ClassVar[bool] = True

    def given(self, *, without: str = "") -> str:
        """The settings that differ from the defaults, as a person would type them; "" for none."""
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != without]
        return ", ".join(f"{name}={value}" for name, value in changed if value != _default(self, name))

    def run(self, subject: Subject) -> list[Outcome]:
        raise NotImplementedError(f"{type(self).__name__}.run is not defined")

    def metrics(self, usual: Sequence[str]) -> list[str]:
        """Of the scores, the telling one first; before those of `Outcome.by_image`."""
        return list(usual)

    def reason_to_skip(self, subject: Subject) -> str | None:
        """Why this subject cannot be measured this way; None if it can, "" where nobody would expect it."""
        return None
