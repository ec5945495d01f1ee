"""DDGSD: the paper's numbers, the loss on hand-made inputs, and which term has which gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.methods.base import resolve_recipe


def test_recipes_have_the_numbers_of_paper_and_release():
    paper, released = resolve_recipe("ddgsd", "paper"), resolve_recipe("ddgsd", "released")
    assert (paper.temperature, paper.distillation_weight, paper.discrepancy_weight) == (3.0, 1.0, 5e-4)
    assert (paper.peak_lr, paper.weight_decay, paper.nesterov, paper.epochs) == (0.1, 1e-4, True, 200)
    assert (released.temperature, released.cross_entropy_weight, released.discrepancy_weight) == (4.0, 0.5, 0.0)


def test_the_loss_by_hand(bench):
    bench = bench("ddgsd", cross_entropy_weight=0.7, distillation_weight=0.3, discrepancy_weight=2.0, temperature=3.0)
    method = bench.method.eval()
    batch = bench.batch(0)
    features = [method.backbone(view) for view in (batch.view1, batch.view2)]
    a, b = (method.classifier(f) for f in features)
    p, q = (torch.softmax(x / 3, dim=1) for x in (a, b))
    kl = (p * (p / q).log()).sum(dim=1).mean() + (q * (q / p).log()).sum(dim=1).mean()
    gap = sum((features[0][:, d].mean() - features[1][:, d].mean()) ** 2 for d in range(features[0].shape[1]))
    hard = F.cross_entropy(a, batch.labels) + F.cross_entropy(b, batch.labels)
    output = method.step(batch, bench.progress(0))
    torch.testing.assert_close(output.loss, 0.7 * hard + 0.3 * 9 * kl + 2 * gap)
    assert output.metrics["mean_discrepancy"].item() == pytest.approx(gap.item(), rel=1e-4)


def kept(logits):
    logits.retain_grad()
    return logits


def test_each_view_is_a_target_without_gradient(bench):
    """With targets detached, the gradient at the logits of view a is (softmax(a / T) - softmax(b / T)) T / B."""
    bench = bench("ddgsd", cross_entropy_weight=0.0, discrepancy_weight=0.0, temperature=3.0)
    found = []
    bench.method.classifier.register_forward_hook(lambda module, inputs, logits: found.append(kept(logits)))
    bench.method.step(bench.batch(0), bench.progress(0)).loss.backward()
    a, b = (torch.softmax(x / 3, dim=1) for x in found[0].detach().chunk(2))
    torch.testing.assert_close(found[0].grad, torch.cat([a - b, b - a]) * 3 / len(a), rtol=1e-4, atol=1e-7)
