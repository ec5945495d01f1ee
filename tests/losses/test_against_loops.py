"""Value and gradient of every loss equal the paper's sum written as a loop, in float64, on small uneven sizes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import attar.losses as losses

_spec = importlib.util.spec_from_file_location("slow_loops", Path(__file__).with_name("slow_loops.py"))
slow = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(slow)

B, E, Q = 5, 7, 11


def rows(n: int = B, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TWO = dict(a=rows(seed=1), b=rows(seed=2, scale=3.0))
POSITIONS = [3, 0, 10, 3, 7]  # of B rows among Q
CENTRE = rows(1, seed=9)
# Three images of four patches: two masked, none, one.
MASK = torch.tensor([[True, False, True, False], [False] * 4, [False, False, False, True]])
PATCHES = dict(p=rows(12, seed=1, scale=2.0).view(3, 4, E)), dict(t=rows(12, seed=2).view(3, 4, E))
MASKED = {
    "masked_mse": (losses.masked_mse, lambda e: e * e),
    "masked_l1": (losses.masked_l1, lambda e: e.abs()),
    "masked_smooth_l1": (losses.masked_smooth_l1, lambda e: e * e / 2 if e.abs() < 1 else e.abs() - 0.5),
}
MEANT = [3, 0, 10, 3, 7]
LABELS = torch.tensor([[0, 3, 10, 3, 7], [9, 9, 1, 0, 5]])
GENERATOR = torch.Generator().manual_seed(4)
BINS = torch.stack([torch.randperm(Q, generator=GENERATOR)[:3] for _ in range(12)]).view(2, 2, 3, 3).movedim(-1, 1)
SHARES = torch.rand(2, 3, 2, 3, dtype=torch.float64, generator=GENERATOR).softmax(dim=1)
PLACES = torch.rand(2, 2, 3, dtype=torch.float64, generator=GENERATOR)
WEIGHTS = torch.tensor([0.0, 1.0, 10.0])[torch.randint(3, (2, 1, 3, E), generator=GENERATOR)]
# name -> (inputs that get a gradient, inputs that must not, ours, the loop)
ONE = torch.ones((), dtype=torch.float64)
EXCLUDED = torch.rand(B, Q, generator=torch.Generator().manual_seed(5)) < 0.4
MAPS = (
    dict(s=rows(12, seed=1).view(3, 4, E)[:, :, :6].reshape(3, 4, 2, 3)),
    dict(t=rows(15, seed=2).view(3, 5, E)[:, :, :6].reshape(3, 5, 2, 3)),
)
ROW_WEIGHTS = [0.0, 1.5, 2.0, 0.5, 1.0]
CASES: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], Callable, Callable]] = {
    "triplet": (
        {**TWO, "c": rows(seed=3)},
        {},
        lambda a, b, c: losses.triplet(a, b, c, margin=40.0),
        lambda a, b, c: slow.triplet(a, b, c, 40.0),
    ),
    "contrastive_pair": (
        TWO,
        {},
        lambda a, b: losses.contrastive_pair(a, b, torch.tensor([True, False, True, False, False]), margin=8.0),
        lambda a, b: slow.contrastive_pair(a, b, [True, False, True, False, False], 8.0),
    ),
    "n_pair": (
        TWO,
        {},
        lambda a, b: losses.n_pair(a, b, norm_weight=0.1),
        lambda a, b: slow.n_pair(a, b, 0.1),
    ),
    "center": (
        {"a": TWO["a"], "c": rows(3, seed=5)},
        {},
        lambda a, c: losses.center(a, torch.tensor([0, 2, 0, 1, 2]), c),
        lambda a, c: slow.center(a, [0, 2, 0, 1, 2], c),
    ),
    "relational_distance": (
        dict(s=rows(seed=1)),
        dict(t=rows(seed=2, scale=3.0)),
        lambda s, t: losses.relational_distance(s, t),
        slow.relational_distance,
    ),
    "relational_angle": (
        dict(s=rows(seed=1)),
        dict(t=rows(seed=2, scale=3.0)),
        lambda s, t: losses.relational_angle(s, t),
        slow.relational_angle,
    ),
    "attention_transfer": (*MAPS, lambda s, t: losses.attention_transfer(s, t), slow.attention_transfer),
    "kl_divergence with weights": (
        dict(s=rows(seed=1)),
        dict(t=rows(seed=2, scale=3.0)),
        lambda s, t: losses.kl_divergence(s, t, temperature=1.7, weights=torch.tensor(ROW_WEIGHTS)),
        lambda s, t: slow.weighted_kl(s, t, ROW_WEIGHTS, 1.7),
    ),
    "nce without rows of the same class": (
        dict(v=rows(seed=1)),
        dict(m=rows(seed=2), negatives=rows(Q, seed=3)),
        lambda v, m, negatives: losses.nce(
            v,
            m,
            negatives,
            temperature=0.5,
            num_images=40,
            partition=torch.tensor(9.0, dtype=torch.float64),
            excluded=EXCLUDED,
        ),
        lambda v, m, negatives: slow.nce_excluding(v, m, negatives, 0.5, 40, 9.0, EXCLUDED),
    ),
    "nt_xent": (
        TWO,
        {},
        lambda a, b: losses.nt_xent(a, b, temperature=0.3),
        lambda a, b: slow.nt_xent(a, b, 0.3),
    ),
    "nt_xent with a memory": (
        TWO,
        {"m": rows(Q, seed=3)},
        lambda a, b, m: losses.nt_xent(a, b, temperature=0.3, memory=m, chunk_size=4),
        lambda a, b, m: slow.nt_xent(a, b, 0.3, m),
    ),
    "nt_xent in blocks of 3": (
        TWO,
        {},
        lambda a, b: losses.nt_xent(a, b, temperature=0.3, chunk_size=3),
        lambda a, b: slow.nt_xent(a, b, 0.3),
    ),
    "mean_discrepancy": (TWO, {}, losses.mean_discrepancy, slow.mean_discrepancy),
    "feature_hint": (
        {"s": rows(seed=1)},
        {"t": rows(seed=2)},
        lambda s, t: losses.feature_hint(s, t),
        lambda s, t: slow.feature_hint(s, t),
    ),
    "confidence_weighted_cross_entropy": (
        {"s": rows(seed=1)},
        {"t": rows(seed=2)},
        lambda s, t: losses.confidence_weighted_cross_entropy(s, torch.tensor([3, 0, 6, 3, 1]), t),
        lambda s, t: slow.confidence_weighted_cross_entropy(s, [3, 0, 6, 3, 1], t),
    ),
    "peer_similarity": (
        {"s1": rows(seed=1), "s2": rows(seed=2, scale=3.0)},
        {"p1": rows(seed=3)[:, :4], "p2": rows(seed=4)[:, :4]},
        lambda s1, s2, p1, p2: losses.peer_similarity(s1, s2, p1, p2, temperature=0.3),
        lambda s1, s2, p1, p2: slow.peer_similarity(s1, s2, p1, p2, 0.3),
    ),
    "info_nce": (
        TWO,
        {},
        lambda a, b: losses.info_nce(a, b, temperature=0.3),
        lambda a, b: slow.info_nce(a, b, 0.3),
    ),
    "info_nce in blocks of 2": (
        TWO,
        {},
        lambda a, b: losses.info_nce(a, b, temperature=0.3, chunk_size=2),
        lambda a, b: slow.info_nce(a, b, 0.3),
    ),
    "colour_cross_entropy": (
        {"x": torch.randn(2, Q, 2, 3, dtype=torch.float64, generator=GENERATOR)},
        {},
        lambda x: losses.colour_cross_entropy(
            x, BINS, *(v.to(torch.promote_types(x.dtype, torch.float)) for v in (SHARES, PLACES))
        ),
        lambda x: slow.colour_cross_entropy(x, BINS, SHARES, PLACES),
    ),
    "weighted_mse": (
        {"p": rows(12, seed=1).view(2, 2, 3, E)},
        {"t": rows(12, seed=2).view(2, 2, 3, E)},
        lambda p, t: losses.weighted_mse(p, t, WEIGHTS),
        lambda p, t: slow.weighted_mse(p, t, WEIGHTS),
    ),
    "info_nce with a queue": (
        TWO,
        {"n": rows(Q, seed=3)},
        lambda a, b, n: losses.info_nce(a, b, temperature=0.3, negatives=n),
        lambda a, b, n: slow.info_nce(a, b, 0.3, n),
    ),
    **{
        f"bilinear_nce, chunk_size={size}": (
            {"a": rows(seed=1), "z": rows(Q, seed=2)},
            {},
            lambda a, z, size=size: losses.bilinear_nce(a, z, torch.tensor(MEANT), chunk_size=size),
            lambda a, z: slow.bilinear_nce(a, z, MEANT),
        )
        for size in (None, 2)
    },
    "info_nce with a queue, in blocks of 2": (
        TWO,
        {"n": rows(Q, seed=3)},
        lambda a, b, n: losses.info_nce(a, b, temperature=0.3, negatives=n, chunk_size=2),
        lambda a, b, n: slow.info_nce(a, b, 0.3, n),
    ),
    "instance_softmax": (
        {"a": TWO["a"]},
        {"n": rows(Q, seed=3)},
        lambda a, n: losses.instance_softmax(a, n, torch.tensor(POSITIONS), temperature=0.3),
        lambda a, n: slow.instance_softmax(a, n, POSITIONS, 0.3),
    ),
    "inva_spread": (
        TWO,
        {},
        lambda a, b: losses.inva_spread(a, b, temperature=0.3),
        lambda a, b: slow.inva_spread(a, b, 0.3),
    ),
    "nce": (
        {"a": TWO["a"]},
        {"b": TWO["b"], "n": rows(Q, seed=3)},
        lambda a, b, n: losses.nce(
            a, b, n, temperature=0.3, num_images=40, partition=torch.tensor(90.0, dtype=torch.float64)
        ),
        lambda a, b, n: slow.nce(a, b, n, 0.3, 40, 90.0),
    ),
    "byol_regression": (
        {"a": TWO["a"]},
        {"b": TWO["b"]},
        lambda a, b: losses.byol_regression(a, b),
        lambda a, b: slow.byol_regression(a, b),
    ),
    "negative_cosine": (
        {"a": TWO["a"]},
        {"b": TWO["b"]},
        lambda a, b: losses.negative_cosine(a, b),
        lambda a, b: slow.byol_regression(a, b) / 2 - 1,
    ),
    "soft_cross_entropy": (
        {"a": TWO["a"]},
        {"b": TWO["b"]},
        lambda a, b: losses.soft_cross_entropy(a, b, student_temperature=0.7, teacher_temperature=1.9),
        lambda a, b: slow.cross_entropy(a, b, 0.7, 1.9),
    ),
    "kl_divergence": (
        {"a": TWO["a"]},
        {"b": TWO["b"]},
        lambda a, b: losses.kl_divergence(a, b, temperature=2.5),
        lambda a, b: slow.kl(a, b, 2.5),
    ),
    "dino": (
        {"s1": rows(seed=4), "s2": rows(seed=5), "s3": rows(seed=6)},
        {"t1": rows(seed=7), "t2": rows(seed=8), "c": CENTRE},
        lambda s1, s2, s3, t1, t2, c: losses.dino(
            [s1, s2, s3], [t1, t2], centre=c, student_temperature=0.4, teacher_temperature=0.2
        ),
        lambda s1, s2, s3, t1, t2, c: slow.dino([s1, s2, s3], [t1, t2], c, 0.4, 0.2),
    ),
    "swapped_prediction": (
        {"s1": rows(seed=4), "s2": rows(seed=5), "s3": rows(seed=6)},
        {"q1": rows(seed=7).softmax(1), "q2": rows(seed=8).softmax(1)},
        lambda s1, s2, s3, q1, q2: losses.swapped_prediction([s1, s2, s3], [q1, q2], temperature=0.4),
        lambda s1, s2, s3, q1, q2: slow.swapped_prediction([s1, s2, s3], [q1, q2], 0.4),
    ),
    "prototype_cross_entropy": (
        {"a": TWO["a"]},
        {"c": rows(2 * Q, seed=3)},
        lambda a, c: losses.prototype_cross_entropy(a, c.view(2, Q, E), LABELS, temperature=0.3),
        lambda a, c: slow.prototype_cross_entropy(a, c.view(2, Q, E), LABELS, 0.3),
    ),
    **{
        name: (
            *PATCHES,
            lambda p, t, ours=ours: ours(p, t, MASK),
            lambda p, t, error=error: slow.masked_error(p, t, MASK, error),
        )
        for name, (ours, error) in MASKED.items()
    },
    "masked_distillation": (
        {"a": rows(3, seed=1)},
        {"b": rows(3, seed=2), "c": CENTRE},
        lambda a, b, c: losses.masked_distillation(
            a, b, MASK, centre=c, student_temperature=0.4, teacher_temperature=0.2
        ),
        lambda a, b, c: slow.masked_distillation(a, b, MASK, c, 0.4, 0.2),
    ),
    "koleo": ({"a": TWO["a"]}, {}, lambda a: losses.koleo(a), lambda a: slow.koleo(a)),
    "barlow_twins": (
        TWO,
        {},
        lambda a, b: losses.barlow_twins(a, b, redundancy_weight=0.2),
        lambda a, b: slow.barlow_twins(a, b, 0.2),
    ),
    "vicreg": (  # some dimensions of a vary by less than 1, those of b by more
        TWO,
        {},
        lambda a, b: losses.vicreg(a, b, similarity_weight=2.0, variance_weight=3.0, covariance_weight=0.5),
        lambda a, b: slow.vicreg(a, b, 2.0, 3.0, 0.5),
    ),
    "sigreg": (
        {"a": TWO["a"]},
        {"n": rows(3, seed=3)},
        lambda a, n: losses.sigreg(a, n, max_frequency=2.0, num_knots=5),
        lambda a, n: slow.sigreg(a, n, 2.0, 5),
    ),
    **{
        f"similarity_distillation, include_self={own}": (
            {"a": TWO["a"]},
            {"b": TWO["b"], "n": rows(Q, seed=3)},
            lambda a, b, n, own=own: losses.similarity_distillation(
                a, b, n, student_temperature=0.2, teacher_temperature=0.1, include_self=own
            ),
            lambda a, b, n, own=own: slow.similarity_distillation(a, b, n, 0.2, 0.1, own),
        )
        for own in (True, False)
    },
    "similarity_distillation in two spaces": (
        {"a": TWO["a"]},
        {"b": TWO["b"], "m": rows(Q, seed=3), "n": rows(Q, seed=4)},
        lambda a, b, m, n: losses.similarity_distillation(
            a,
            b[:, :4],
            n[:, :4],
            student_temperature=0.2,
            teacher_temperature=0.1,
            include_self=False,
            student_anchors=m,
        ),
        lambda a, b, m, n: slow.similarity_distillation_in_two_spaces(a, b[:, :4], m, n[:, :4], 0.2, 0.1),
    ),
    "token_similarity": (
        {"a": TWO["a"]},
        {"b": TWO["b"]},
        lambda a, b: losses.token_similarity(a[None], b[None, :, :4], temperature=0.3),
        lambda a, b: slow.token_similarity(a[None], b[None, :, :4], 0.3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_loop(name):
    trained, fixed, ours, loop = CASES[name]
    leaf = {k: v.clone().requires_grad_() for k, v in (trained | fixed).items()}
    ours_value = ours(**leaf)
    ours_value.backward()
    reference = {k: v.clone().requires_grad_(k in trained) for k, v in (trained | fixed).items()}
    loop_value = loop(**reference)
    loop_value.backward()
    torch.testing.assert_close(ours_value, loop_value, rtol=1e-10, atol=1e-12)
    for k in trained:
        assert leaf[k].grad.abs().max() > 1e-4, "a gradient of zero would prove nothing"
        torch.testing.assert_close(leaf[k].grad, reference[k].grad, rtol=1e-8, atol=1e-10)
    for k in fixed:
        assert leaf[k].grad is None or not leaf[k].grad.any(), f"{k} must not get a gradient"


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name):
    """bf16 inputs lose their own last bits (2^-8 relative), and nothing more: also under autocast."""
    trained, fixed, ours, _ = CASES[name]
    inputs = {k: v.bfloat16() for k, v in (trained | fixed).items()}
    exact = ours(**{k: v.double() for k, v in inputs.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ours(**inputs)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in CASES
        if any(k in n for k in ("nt_xent", "info_nce", "cosine,", ", cosine", "similarity", "prototype", "koleo"))
    ],
)
def test_a_cosine_loss_ignores_scale(name):
    """dL/dz is orthogonal to z, and scaling rows changes nothing."""
    trained, fixed, ours, _ = CASES[name]
    leaf = {k: v.clone().requires_grad_(k in trained) for k, v in (trained | fixed).items()}
    value = ours(**leaf)
    value.backward()
    for k in trained:
        torch.testing.assert_close((leaf[k].grad * leaf[k]).sum(1), torch.zeros(B, dtype=torch.float64))
    scaled = {k: v * torch.arange(1, len(v) + 1)[:, None] for k, v in (trained | fixed).items()}
    torch.testing.assert_close(ours(**scaled), value.detach())
