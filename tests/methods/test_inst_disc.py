"""InstDisc: its two losses, the bank's order of events, Z, the proximal term."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.losses import info_nce, instance_softmax, nce, nce_partition
from tests.methods.conftest import assert_same_step


def test_the_step_is_the_softmax_over_the_rows_of_all_images(bench):
    bench = bench("inst_disc", "small")
    method, batch, images = bench.method, bench.batch(0), bench.images
    output, rows = method.step(batch, bench.progress(0)), method.bank.rows
    positions = torch.tensor([images.index.tolist().index(i) for i in batch.index.tolist()])
    v = method.projector(method.backbone(batch.images))
    expected = instance_softmax(v, rows[torch.from_numpy(images.index)], positions, temperature=0.1)
    assert_same_step(method, output.loss, expected)
    torch.testing.assert_close(output.embeddings, v.detach())
    assert torch.equal(output.positives, rows[batch.index])


def test_the_step_is_nce_plus_the_proximal_term(bench):
    bench = bench("inst_disc", "photo", num_negatives=9, proximal_weight=3.0)
    method, bank, batch = bench.method, bench.method.bank, bench.batch(3)
    output = method.step(batch, bench.progress(3))
    v = method.projector(method.backbone(batch.images))
    own, drawn = bank.rows[batch.index], bank.draw(9, step=3)
    assert not torch.equal(drawn, bank.draw(9, step=0)), "each step has negatives of its own"
    z = nce_partition(v, own, drawn, temperature=0.07, num_images=12)
    torch.testing.assert_close(bank.partition, z)
    expected = nce(v, own, drawn, temperature=0.07, num_images=12, partition=z)
    proximal = (F.normalize(v, dim=1) - own).pow(2).sum(dim=1).mean()
    assert_same_step(method, output.loss, expected + 3 * proximal)
    torch.testing.assert_close(output.metrics["proximal"], proximal.detach())


def test_z_is_estimated_once_and_saved(bench):
    first = bench("inst_disc", "photo", num_negatives=9)
    first.train(range(1))
    z = first.method.bank.partition.clone()
    assert z > 0
    first.train(range(1, 4))
    assert torch.equal(first.method.bank.partition, z)
    resumed = bench("inst_disc", "photo", num_negatives=9)
    resumed.method.load_state_dict(first.method.state_dict())
    resumed.train(range(1))
    assert torch.equal(resumed.method.bank.partition, z)


def test_the_bank_moves_after_the_step_and_only_where_images_were_seen(bench):
    bench = bench("inst_disc", "small", bank_momentum=0.25)
    bank, before = bench.method.bank, bench.method.bank.rows.clone()
    output = bench.backward(0)
    assert torch.equal(bank.rows, before), "a row must not move before the loss is taken"
    bench.method.after_step(bench.progress(0))
    index = bench.batch(0).index
    expected = F.normalize(0.25 * before[index] + 0.75 * F.normalize(output.embeddings, dim=1), dim=1)
    torch.testing.assert_close(bank.rows[index], expected)
    assert (bank.rows != before).any(dim=1).sum() == len(index) == 6


def test_every_part_of_an_accumulated_step_enters_the_bank(bench):
    bench = bench("inst_disc", "small")
    before = bench.method.bank.rows.clone()
    bench.backward(0)
    bench.backward(1)
    bench.method.after_step(bench.progress(0))
    assert (bench.method.bank.rows != before).any(dim=1).sum() == 12
    bench.backward(2)
    bench.method.after_step(bench.progress(1))  # and only once
    assert bench.method._seen == []


@pytest.mark.parametrize("recipe", ["small", "sampled"])
def test_the_softmax_learns_to_recognise_a_handful_of_images(bench, recipe):
    bench = bench("inst_disc", recipe, num_negatives={"small": None, "sampled": 24}[recipe])
    bench.optimiser.param_groups[0]["lr"] = 0.01
    losses = bench.train(range(40))
    assert sum(losses[-4:]) < sum(losses[2:6])


def test_the_sampled_softmax_is_info_nce_over_the_drawn_rows(bench):
    bench = bench("inst_disc", "sampled", num_negatives=9)
    method, bank, batch = bench.method, bench.method.bank, bench.batch(3)
    output = method.step(batch, bench.progress(3))
    own, drawn = bank.rows[batch.index], bank.draw(9, step=3)
    v = method.projector(method.backbone(batch.images))
    assert_same_step(method, output.loss, info_nce(v, own, temperature=0.07, negatives=drawn))
    assert float(bank.partition) == 0


def test_nce_against_all_images_is_refused_and_few_images_are_warned_of(bench, caplog):
    with pytest.raises(RecipeError, match="inst_disc: num_negatives=None .* give nce a number"):
        bench("inst_disc", "small", objective="nce")
    bench("inst_disc", "small")
    assert not caplog.records
    bench("inst_disc", "photo")
    assert "with 12 it learns little. Consider -s objective=softmax" in caplog.text
