"""Linear probe: multinomial logistic regression on standardised frozen features.

loss = mean_i -log softmax(x_i W + b)[y_i]  +  penalty / 2 * |W|^2          (scikit-learn's C = 1 / (penalty * n))

The penalty is chosen by cross-entropy on held-out parts of the training data, from strong to weak with warm starts,
then the probe is refitted on all of it. The test data are never looked at. Solvers: L-BFGS (full batch; SciPy drives,
torch computes), and SGD for sets too large for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

from attar.data.splits import stratified_split
from attar.errors import AttarError
from attar.evaluation.subject import Outcome, Protocol, Subject

PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
FALLBACK_PENALTY = 0.1  # where some class has a single training image, so that nothing can be held out
HELD_OUT = 0.2
MANY_SPLITS_BELOW = 2000  # training images; below, one held-out part is too noisy to choose by
LBFGS_VALUES = 500_000_000  # features in all above which `auto` takes SGD: 2 GB of float32 read twice an iteration
ONE_THREAD_VALUES = 1_000_000  # features in all below which waking a second thread takes longer than what it would do


@dataclass(frozen=True)
class Standardiser:
    """Zero mean and unit variance per feature; features that never vary become 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Standardiser:
        mean = values.mean(dim=0)
        std = (values - mean).square().mean(dim=0).sqrt()
        constant = std <= 1e-6 * mean.abs() + 1e-12  # rounding noise, not information
        return cls(mean, torch.where(constant, 0.0, 1 / std))

    def __call__(self, values: Tensor) -> Tensor:
        return (values - self.mean) * self.scale


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe. weight (D, N) and bias (N,) belong to standardised features; penalty is the chosen one."""

    standardise: Standardiser
    weight: Tensor
    bias: Tensor
    penalty: float
    solver: str

    def scores(self, values: Tensor) -> np.ndarray:
        """Class probabilities of features (M, D): float64 (M, N), rows sum to 1."""
        rows = max(1, (1 << 25) // values.shape[1])
        blocks = [self.standardise(block) @ self.weight + self.bias for block in values.split(rows)]
        return torch.cat(blocks).double().softmax(dim=1).cpu().numpy()


def linear_probe(
    values: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    solver: str = "auto",
    seed: int = 0,
    standardise: Standardiser | None = None,
    sgd_epochs: int = 50,
    sgd_batch_size: int = 1024,
) -> LinearProbe:
    """Choose the penalty on held-out training data, refit on all of it.

    Args:
        values: training features (n, D), float32 or float64; the computation stays on their device.
        labels: int64 (n,) in 0 .. num_classes - 1.
        penalties: tried from strong to weak until cross-entropy rises; a single one is taken as it is.
        standardise: statistics to use instead of those of `values`, e.g. of more images without labels.
        seed: of the held-out parts and of SGD's order.
    """
    if not penalties or min(penalties) <= 0:
        raise AttarError(f"linear: penalties={tuple(penalties)} is not accepted; give one or more numbers > 0.")
    if solver not in ("auto", "lbfgs", "sgd"):
        raise AttarError(f"linear: solver {solver!r} is unknown; accepted: auto, lbfgs, sgd.")
    if solver == "auto":
        solver = "sgd" if values.numel() > LBFGS_VALUES else "lbfgs"
    standardise = standardise or Standardiser.of(values)
    x = standardise(values)
    tried = sorted(set(penalties), reverse=True)
    splits = held_out_splits(labels, seed) if len(tried) > 1 else []
    if not splits:
        tried = [FALLBACK_PENALTY if len(tried) > 1 else tried[0]]
    if solver == "sgd":
        fit = partial(fit_sgd, num_classes=num_classes, epochs=sgd_epochs, batch_size=sgd_batch_size, seed=seed)
        penalty = _choose_by_sgd(fit, x, labels, tried, splits)
        weight = fit(x, labels, penalties=[penalty])[0]
        return LinearProbe(standardise, weight[:-1], weight[-1], penalty, solver)
    basis = None
    if len(x) < x.shape[1]:  # the solution lies in the span of the rows: solve there, exactly, and rotate back
        basis = torch.linalg.qr(x.T).Q
        x = x @ basis
    # SciPy's BLAS works on a few vectors only; its idle threads would keep torch's from the cores (20 times slower)
    with threadpool_limits(1, user_api="blas"), _threads_of_torch(1 if x.numel() < ONE_THREAD_VALUES else None):
        penalty, start = _choose_by_lbfgs(x, labels, num_classes, tried, splits)
        weight = fit_logistic(x, labels, num_classes=num_classes, penalty=penalty, start=start)
    matrix = weight[:-1] if basis is None else basis @ weight[:-1]
    return LinearProbe(standardise, matrix, weight[-1], penalty, solver)


@contextmanager
def _threads_of_torch(number: int | None) -> Iterator[None]:
    """None: as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    penalty: float,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 300,
) -> Tensor:
    """Minimise the loss of this module by L-BFGS.

    Args:
        x: features (n, D), used as they are. start: weights to begin with, (D + 1, N).
        tolerance: on the largest entry of the gradient.

    Returns:
        (D + 1, num_classes) in x's dtype; the last row is the bias, which is not penalised.
    """
    from scipy.optimize import minimize

    shape = (x.shape[1] + 1, num_classes)
    rows = torch.arange(len(x), device=x.device)
    gradient = torch.empty(shape, dtype=x.dtype, device=x.device)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat).to(x).view(shape)
        log_p = torch.addmm(weight[-1], x, weight[:-1]).log_softmax(dim=1)
        loss = -log_p[rows, labels].double().mean() + 0.5 * penalty * weight[:-1].double().square().sum()
        residual = log_p.exp_()
        residual[rows, labels] -= 1
        residual /= len(x)
        torch.addmm(weight[:-1], x.T, residual, beta=penalty, out=gradient[:-1])
        torch.sum(residual, dim=0, out=gradient[-1])
        return float(loss), gradient.double().cpu().numpy().ravel()

    begin = np.zeros(shape).ravel() if start is None else start.double().cpu().numpy().ravel()
    precise = 1e-12 if x.dtype == torch.float64 else 1e-8  # below this relative gain float32 only sees noise
    options = {"maxiter": max_iterations, "gtol": tolerance, "ftol": precise}
    solution = minimize(loss_and_gradient, begin, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(solution.x).to(x).view(shape)


def fit_sgd(
    x: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    penalties: Sequence[float],
    epochs: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Minimise the same loss by Nesterov SGD with a cosine; all penalties at once, on the same batches.

    The learning rate is the inverse of a bound on the loss' curvature: half the largest eigenvalue of the second
    moments of the features (the constant feature of the bias included), plus the penalty.

    Returns:
        (number of penalties, D + 1, num_classes); the last row is the bias.
    """
    generator = torch.Generator().manual_seed(seed)
    order = lambda: torch.randperm(len(x), generator=generator).to(x.device)  # noqa: E731
    penalty = torch.tensor(penalties, dtype=x.dtype, device=x.device)[:, None, None]
    sample = x[order()[:4096]]
    lr = 1 / (0.5 * torch.linalg.matrix_norm(sample, 2) ** 2 / len(sample) + 0.5 + penalty)
    weight = torch.zeros(len(penalties), x.shape[1] + 1, num_classes, dtype=x.dtype, device=x.device)
    velocity = torch.zeros_like(weight)
    step, steps = 0, epochs * -(-len(x) // batch_size)
    for _ in range(epochs):
        for rows in order().split(batch_size):
            ahead = weight + 0.9 * velocity
            inputs = x[rows]
            residual = (inputs @ ahead[:, :-1] + ahead[:, -1:]).softmax(dim=2) - F.one_hot(labels[rows], num_classes)
            of_bias = residual.mean(dim=1, keepdim=True)
            gradient = torch.cat([inputs.T @ residual / len(rows) + penalty * ahead[:, :-1], of_bias], dim=1)
            velocity = 0.9 * velocity - lr * 0.5 * (1 + math.cos(math.pi * step / steps)) * gradient
            weight = weight + velocity
            step += 1
    return weight


def held_out_splits(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(fitted, held out) rows: one split, or five for few images; none when a class has a single image."""
    on_cpu = labels.cpu().numpy()
    if np.unique(on_cpu, return_counts=True)[1].min() < 2:
        return []
    number = 1 if len(labels) >= MANY_SPLITS_BELOW else 5
    parts = [stratified_split(on_cpu, HELD_OUT, seed + 1000 * i) for i in range(number)]
    return [(torch.as_tensor(a, device=labels.device), torch.as_tensor(b, device=labels.device)) for a, b in parts]


def _choose_by_lbfgs(
    x: Tensor, labels: Tensor, num_classes: int, penalties: list[float], splits: list[tuple[Tensor, Tensor]]
) -> tuple[float, Tensor | None]:
    """The penalty with the lowest held-out cross-entropy, and weights near its solution to start from."""
    if len(penalties) == 1:
        return penalties[0], None
    parts = [(x[fitted], labels[fitted], x[held_out], labels[held_out]) for fitted, held_out in splits]
    weights: list[Tensor | None] = [None] * len(parts)
    best, best_loss, best_start = penalties[0], math.inf, None
    for penalty in penalties:
        loss = 0.0
        for i, (fitted, fitted_labels, held_out, held_out_labels) in enumerate(parts):
            weight = fit_logistic(
                fitted,
                fitted_labels,
                num_classes=num_classes,
                penalty=penalty,
                start=weights[i],
                tolerance=1e-3,
                max_iterations=100,
            )
            weights[i] = weight
            loss += _cross_entropy(held_out, held_out_labels, weight) / len(parts)
        if loss >= best_loss:  # weaker ones overfit more, and are the slow ones
            break
        best, best_loss, best_start = penalty, loss, weights[0]
    return best, best_start


def _choose_by_sgd(
    fit: Callable[..., Tensor], x: Tensor, labels: Tensor, penalties: list[float], splits: list[tuple[Tensor, Tensor]]
) -> float:
    if len(penalties) == 1:
        return penalties[0]
    fitted, held_out = splits[0]
    weights = fit(x[fitted], labels[fitted], penalties=penalties)
    return penalties[int(np.argmin([_cross_entropy(x[held_out], labels[held_out], weight) for weight in weights]))]


def _cross_entropy(x: Tensor, labels: Tensor, weight: Tensor) -> float:
    return float(F.cross_entropy(x @ weight[:-1] + weight[-1], labels))


@dataclass(frozen=True)
class Linear(Protocol):
    """solver: auto, lbfgs or sgd. penalties: candidates, see `linear_probe`. The sgd_ fields concern that solver."""

    solver: str = "auto"
    penalties: tuple[float, ...] = PENALTIES
    sgd_epochs: int = 50
    sgd_batch_size: int = 1024

    name = "linear"
    bare = "solver"

    def run(self, subject: Subject) -> list[Outcome]:
        probe = linear_probe(
            subject.train.values,
            subject.train_labels,
            num_classes=subject.task.num_classes,
            penalties=self.penalties,
            solver=self.solver,
            seed=subject.task.seed,
            sgd_epochs=self.sgd_epochs,
            sgd_batch_size=self.sgd_batch_size,
        )
        settings = {"solver": probe.solver, "penalty": probe.penalty}
        return [Outcome([probe.scores(subject.test.values)], settings)]
