"""Fine-tuning: a copy of the backbone and a new linear head are trained on the labelled images.

The learning rate is chosen on a held-out part of the training data; the last epoch is what is measured.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import CanvasBatch, Images
from attar.data.splits import stratified_split
from attar.errors import AttarError
from attar.evaluation.features import extract_features, match_channels, read_ahead, tracked
from attar.evaluation.subject import Outcome, Protocol, Subject
from attar.models.precision import mixed_precision
from attar.views.augmentation import Augmentation, RandomCropPad
from attar.views.draws import Draws

USUAL_RATES = {"adamw": (1e-4, 1e-3), "sgd": (0.01, 0.1)}
SMALL_IMAGE = 64  # pixels up to which crops shift instead of zooming, as is usual for CIFAR
HELD_OUT = 0.2
HEAD_RATE = 10.0  # the head starts from zero and learns this many times faster than the backbone


@dataclass(frozen=True)
class Finetune(Protocol):
    """How the labelled images are trained on.

    learning_rates: candidates; None takes (1e-4, 1e-3) for adamw and (0.01, 0.1) for sgd. epochs: at least; few
    images are repeated until min_steps. The rate rises over warmup_fraction, then follows a cosine to zero.
    """

    learning_rates: tuple[float, ...] | None = None
    optimiser: Literal["adamw", "sgd"] = "adamw"
    epochs: int = 20
    batch_size: int = 128
    weight_decay: float | None = None  # None: 0.05 for adamw, 1e-4 for sgd
    warmup_fraction: float = 0.1
    min_steps: int = 200

    name = "finetune"
    bare = "learning_rates"

    def reason_to_skip(self, subject: Subject) -> str | None:
        trainable = any(p.requires_grad for p in subject.backbone.parameters())
        return None if trainable else f"{subject.name} has nothing to train; its linear probe is the comparison"

    def run(self, subject: Subject) -> list[Outcome]:
        if self.optimiser not in USUAL_RATES:
            raise AttarError(f"finetune: optimiser {self.optimiser!r} is unknown; accepted: adamw, sgd.")
        rates = self.learning_rates or USUAL_RATES[self.optimiser]
        if min(rates) <= 0 or self.epochs < 1 or self.batch_size < 1:
            raise AttarError("finetune: learning_rates, epochs and batch_size must be greater than 0.")
        rate = rates[0] if len(rates) == 1 else self._choose(subject, rates)
        trained = self._train(subject, subject.task.train, rate)
        epochs = self._epochs(len(subject.task.train))
        settings = {"learning_rate": rate, "optimiser": self.optimiser, "epochs": epochs}
        return [Outcome([_scores(trained, subject, subject.task.test)], settings)]

    def _choose(self, subject: Subject, rates: tuple[float, ...]) -> float:
        """The rate with the best held-out accuracy after the last epoch; between equals the lower cross-entropy."""
        train = subject.task.train
        fitted, held_out = (train.subset(rows) for rows in _split(subject))
        results = []
        for rate in rates:
            p = _scores(self._train(subject, fitted, rate), subject, held_out)
            own = p[np.arange(len(p)), held_out.labels]
            results.append((float((p.argmax(axis=1) == held_out.labels).mean()), float(np.log(own + 1e-12).mean())))
        return rates[results.index(max(results))]

    def _train(self, subject: Subject, images: Images, rate: float) -> nn.Sequential:
        """Backbone and head after the last step. The subject's own backbone is not touched."""
        task = subject.task
        batch_size = min(self.batch_size, len(images))
        epochs, per_epoch = self._epochs(len(images)), len(images) // batch_size
        total = epochs * per_epoch
        view = _training_view(subject)
        with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
            torch.manual_seed(task.seed)  # dropout and stochastic depth
            backbone = copy.deepcopy(subject.backbone).to(task.device).train()
            head = nn.Linear(subject.num_features, task.num_classes).to(task.device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            optimiser = self._optimiser(backbone, head, rate)
            cuts = [rows for epoch in range(epochs) for rows in _epoch(len(images), batch_size, task.seed, epoch)]
            description = f"fine-tuning {subject.name}, learning rate {rate:g}"
            batches = tracked(read_ahead(images, cuts), total, description=description, shown=task.progress)
            for step, batch in enumerate(batches):
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] * _rate_factor(step, total, self.warmup_fraction)
                batch = match_channels(batch.to(task.device), subject.image)
                images_seen = view(batch, Draws(task.seed, batch.index, epoch=step // per_epoch))
                with mixed_precision(task.device, enabled=task.precision == "bf16"):
                    logits = head(backbone(images_seen))
                assert batch.labels is not None
                loss = F.cross_entropy(logits.float(), batch.labels)
                if not torch.isfinite(loss):
                    raise AttarError(
                        f"finetune: the loss of {subject.name} is not finite at step {step} with learning rate "
                        f"{rate:g}. Give smaller ones, e.g. finetune:{rate / 10:g}."
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return nn.Sequential(backbone, head)

    def _epochs(self, num_images: int) -> int:
        steps_per_epoch = num_images // min(self.batch_size, num_images)
        return max(self.epochs, math.ceil(self.min_steps / steps_per_epoch))

    def _optimiser(self, backbone: nn.Module, head: nn.Module, rate: float) -> torch.optim.Optimizer:
        decay = self.weight_decay if self.weight_decay is not None else {"adamw": 0.05, "sgd": 1e-4}[self.optimiser]
        weights = [p for p in backbone.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in backbone.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": decay, "initial_lr": rate},
            {"params": others, "weight_decay": 0.0, "initial_lr": rate},
            {"params": list(head.parameters()), "weight_decay": 0.0, "initial_lr": rate * HEAD_RATE},
        ]
        if self.optimiser == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=rate)


def _split(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    labels = subject.task.train_labels
    if np.bincount(labels).min() < 2:
        raise AttarError(
            "finetune: to choose among several learning rates every class needs at least 2 training images. "
            "Give one rate, e.g. finetune:1e-3."
        )
    return stratified_split(labels, HELD_OUT, subject.task.seed)


def _training_view(subject: Subject) -> Callable[[CanvasBatch, Draws], Tensor]:
    """Mild: a mirrored, slightly shifted or zoomed picture; colours stay, as labels may depend on them."""
    if subject.image.size <= SMALL_IMAGE:
        return RandomCropPad(subject.image, pad=max(subject.image.size // 8, 1))
    return Augmentation(subject.image, scale=(0.35, 1.0), jitter=None, grey=0.0, blur=0.0)


def _epoch(num_images: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    return [order[i : i + batch_size] for i in range(0, num_images - batch_size + 1, batch_size)]


def _rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    warmup = max(int(total * warmup_fraction), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _scores(trained: nn.Module, subject: Subject, images: Images) -> np.ndarray:
    task = subject.task
    logits = extract_features(
        trained,
        images,
        subject.image,
        device=task.device,
        batch_size=task.batch_size,
        precision=task.precision,
        progress=task.progress,
        description=f"fine-tuned {subject.name}",
    )
    return logits.values.double().softmax(dim=1).numpy()
