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


def nt_xent(z1: Tensor, z2: Tensor, t: float, memory: Tensor | None = None) -> Tensor:
    views = [*z1, *z2]
    more = [] if memory is None else list(memory)
    b = len(z1)
    loss = torch.zeros((), dtype=z1.dtype)
    for i in range(2 * b):
        j = i + b if i < b else i - b
        others = [views[k] for k in range(2 * b) if k != i] + more
        denominator = sum((cosine(views[i], other) / t).exp() for other in others)
        loss = loss - ((cosine(views[i], views[j]) / t).exp() / denominator).log()
    return loss / (2 * b)


def info_nce(q: Tensor, k: Tensor, t: float, negatives: Tensor | None = None) -> Tensor:
    loss = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        others = [k[j] for j in range(len(k)) if j != i] if negatives is None else list(negatives)
        positive = (cosine(q[i], k[i]) / t).exp()
        loss = loss - (positive / (positive + sum((cosine(q[i], n) / t).exp() for n in others))).log()
    return loss / len(q)


def bilinear_nce(p: Tensor, z: Tensor, positive: list[int]) -> Tensor:
    loss = torch.zeros((), dtype=p.dtype)
    for i, y in enumerate(positive):
        loss = loss - ((p[i] * z[y]).sum().exp() / sum((p[i] * other).sum().exp() for other in z)).log()
    return loss / len(p)


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


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    q = [[(s / epsilon).exp() for s in row] for row in scores]
    total = sum(v for row in q for v in row)
    q = [[v / total for v in row] for row in q]
    b, k = scores.shape
    for _ in range(iterations):
        columns = [sum(row[j] for row in q) for j in range(k)]
        q = [[v / columns[j] / k for j, v in enumerate(row)] for row in q]
        q = [[v / sum(row) / b for v in row] for row in q]
    return torch.stack([torch.stack([v * b for v in row]) for row in q])


def swapped_prediction(scores: list[Tensor], assigned: list[Tensor], t: float) -> Tensor:
    loss = torch.zeros((), dtype=scores[0].dtype)
    for a in range(len(assigned)):
        others = [v for v in range(len(scores)) if v != a]
        for v in others:
            for q, s in zip(assigned[a], scores[v]):
                for target, p in zip(q, softmax([x / t for x in s])):
                    loss = loss - target * p.log() / (len(assigned) * len(others) * len(scores[v]))
    return loss


def prototype_cross_entropy(z: Tensor, prototypes: Tensor, labels: Tensor, t: float) -> Tensor:
    loss = torch.zeros((), dtype=z.dtype)
    for head, y in zip(prototypes, labels):
        for i in range(len(z)):
            loss = loss - softmax([cosine(z[i], c) / t for c in head])[y[i]].log()
    return loss / (len(prototypes) * len(z))


def similarity_distillation(s: Tensor, t: Tensor, anchors: Tensor, ts: float, tt: float, include_self: bool) -> Tensor:
    loss = torch.zeros((), dtype=s.dtype)
    for i in range(len(s)):
        keys = ([t[i]] if include_self else []) + list(anchors)
        p = softmax([cosine(t[i], key) / tt for key in keys])
        q = softmax([cosine(s[i], key) / ts for key in keys])
        for a in range(len(keys)):
            loss = loss - p[a] * q[a].log()
    return loss / len(s)


def similarity_distillation_in_two_spaces(
    s: Tensor, t: Tensor, student_anchors: Tensor, anchors: Tensor, ts: float, tt: float
) -> Tensor:
    loss = torch.zeros((), dtype=s.dtype)
    for i in range(len(s)):
        p = softmax([cosine(t[i], a) / tt for a in anchors])
        q = softmax([cosine(s[i], a) / ts for a in student_anchors])
        for a in range(len(anchors)):
            loss = loss - p[a] * q[a].log()
    return loss / len(s)


def token_similarity(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """s, t: (B, N, D)."""
    loss = torch.zeros((), dtype=s.dtype)
    for image in range(len(s)):
        for n in range(s.shape[1]):
            p = softmax([cosine(t[image, n], other) / temperature for other in t[image]])
            q = softmax([cosine(s[image, n], other) / temperature for other in s[image]])
            for m in range(s.shape[1]):
                loss = loss + p[m] * (p[m] / q[m]).log()
    return loss / (len(s) * s.shape[1])


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor, error) -> Tensor:
    """Mean over images of the mean over masked patches of the mean over values."""
    loss = torch.zeros((), dtype=prediction.dtype)
    for b in range(len(mask)):
        hidden = [n for n in range(mask.shape[1]) if mask[b, n]]
        for n in hidden:
            for d in range(prediction.shape[2]):
                e = prediction[b, n, d] - target[b, n, d]
                loss = loss + error(e) / (len(hidden) * prediction.shape[2] * len(mask))
    return loss


def masked_distillation(s: Tensor, t: Tensor, mask: Tensor, centre: Tensor, ts: float, tt: float) -> Tensor:
    loss, row = torch.zeros((), dtype=s.dtype), 0
    for b in range(len(mask)):
        count = int(mask[b].sum())
        for _ in range(count):
            one = slice(row, row + 1)
            loss, row = loss + cross_entropy(s[one], t[one] - centre, ts, tt) / (count * len(mask)), row + 1
    return loss


def koleo(x: Tensor) -> Tensor:
    unit = [row / (row * row).sum().sqrt() for row in x]
    loss = torch.zeros((), dtype=x.dtype)
    for i in range(len(x)):
        distances = [((unit[i] - unit[j] + 1e-8) ** 2).sum().sqrt() + 1e-8 for j in range(len(x)) if j != i]
        loss = loss - min(distances).log() / len(x)
    return loss


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


def mean_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    for d in range(a.shape[1]):
        means = [sum(row[d] for row in rows) / len(rows) for rows in (a, b)]
        total = total + (means[0] - means[1]) ** 2
    return total


def feature_hint(s: Tensor, t: Tensor) -> Tensor:
    return sum((s[i, d] - t[i, d]) ** 2 for i in range(len(s)) for d in range(s.shape[1])) / len(s)


def confidence_weighted_cross_entropy(s: Tensor, labels: list[int], t: Tensor) -> Tensor:
    weights = [max(softmax(list(row)), key=float) for row in t]
    terms = [-w * softmax(list(row))[y].log() for w, row, y in zip(weights, s, labels)]
    return sum(terms) / sum(weights)


def peer_similarity(s1: Tensor, s2: Tensor, p1: Tensor, p2: Tensor, t: float) -> Tensor:
    loss = torch.zeros((), dtype=s1.dtype)
    for i in range(len(s1)):
        ours = softmax([cosine(s1[i], s2[j]) / t for j in range(len(s2))])
        theirs = softmax([cosine(p1[i], p2[j]) / t for j in range(len(p2))])
        loss = loss + sum(q * (q.log() - p.log()) for p, q in zip(ours, theirs))
    return loss / len(s1)


def colour_cross_entropy(logits: Tensor, numbers: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    B, Q, h, w = logits.shape
    loss = torch.zeros((), dtype=logits.dtype)
    for b in range(B):
        for y in range(h):
            for x in range(w):
                p = softmax([logits[b, q, y, x] for q in range(Q)])
                for k in range(numbers.shape[1]):
                    loss = loss - weights[b, y, x] * shares[b, k, y, x] * p[numbers[b, k, y, x]].log()
    return loss / (B * h * w)


def weighted_mse(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    B, C, H, W = prediction.shape
    loss = torch.zeros((), dtype=prediction.dtype)
    for b in range(B):
        counted = [(y, x) for y in range(H) for x in range(W) if weights[b, 0, y, x] > 0]
        for y, x in counted:
            error = sum((prediction[b, c, y, x] - target[b, c, y, x]) ** 2 for c in range(C)) / C
            loss = loss + weights[b, 0, y, x] * error / (B * len(counted))
    return loss


def huber(x: Tensor) -> Tensor:
    return x * x / 2 if x.abs() < 1 else x.abs() - 0.5


def relational_distance(s: Tensor, t: Tensor) -> Tensor:
    def apart(x: Tensor, i: int, j: int) -> Tensor:
        return ((x[i] - x[j]) ** 2).sum().sqrt() if i != j else x[i].sum() * 0

    b = len(s)
    pairs = [(i, j) for i in range(b) for j in range(b) if i != j]
    mu_s, mu_t = (sum(apart(x, i, j) for i, j in pairs) / len(pairs) for x in (s, t))
    return sum(huber(apart(s, i, j) / mu_s - apart(t, i, j) / mu_t) for i in range(b) for j in range(b)) / b**2


def relational_angle(s: Tensor, t: Tensor) -> Tensor:
    b, total = len(s), torch.zeros((), dtype=s.dtype)
    for j in range(b):
        for i in range(b):
            for k in range(b):
                if i != j and k != j:
                    total = total + huber(cosine(s[i] - s[j], s[k] - s[j]) - cosine(t[i] - t[j], t[k] - t[j]))
    return total / b**3


def attention_transfer(s: Tensor, t: Tensor) -> Tensor:
    """Maps of the same size."""
    b, _, height, width = s.shape
    total = torch.zeros((), dtype=s.dtype)
    for i in range(b):
        attention = []
        for x in (s, t):
            q = [sum(a * a for a in x[i, :, r, c]) / x.shape[1] for r in range(height) for c in range(width)]
            attention.append([v / sum(w * w for w in q).sqrt() for v in q])
        total = total + sum((a - b) ** 2 for a, b in zip(*attention))
    return total / (b * height * width)


def weighted_kl(s: Tensor, t: Tensor, weights: list[float], temperature: float) -> Tensor:
    total = torch.zeros((), dtype=s.dtype)
    for i, weight in enumerate(weights):
        p, q = softmax(list(t[i] / temperature)), softmax(list(s[i] / temperature))
        total = total + weight * sum(a * (a / b).log() for a, b in zip(p, q))
    return temperature**2 * total / len(weights)


def nce_excluding(v: Tensor, m: Tensor, negatives: Tensor, t: float, n: int, z: float, excluded: Tensor) -> Tensor:
    total = torch.zeros((), dtype=v.dtype)
    noise = len(negatives) / n
    for i in range(len(v)):
        p = (cosine(v[i], m[i]) / t).exp() / z
        total = total - (p / (p + noise)).log()
        for k in range(len(negatives)):
            if not excluded[i, k]:
                p = (cosine(v[i], negatives[k]) / t).exp() / z
                total = total - (1 - p / (p + noise)).log()
    return total / len(v)


def triplet(a: Tensor, p: Tensor, n: Tensor, margin: float) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    for i in range(len(a)):
        term = ((a[i] - p[i]) ** 2).sum() - ((a[i] - n[i]) ** 2).sum() + margin
        total = total + (term if term > 0 else 0 * term)
    return total / len(a)


def contrastive_pair(a: Tensor, b: Tensor, same: list[bool], margin: float) -> Tensor:
    attract, repel = [], []
    for i in range(len(a)):
        distance = ((a[i] - b[i]) ** 2).sum().sqrt()
        if same[i]:
            attract.append(distance**2 / 2)
        else:
            repel.append((margin - distance) ** 2 / 2 if distance < margin else 0 * distance)
    return sum(attract) / len(attract) / 2 + sum(repel) / len(repel) / 2


def n_pair(a: Tensor, p: Tensor, norm_weight: float) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    for i in range(len(a)):
        others = sum((a[i] @ p[j] - a[i] @ p[i]).exp() for j in range(len(a)) if j != i)
        total = total + (1 + others).log() + norm_weight * (a[i] @ a[i] + p[i] @ p[i]) / 2
    return total / len(a)


def center(x: Tensor, labels: list[int], centres: Tensor) -> Tensor:
    return sum(((x[i] - centres[y]) ** 2).sum() / 2 for i, y in enumerate(labels)) / len(x)
