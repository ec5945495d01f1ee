"""PS-KD: targets ramp from labels to what was recorded an epoch ago, under each image's own id."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.methods.base import Progress, resolve_recipe


def at(epoch: int, total: int = 4) -> Progress:
    return Progress(step=epoch * 10, total_steps=total * 10, epoch=epoch, total_epochs=total)


def test_the_recipe_has_the_numbers_of_the_paper():
    paper = resolve_recipe("pskd", "paper")
    assert (paper.own_share, paper.epochs, paper.peak_lr, paper.weight_decay) == (0.8, 300, 0.1, 5e-4)
    assert [drop * paper.epochs for drop in paper.lr_drops] == [150, 225] and paper.nesterov


def test_the_first_epoch_is_plain_cross_entropy_and_records_under_the_id(bench):
    bench = bench("pskd", table_precision="fp32")
    method = bench.method.eval()
    batch = bench.batch(0)
    logits = method.classifier(method.backbone(batch.images))
    output = method.step(batch, at(0))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, batch.labels))
    assert output.metrics["own_share"] == pytest.approx(0.2) and output.metrics["recorded"] == 0
    assert not method.predictions.any()  # only after the optimiser's step
    method.after_step(at(0))
    torch.testing.assert_close(method.predictions[batch.index], torch.softmax(logits.detach(), dim=1))
    others = torch.ones(len(method.predictions), dtype=torch.bool)
    others[batch.index] = False
    assert others.any() and not method.predictions[others].any()


@pytest.mark.parametrize("epoch, share", [(1, 0.4), (2, 0.6), (3, 0.8)])
def test_later_targets_mix_label_and_record_in_any_order_of_the_batch(bench, epoch, share):
    bench = bench("pskd")
    method = bench.method.eval()
    batch = bench.batch(0)
    record = torch.softmax(torch.randn(len(method.predictions), 3), dim=1)
    record[batch.index[2]] = 0  # not seen before
    method.predictions.copy_(record)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    batch.images, batch.index, batch.labels = batch.images[order], batch.index[order], batch.labels[order]
    logits = method.classifier(method.backbone(batch.images))
    expected = 0.0
    for i in range(len(order)):
        target = F.one_hot(batch.labels[i], 3).float()
        if order[i] != 2:
            target = (1 - share) * target + share * record[batch.index[i]]
        expected = expected - (target * logits[i].log_softmax(0)).sum() / len(order)
    output = method.step(batch, at(epoch))
    torch.testing.assert_close(output.loss, expected, rtol=1e-3, atol=1e-4)  # the table is in half precision
    assert output.metrics["recorded"].item() == pytest.approx(5 / 6)
    assert output.metrics["own_share"] == pytest.approx(share)


def test_no_gradient_reaches_the_table_and_halves_lose_little(bench):
    halves, full = bench("pskd"), bench("pskd", table_precision="fp32")
    for each in (halves, full):
        each.train(range(2))
    assert halves.method.predictions.dtype == torch.float16 and not halves.method.predictions.requires_grad
    gap = (halves.method.predictions.float() - full.method.predictions).abs().max()
    assert 0 < gap < 5e-4
    num_ids = halves.images.num_ids
    assert halves.method.predictions.numel() * halves.method.predictions.element_size() == num_ids * 3 * 2
