"""Colorization: what the network may not see, what it is asked, and that images without colour ask nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.errors import BackboneError, RecipeError
from attar.losses import colour_cross_entropy
from attar.methods.base import Progress
from attar.methods.pretext.colorization import RECIPES, Colorization
from attar.models.backbones import build_backbone
from attar.models.colour_bins import gamut_bins, nearest_bins
from attar.views.batches import OneView
from attar.views.colour import lab_to_rgb


def test_the_recipe_is_the_papers():
    paper = RECIPES["paper"]
    assert (paper.neighbours, paper.sigma, paper.uniform_share, paper.decoding_temperature) == (5, 5.0, 0.5, 0.38)
    assert (paper.batch_size, paper.peak_lr, paper.weight_decay, paper.adam_betas) == (40, 3e-5, 1e-3, (0.9, 0.99))


def normalised(bench, lab):
    network = bench.method.network
    return (lab_to_rgb(lab) - network.mean) / network.std


def coloured(num: int = 4, light=None, seed: int = 0):
    """Lab pictures with colours that sRGB can show at this lightness."""
    generator = torch.Generator().manual_seed(seed)
    light = 55 + 10 * torch.rand(num, 1, 32, 32, generator=generator) if light is None else light
    return torch.cat([light, 30 * torch.rand(num, 2, 1, 1, generator=generator).expand(-1, -1, 32, 32) - 15], dim=1)


def test_the_network_sees_lightness_and_no_colour(bench):
    built = bench("colorization")
    backbone = built.method.backbone.eval()
    lab = coloured()
    recoloured = torch.cat([lab[:, :1], -lab[:, 1:]], dim=1)
    one, other = (backbone(normalised(built, x)) for x in (lab, recoloured))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    darker = torch.cat([lab[:, :1] - 15, lab[:, 1:]], dim=1)
    assert (backbone(normalised(built, darker)) - one).abs().max() > 1e-2
    light = built.method.network.light(normalised(built, lab))
    torch.testing.assert_close(light, lab[:, :1] / 50 - 1, atol=1e-4, rtol=0)


def test_the_backbone_takes_rgb_and_shows_stages_and_map(bench):
    backbone = bench("colorization").method.backbone.eval()
    assert backbone.spec.name == "lightness_resnet8x0.5" and backbone.spec.channels == 3
    images = torch.randn(2, 3, 32, 32)
    features, feature_map = backbone.features_and_map(images)
    torch.testing.assert_close(features, backbone(images))
    torch.testing.assert_close(backbone.stages(images)["stage3"], feature_map)
    assert backbone.map_shape() == (32, 8, 8)
    assert Colorization.backbone_name("lightness_resnet8") == Colorization.backbone_name("resnet8")


def test_the_step_is_the_weighted_loss_against_every_fourth_pixel(bench):
    built = bench("colorization")
    method, batch = built.method, built.batch(0)
    loss = built.backward(0).loss
    logits = method.decoder(method.backbone.features_and_map(batch.images)[1])
    assert logits.shape == (6, len(gamut_bins()), 8, 8)
    ab = method.network.lab(batch.images)[:, 1:, ::4, ::4]
    torch.testing.assert_close(method.colours(batch.images, 8), ab)
    numbers, shares = method.bins.encode(ab)
    expected = colour_cross_entropy(logits, numbers, shares, method.bins.weights[numbers[:, 0]])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_the_bins_are_weighed_by_the_colours_of_the_images(bench):
    built = bench("colorization")
    prior, weights = built.method.bins.prior, built.method.bins.weights
    ab = built.method.network.lab(built.batch(0).images)[:, 1:].movedim(1, -1).reshape(-1, 2)
    common = nearest_bins(ab).bincount(minlength=len(prior)).argmax()
    assert prior[common] > 5 / len(prior) and weights[common] < 0.5 * weights.max()
    assert (prior * weights).sum().item() == pytest.approx(1, rel=1e-4)


def test_images_without_colour_count_nothing_and_a_set_of_them_is_refused(bench):
    built = bench("colorization")
    grey = torch.rand(4, 1, 32, 32).expand(-1, 3, -1, -1) * 2 - 1
    output = built.method.step(OneView(grey, torch.arange(4)), built.progress(0))
    output.loss.backward()
    assert output.loss == 0 and not any(p.grad.any() for p in built.method.decoder.parameters())
    built.images.store.canvases = np.repeat(built.images.store.canvases[..., :1], 3, axis=3)
    with pytest.raises(RecipeError, match="none of 12 images of stripes has any colour"):
        Colorization(built.method.recipe, built.method.backbone, built.setup)


def train_on_planted_colours(bench, *, sees_colour: bool) -> float:
    """Each picture has one of two colours and nothing else; the share of places that is named after training."""
    torch.manual_seed(0)
    built = bench("colorization")
    method = built.method
    pair = torch.tensor([[30.0, 20.0], [-30.0, 20.0]])
    method.bins.weights.fill_(1.0)
    if sees_colour:
        method.network.light = lambda images: method.network.split(images)[1][:, :1]  # a instead of L
    optimiser = torch.optim.Adam(method.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    accuracy = []
    for step in range(50):
        which = torch.randint(2, (16,), generator=generator)
        light = 50 + 4 * torch.randn(16, 1, 32, 32, generator=generator)
        lab = torch.cat([light, pair[which].view(16, 2, 1, 1).expand(-1, -1, 32, 32)], dim=1)
        batch = OneView(normalised(built, lab), torch.arange(16))
        optimiser.zero_grad()
        output = method.step(batch, Progress(step, 50, 0, 1))
        output.loss.backward()
        optimiser.step()
        accuracy.append(float(output.metrics["bin_accuracy"]))
    return float(np.mean(accuracy[-10:]))


def test_a_planted_colour_is_named_only_by_a_network_that_sees_it(bench):
    assert train_on_planted_colours(bench, sees_colour=True) > 0.9
    assert train_on_planted_colours(bench, sees_colour=False) < 0.65  # two colours: chance is 0.5


def test_the_answers_are_grey_colourised_and_true_with_how_sure_it_is(bench):
    built = bench("colorization")
    method, batch = built.method.eval(), built.batch(0)
    with torch.no_grad():
        answers = method.answers(batch)
    shown = answers.pictures()
    assert list(shown) == ["seen", "colourised", "true"] and torch.equal(shown["true"], batch.images)
    lab = {name: method.network.lab(images) for name, images in shown.items()}
    torch.testing.assert_close(lab["seen"][:, 1:], torch.zeros(6, 2, 32, 32), atol=0.1, rtol=0)
    torch.testing.assert_close(lab["seen"][:, 0], lab["true"][:, 0], atol=0.1, rtol=0)
    logits = method.decoder(method.backbone.features_and_map(batch.images)[1])
    ab = F.interpolate(method.bins.decode(logits, temperature=0.38), size=32, mode="bilinear")
    shown_by_srgb = method.network.lab(normalised(built, torch.cat([lab["true"][:, :1], ab], dim=1)))
    torch.testing.assert_close(lab["colourised"], shown_by_srgb, atol=0.2, rtol=0)
    sure = math.floor(100 * logits.softmax(1).amax(1).mean((1, 2))[0].item() + 0.5)
    assert answers.captions["colourised"][0].startswith(f"sure {sure}%, off by ")


def test_networks_that_see_colour_or_tokens_and_grey_images_are_refused(bench, backbone):
    built = bench("colorization")
    with pytest.raises(RecipeError, match="was given resnet8x0.5; build lightness_resnet8x0.5"):
        Colorization(built.method.recipe, backbone(), built.setup)
    with pytest.raises(RecipeError, match="it needs a convnet with a square map"):
        Colorization(built.method.recipe, backbone(name="lightness_vit_micro_p8"), built.setup)
    with pytest.raises(BackboneError, match="these have 1. Grey images"):
        build_backbone("lightness_resnet8", channels=1, image_size=32)
