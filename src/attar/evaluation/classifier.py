"""The classifier that a run was trained with, as it would be deployed: nothing is fitted here.

Its class probabilities give the usual metrics and how far they can be believed (nll, ece; lower is better), and beside
the teacher's the agreement: the share of test images for which both name the same class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attar.errors import RecipeError
from attar.evaluation.subject import Outcome, Protocol, Subject
from attar.models.backbones import evaluation_mode


@dataclass(frozen=True)
class OwnClassifier(Protocol):
    """temperature: divisor of the logits, as a calibrated classifier has one; it leaves top-1 what it is."""

    temperature: float = 1.0

    name = "classifier"
    bare = "temperature"
    learns = False

    def metrics(self, usual: Sequence[str]) -> list[str]:
        return [*usual, "nll", "ece"]

    def reason_to_skip(self, subject: Subject) -> str | None:
        if subject.name == "model":
            return None  # then it is an error
        if subject.name != "teacher":
            return ""
        if subject.classifier is None:
            return "it kept no classifier"
        try:
            subject.classifier.order(subject.task.classes)
        except RecipeError as error:
            return str(error).split("; ")[0]
        return None

    def run(self, subject: Subject) -> list[Outcome]:
        if not self.temperature > 0:
            raise RecipeError(f"classifier: temperature={self.temperature} is not accepted; give a number above 0.")
        scores = self._scores(subject)
        teacher = subject.teacher
        if teacher is None or self.reason_to_skip(teacher) is not None:
            return [Outcome([scores], {})]
        same = scores.argmax(axis=1) == self._scores(teacher).argmax(axis=1)
        return [Outcome([scores], {}, by_image={"agreement": same.astype(np.float64)})]

    def _scores(self, subject: Subject) -> np.ndarray:
        if subject.classifier is None:
            raise RecipeError(f"classifier: {subject.name} has none; give it, or take linear or finetune.")
        try:
            columns = subject.classifier.order(subject.task.classes)
        except RecipeError as error:
            raise RecipeError(f"classifier: of {subject.name}, {error}") from None
        head, features = subject.classifier.head, subject.test.values
        with evaluation_mode(head), torch.inference_mode():
            logits = head.to(features.device)(features).double()[:, columns]
        return (logits / self.temperature).softmax(dim=1).cpu().numpy()
