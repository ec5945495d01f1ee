"""Non-linear probe: a network of two layers on standardised frozen features.

    Linear(D, hidden) - BatchNorm - ReLU - Dropout - Linear(hidden, N)

trained by AdamW with a cosine. The learning rate is chosen by cross-entropy on a held-out part of the training data,
then the probe is trained anew on all of it. The gap to the linear probe tells what the features hold, but not linearly.
The features of AlexNet's layers are often measured so, by training the layers above them anew: Gidaris et al. 2018,
arXiv:1803.07728 (published code, config/ImageNet_NonLinearClassifiers_ImageNet_RotNet_AlexNet_Features.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import AttarError
from attar.evaluation.linear import Standardiser, held_out_splits
from attar.evaluation.subject import Outcome, Protocol, Subject

FALLBACK_RATE = 1e-3  # where some class has a single training image, so that nothing can be held out


@dataclass(frozen=True)
class Mlp(Protocol):
    """hidden: width. learning_rates: candidates. Few images are repeated until min_steps."""

    hidden: int = 512
    learning_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    dropout: float = 0.5
    weight_decay: float = 1e-2
    epochs: int = 50
    batch_size: int = 256
    min_steps: int = 200

    name = "mlp"
    bare = "hidden"

    def run(self, subject: Subject) -> list[Outcome]:
        if min(self.hidden, self.epochs, self.batch_size) < 1 or not 0 <= self.dropout < 1:
            raise AttarError("mlp: hidden, epochs and batch_size must be 1 or more, and dropout from 0 to below 1.")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise AttarError(f"mlp: learning_rates={self.learning_rates} is not accepted; give one or more above 0.")
        standardise = Standardiser.of(subject.train.values)
        x, labels = standardise(subject.train.values), subject.train_labels
        task = subject.task
        rate = self._choose(x, labels, task.num_classes, task.seed)
        probe = self._fit(x, labels, rate, task.num_classes, task.seed)
        with torch.inference_mode():
            scores = probe(standardise(subject.test.values)).double().softmax(dim=1)
        return [Outcome([scores.cpu().numpy()], {"hidden": self.hidden, "learning_rate": rate})]

    def _choose(self, x: Tensor, labels: Tensor, num_classes: int, seed: int) -> float:
        """The rate with the lowest held-out cross-entropy."""
        rates: Sequence[float] = self.learning_rates
        splits = held_out_splits(labels, seed) if len(rates) > 1 else []
        if not splits:
            return FALLBACK_RATE if len(rates) > 1 else rates[0]
        fitted, held_out = splits[0]
        losses = []
        for rate in rates:
            probe = self._fit(x[fitted], labels[fitted], rate, num_classes, seed)
            with torch.inference_mode():
                losses.append(float(F.cross_entropy(probe(x[held_out]), labels[held_out])))
        return rates[int(np.argmin(np.nan_to_num(losses, nan=math.inf)))]

    def _fit(self, x: Tensor, labels: Tensor, rate: float, num_classes: int, seed: int) -> nn.Sequential:
        """The probe after the last step, in eval mode."""
        size = min(self.batch_size, len(x))
        per_epoch = len(x) // size
        epochs = max(self.epochs, math.ceil(self.min_steps / per_epoch))
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(seed)  # initial weights, dropout and order
            probe = nn.Sequential(
                nn.Linear(x.shape[1], self.hidden),
                nn.BatchNorm1d(self.hidden),
                nn.ReLU(),
                nn.Dropout(self.dropout),
                nn.Linear(self.hidden, num_classes),
            ).to(x)
            optimiser = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=self.weight_decay)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * per_epoch)
            for _ in range(epochs):
                order = torch.randperm(len(x)).to(x.device)
                for rows in order[: per_epoch * size].split(size):
                    loss = F.cross_entropy(probe(x[rows]), labels[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    decay.step()
        return probe.eval()
