"""NT-Xent and InfoNCE: closed forms, symmetries, edges."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.losses import bilinear_nce, info_nce, nt_xent


@pytest.mark.parametrize("b, expected", [(4, 1.945910), (256, 6.236370)])
def test_equal_inputs_give_log_2b_minus_1(b, expected):
    ones = torch.ones(b, 3, dtype=torch.float64)
    assert nt_xent(ones, ones, temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("b, t, expected", [(4, 0.5, 0.594438), (256, 0.5, 4.248795), (256, 0.1, 0.022890)])
def test_orthonormal_views_reach_the_floor(b, t, expected):
    eye = torch.eye(b, dtype=torch.float64)
    assert nt_xent(eye, eye, temperature=t).item() == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(math.log1p((2 * b - 2) * math.exp(-1 / t)), abs=1e-6)


def test_nt_xent_is_symmetric_and_ignores_order_and_rotation():
    z1, z2 = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value = nt_xent(z1, z2, temperature=0.2)
    order = torch.tensor([3, 1, 4, 0, 2])
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    for same in ((z2, z1), (z1[order], z2[order]), (z1 @ rotation, z2 @ rotation)):
        torch.testing.assert_close(nt_xent(*same, temperature=0.2), value)


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 10, 1000])
def test_blocks_change_neither_value_nor_gradient(chunk_size):
    z = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (whole,) = torch.autograd.grad(nt_xent(*z, temperature=0.2, chunk_size=10), z)
    (blocks,) = torch.autograd.grad(nt_xent(*z, temperature=0.2, chunk_size=chunk_size), z)
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-14)


def test_a_large_batch_is_computed_in_blocks_unasked(monkeypatch):
    import attar.losses.contrastive as module

    seen = []
    original = torch.nn.functional.cross_entropy
    monkeypatch.setattr(module, "_MOST_LOGITS", 40)  # rows of 10 logits: blocks of 4
    record = lambda x, *a, **k: seen.append(tuple(x.shape)) or original(x, *a, **k)  # noqa: E731
    monkeypatch.setattr(module.F, "cross_entropy", record)
    nt_xent(torch.randn(5, 3), torch.randn(5, 3), temperature=0.5)
    assert seen == [(4, 10), (4, 10), (2, 10)]


@pytest.mark.parametrize("q, t, collapse, floor", [(65536, 0.07, 11.090370, 0.040135), (4096, 0.1, 8.318010, 0.170551)])
def test_queue_closed_forms(q, t, collapse, floor):
    one = torch.zeros(2, 3, dtype=torch.float64)
    one[:, 0] = 1
    other = torch.zeros(q, 3, dtype=torch.float64)
    other[:, 1] = 1
    assert info_nce(one, one, temperature=t, negatives=one[:1].expand(q, 3)).item() == pytest.approx(collapse, abs=1e-5)
    assert info_nce(one, one, temperature=t, negatives=other).item() == pytest.approx(floor, abs=1e-6)


def test_in_batch_info_nce_of_equal_rows_is_log_b():
    ones = torch.ones(6, 3)
    assert info_nce(ones, ones, temperature=0.1).item() == pytest.approx(math.log(6), abs=1e-6)


def test_with_a_queue_the_keys_of_the_batch_are_no_negatives():
    q, k, n = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    together = info_nce(q, k, temperature=0.2, negatives=n)
    apart = torch.stack([info_nce(q[i : i + 1], k[i : i + 1], temperature=0.2, negatives=n) for i in range(4)])
    torch.testing.assert_close(together, apart.mean())


def test_smallest_batches():
    z = torch.randn(2, 2, 3)
    assert torch.isfinite(nt_xent(*z, temperature=0.5)) and torch.isfinite(info_nce(*z, temperature=0.5))
    assert torch.isfinite(info_nce(z[0, :1], z[1, :1], temperature=0.5, negatives=z[0, 1:]))


def test_refusals_name_the_shapes_and_the_values():
    a, b = torch.randn(5, 7), torch.randn(4, 7)
    with pytest.raises(ShapeError, match=r"nt_xent: z1 has shape \(5, 7\) and z2 \(4, 7\)"):
        nt_xent(a, b, temperature=0.5)
    with pytest.raises(ShapeError, match="no negatives; pass at least 2 rows"):
        nt_xent(a[:1], a[:1], temperature=0.5)
    with pytest.raises(ShapeError, match="no negatives; pass at least 2 rows"):
        info_nce(a[:1], a[:1], temperature=0.5)
    with pytest.raises(ShapeError, match=r"negatives has shape \(3, 6\); it must be \(N, 7\)"):
        info_nce(a, a, temperature=0.5, negatives=torch.randn(3, 6))
    with pytest.raises(RecipeError, match="nt_xent: temperature=0 is not accepted; it must be greater than 0"):
        nt_xent(a, a, temperature=0)
    with pytest.raises(RecipeError, match="chunk_size=0"):
        nt_xent(a, a, temperature=1.0, chunk_size=0)


def test_bilinear_nce_known_cases_and_refusals():
    z, first = torch.eye(6, 7) * 3, torch.arange(4)
    assert bilinear_nce(torch.zeros(4, 7), z, first).item() == pytest.approx(math.log(6), abs=1e-6)
    found = bilinear_nce(torch.eye(4, 7), z, first)  # scale counts: no normalisation
    assert found.item() == pytest.approx(math.log(1 + 5 * math.exp(-3)), abs=1e-6)
    with pytest.raises(ShapeError, match=r"predictions \(4, 7\), targets \(6, 5\)"):
        bilinear_nce(torch.zeros(4, 7), torch.zeros(6, 5), first)
    with pytest.raises(ShapeError, match=r"positive \(3,\)"):
        bilinear_nce(torch.zeros(4, 7), z, first[:3])
    with pytest.raises(ShapeError, match="hold no negatives"):
        bilinear_nce(torch.zeros(1, 7), z[:1], first[:1])
