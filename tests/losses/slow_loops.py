"""The papers' sums, term by term in plain loops. Nothing here is fast, and nothing is shared with the library."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def softmax(values: list[Tensor]) -> list[Tensor]:
    total = sum(v.exp() for v in values)
    return [v.exp() / total for v in values]


def nt_xent(z1: Tensor, z2: Tensor, t: float) -> Tensor:
    views = [*z1, *z2]
    b = len(z1)
    loss = torch.zeros((), dtype=z1.dtype)
    for i in range(2 * b):
        j = i + b if i < b else i - b
        denominator = sum((cosine(views[i], views[k]) / t).exp() for k in range(2 * b) if k != i)
        loss = loss - ((cosine(views[i], views[j]) / t).exp() / denominator).log()
    return loss / (2 * b)


def info_nce(q: Tensor, k: Tensor, t: float, negatives: Tensor | None = None) -> Tensor:
    loss = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        others = [k[j] for j in range(len(k)) if j != i] if negatives is None else list(negatives)
        positive = (cosine(q[i], k[i]) / t).exp()
        loss = loss - (positive / (positive + sum((cosine(q[i], n) / t).exp() for n in others))).log()
    return loss / len(q)


def byol_regression(p: Tensor, z: Tensor) -> Tensor:
    unit = lambda x: x / (x * x).sum().sqrt()  # noqa: E731
    return sum(((unit(p[i]) - unit(z[i])) ** 2).sum() for i in range(len(p))) / len(p)


def cross_entropy(student: Tensor, teacher: Tensor, ts: float, tt: float) -> Tensor:
    loss = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student, teacher):
        for p, q in zip(softmax([v / tt for v in t]), softmax([v / ts for v in s])):
            loss = loss - p * q.log()
    return loss / len(student)


def kl(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    loss = torch.zeros((), dtype=student.dtype)
    for s, g in zip(student, teacher):
        for p, q in zip(softmax([v / t for v in g]), softmax([v / t for v in s])):
            loss = loss + p * (p / q).log()
    return t * t * loss / len(student)


def dino(students: list[Tensor], teachers: list[Tensor], centre: Tensor, ts: float, tt: float) -> Tensor:
    loss, terms = torch.zeros((), dtype=centre.dtype), 0
    for g in range(len(teachers)):
        for v in range(len(students)):
            if v != g:
                loss, terms = loss + cross_entropy(students[v], teachers[g] - centre, ts, tt), terms + 1
    return loss / terms


def similarity_distillation(s: Tensor, t: Tensor, anchors: Tensor, ts: float, tt: float, include_self: bool) -> Tensor:
    loss = torch.zeros((), dtype=s.dtype)
    for i in range(len(s)):
        keys = ([t[i]] if include_self else []) + list(anchors)
        p = softmax([cosine(t[i], key) / tt for key in keys])
        q = softmax([cosine(s[i], key) / ts for key in keys])
        for a in range(len(keys)):
            loss = loss - p[a] * q[a].log()
    return loss / len(s)


def instance_softmax(v: Tensor, bank: Tensor, positions: list[int], t: float) -> Tensor:
    loss = torch.zeros((), dtype=v.dtype)
    for i in range(len(v)):
        loss = loss - softmax([cosine(v[i], row) / t for row in bank])[positions[i]].log()
    return loss / len(v)


def inva_spread(z1: Tensor, z2: Tensor, t: float) -> Tensor:
    """The second factor of every similarity is a constant."""
    views, constant = [*z1, *z2], [*z1.detach(), *z2.detach()]
    b = len(z1)
    loss = torch.zeros((), dtype=z1.dtype)
    for i in range(2 * b):
        partner = i + b if i < b else i - b
        others = [j for j in range(2 * b) if j != i]
        for j, p in zip(others, softmax([cosine(views[i], constant[j]) / t for j in others])):
            loss = loss - (p if j == partner else 1 - p).log()
    return loss / (2 * b)


def nce(v: Tensor, own: Tensor, drawn: Tensor, t: float, n: int, z: float) -> Tensor:
    loss = torch.zeros((), dtype=v.dtype)
    noise = len(drawn) / n
    probability = lambda a, b: (cosine(a, b) / t).exp() / z  # noqa: E731
    for i in range(len(v)):
        p = probability(v[i], own[i])
        loss = loss - (p / (p + noise)).log()
        for row in drawn:
            loss = loss - (noise / (probability(v[i], row) + noise)).log()
    return loss / len(v)
