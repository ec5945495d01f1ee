"""The papers' sums, term by term in plain loops. Nothing here is fast, and nothing is shared with the library."""

from __future__ import annotations

import math
from itertools import pairwise

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


def mean_and_variance(column: list[Tensor], divisor: int) -> tuple[Tensor, Tensor]:
    mean = sum(column) / len(column)
    return mean, sum((v - mean) ** 2 for v in column) / divisor


def barlow_twins(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    b, e = z1.shape

    def standardised(z: Tensor, d: int) -> list[Tensor]:
        mean, variance = mean_and_variance([z[n, d] for n in range(b)], b)
        return [(z[n, d] - mean) / (variance + 1e-5) ** 0.5 for n in range(b)]

    loss = torch.zeros((), dtype=z1.dtype)
    for i in range(e):
        for j in range(e):
            c = sum(x * y for x, y in zip(standardised(z1, i), standardised(z2, j))) / b
            loss = loss + ((c - 1) ** 2 if i == j else weight * c**2)
    return loss


def vicreg(z1: Tensor, z2: Tensor, ws: float, wv: float, wc: float) -> Tensor:
    b, e = z1.shape
    loss = ws * sum((z1[n, d] - z2[n, d]) ** 2 for n in range(b) for d in range(e)) / (b * e)
    for z in (z1, z2):
        means = [sum(z[n, d] for n in range(b)) / b for d in range(e)]
        for i in range(e):
            variance = mean_and_variance([z[n, i] for n in range(b)], b - 1)[1]
            spread = (variance + 1e-4) ** 0.5
            if spread < 1:
                loss = loss + wv * (1 - spread) / e / 2
            for j in range(e):
                if j != i:
                    c = sum((z[n, i] - means[i]) * (z[n, j] - means[j]) for n in range(b)) / (b - 1)
                    loss = loss + wc * c**2 / e
    return loss


def sigreg(z: Tensor, directions: Tensor, largest: float, knots: int) -> Tensor:
    """The integral from -largest to largest, by the trapezoid rule with complex numbers."""
    step = largest / (knots - 1)
    ts = [step * k for k in range(-(knots - 1), knots)]
    loss = torch.zeros((), dtype=z.dtype)
    for a in directions:
        heights = []
        for t in ts:
            phi = sum(torch.exp(1j * t * (a * row).sum() / (a * a).sum().sqrt()) for row in z) / len(z)
            gaussian = math.exp(-t * t / 2)
            heights.append((phi - gaussian).abs() ** 2 * gaussian)
        integral = sum((left + right) / 2 * step for left, right in pairwise(heights))
        loss = loss + len(z) * integral
    return loss / len(directions)
