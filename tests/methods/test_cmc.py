"""CMC: views across halves, across banks; one ordinary network comes out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attar.errors import RecipeError
from attar.losses import instance_softmax, nce, nce_partition
from attar.methods.contrastive.cmc import CMC
from tests.methods.conftest import assert_same_step


def test_each_view_is_compared_with_the_other_views_bank(bench):
    bench = bench("cmc", "photo", num_negatives=9)
    method, batch = bench.method, bench.batch(3)
    output = method.step(batch, bench.progress(3))
    settings = dict(temperature=0.07, num_images=12)
    terms = []
    halves = method.backbone(batch.images).chunk(2, dim=1)
    for half, projector, bank in zip(halves, method.projectors, reversed(method.banks)):
        z, own, drawn = projector(half), bank.rows[batch.index], bank.draw(9, step=3)
        assert not torch.equal(drawn, bank.draw(9, step=0)), "each step has negatives of its own"
        partition = nce_partition(z, own, drawn, **settings)
        torch.testing.assert_close(bank.partition, partition)  # one for each bank
        terms.append(nce(z, own, drawn, partition=partition, **settings))
    assert_same_step(method, output.loss, sum(terms))


def test_the_small_recipe_compares_with_all_rows(bench):
    bench = bench("cmc")
    output, bank = bench.backward(0), bench.method.banks[1]
    positions = bank.positions(bench.batch(0).index)
    expected = instance_softmax(output.embeddings, bank.rows[bank.ids], positions, temperature=0.1)
    torch.testing.assert_close(output.metrics["lightness_to_colour"], expected)


def test_each_bank_follows_its_own_view_after_the_step(bench):
    bench = bench("cmc")
    banks = (bench.method.banks[0], bench.method.banks[1])
    before = [bank.rows.clone() for bank in banks]
    assert not torch.equal(*before)
    output, index = bench.backward(0), bench.batch(0).index
    assert all(torch.equal(bank.rows, rows) for bank, rows in zip(banks, before))
    bench.method.after_step(bench.progress(0))
    for bank, rows, z in zip(banks, before, (output.embeddings, output.positives)):
        expected = F.normalize(0.5 * rows[index] + 0.5 * F.normalize(z, dim=1), dim=1)
        torch.testing.assert_close(bank.rows[index], expected)
        assert (bank.rows != rows).any(dim=1).sum() == 6


def test_one_half_of_the_features_sees_lightness_and_the_other_colour(bench):
    """Shown through what it may not see: grey pictures of the same lightness; colours of the same hue."""
    bench = bench("cmc")
    network, image = bench.method.backbone.network.eval(), bench.setup.image
    normalise = lambda x: (x - torch.tensor(image.mean).view(3, 1, 1)) / torch.tensor(image.std).view(3, 1, 1)  # noqa: E731
    colourful = torch.rand(4, 3, 32, 32)
    light, colour = network.split(normalise(colourful))
    assert light.shape == (4, 1, 32, 32) and colour.shape == (4, 2, 32, 32)
    grey = torch.linspace(0, 1, 32).expand(4, 3, 32, 32)
    _, none = network.split(normalise(grey))
    middle = torch.tensor([6.025 / 92.208, -6.689 / 101.168])
    torch.testing.assert_close(none, -middle.view(1, 2, 1, 1).expand_as(none), atol=1e-3, rtol=0)
    features = bench.method.backbone(normalise(colourful))
    torch.testing.assert_close(features[:, :32], network.lightness(light))
    torch.testing.assert_close(features[:, 32:], network.colour(colour))


def test_another_backbone_is_refused_and_grey_images_too(bench, backbone):
    from attar.errors import BackboneError
    from attar.models.backbones import build_backbone

    built = bench("cmc")
    with pytest.raises(RecipeError, match="was given resnet8x0.5; build lab_resnet8x0.5"):
        CMC(built.method.recipe, backbone(), built.setup)
    with pytest.raises(BackboneError, match="these have 1. Grey images"):
        build_backbone("lab_resnet8", channels=1, image_size=32)
    assert CMC.backbone_name("lab_resnet8") == CMC.backbone_name("resnet8") == "lab_resnet8"


def test_three_parts_are_compared_in_all_pairs(bench):
    from attar.models.backbones import build_backbone

    built = bench("cmc")
    parts = build_backbone("lab3_resnet8x0.5", image_size=32)
    method = CMC(built.method.recipe, parts, built.setup)
    batch = built.batch(0)
    output = method.step(batch, built.progress(0))
    names = ("lightness", "green_red", "blue_yellow")
    assert set(output.metrics) == {f"{a}_to_{b}" for a in names for b in names if a != b}
    z = [projector(part) for projector, part in zip(method.projectors, parts(batch.images).chunk(3, dim=1))]
    terms = []
    for i, bank in enumerate(method.banks):
        positions = bank.positions(batch.index)
        terms += [instance_softmax(z[j], bank.rows[bank.ids], positions, temperature=0.1) for j in range(3) if j != i]
    assert_same_step(method, output.loss, sum(terms))
    maps = torch.cat(parts.network.split(batch.images), dim=1)
    for i, name in enumerate(names):
        alone = getattr(parts.network.eval(), name)(maps[:, i : i + 1])
        torch.testing.assert_close(parts(batch.images).chunk(3, dim=1)[i], alone)
    assert CMC.backbone_name("lab3_resnet8") == "lab3_resnet8"
