"""Inpainting: what is hidden and what is asked, the band, two networks in one step, and what a planted answer shows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.losses import weighted_mse
from attar.methods.base import Progress, resolve_recipe
from attar.methods.pretext.inpainting import RECIPES, ChannelwiseLinear, Inpainting, discriminator, views
from attar.train.optimisers import build_optimiser, set_rates
from attar.views.batches import Holed


def spec(size: int) -> ImageSpec:
    return ImageSpec(size=size, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)


def test_the_recipes_are_the_papers():
    paper, random = RECIPES["paper"], RECIPES["random"]
    assert (paper.region, paper.region_share, paper.overlap * 128, paper.overlap_weight) == ("central", 0.25, 7, 10)
    assert (paper.reconstruction_weight, paper.adversarial_weight) == (0.999, 0.001)
    assert (paper.peak_lr, paper.peak_lr * paper.discriminator_lr_scale) == (2e-3, pytest.approx(2e-4))
    assert (random.region, random.adversarial_weight, random.reconstruction_weight) == ("random", 0, 1)
    assert views(paper, spec(128)).overlap == 7 and views(paper, spec(32)).overlap == 2


def test_the_middle_is_asked_for_and_a_band_of_it_is_seen(bench):
    batch = bench("inpainting", "paper").batch(0)
    assert batch.region[0, 0].nonzero().aminmax() == (8, 23) and batch.region[0].sum() == 16**2
    assert batch.hole[0, 0].nonzero().aminmax() == (10, 21) and batch.hole[0].sum() == 12**2
    assert not batch.seen[batch.hole.expand_as(batch.seen)].any()
    outside = ~batch.hole.expand_as(batch.seen)
    assert torch.equal(batch.seen[outside], batch.images[outside])


def test_blots_are_hidden_as_a_whole_and_differ_between_images_and_epochs(bench):
    built = bench("inpainting", "random")
    batch, later = built.batch(0), built.batch(2)  # the same images, an epoch later
    assert torch.equal(batch.hole, batch.region) and (batch.hole.sum(dim=(1, 2, 3)) == 256).all()
    assert not torch.equal(batch.hole[0], batch.hole[1])
    assert torch.equal(batch.index, later.index) and not torch.equal(batch.hole, later.hole)


@pytest.mark.parametrize("recipe", ["paper", "random"])
def test_what_is_in_the_hole_changes_neither_features_nor_fill(bench, recipe):
    built = bench("inpainting", recipe)
    method, batch = built.method.eval(), built.batch(0)
    shown = method.answers(batch).pictures()["filled"]
    noise = torch.where(batch.hole, torch.randn_like(batch.images), batch.images)
    again = method.answers(Holed(noise, batch.hole, batch.region, batch.index)).pictures()["filled"]
    torch.testing.assert_close(again, shown, rtol=0, atol=0)
    band = torch.where(batch.region & ~batch.hole, batch.images + 1, batch.images)
    other = method.answers(Holed(band, batch.hole, batch.region, batch.index)).pictures()["filled"]
    assert torch.equal(other, shown) == (recipe == "random")  # blots have no band


def train_on_planted_colours(bench, *, hidden: bool) -> float:
    """The region has a colour of its own, of which nothing around it tells; the error after training over that of
    the mean."""
    torch.manual_seed(0)
    settings = dict(overlap=0.0, reconstruction_weight=1.0, adversarial_weight=0.0, decoder_dim=32)
    built = bench("inpainting", "paper", **settings)
    method, batch = built.method, built.batch(0)
    optimiser = torch.optim.Adam(method.parameters(), lr=0.003)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for step in range(100):
        colour = torch.rand(6, 3, 1, 1, generator=generator) * 2 - 1  # normalised: [-1, 1] is [0.25, 0.75]
        images = torch.where(batch.region, colour, 0.1 * torch.randn(6, 3, 32, 32, generator=generator))
        hole = batch.hole if hidden else torch.zeros_like(batch.hole)
        optimiser.zero_grad()
        output = method.step(Holed(images, hole, batch.region, batch.index), Progress(step, 100, 0, 1))
        # without a hole, all of the region is band, of weight 10
        (output.loss if hidden else output.loss / 10).backward()
        optimiser.step()
        errors.append(float(output.loss.detach() if hidden else output.loss.detach() / 10))
    return float(np.mean(errors[-15:])) / (0.5**2 / 3)  # of pixels in [-1, 1]; variance of U[-0.5, 0.5]


def test_a_planted_colour_is_filled_in_only_by_a_network_that_sees_it(bench):
    assert train_on_planted_colours(bench, hidden=False) < 0.4
    assert train_on_planted_colours(bench, hidden=True) > 0.8


def test_the_step_is_the_weighted_error_and_both_sides_of_the_competition(bench):
    built = bench("inpainting", "paper")
    method, batch = built.method, built.batch(0)
    output = built.backward(0)
    true = (batch.images * 0.25 + 0.5)[..., 8:24, 8:24] * 2 - 1
    fill = method.fill(method.backbone.features_and_map(batch.seen)[1])
    assert fill.shape == true.shape and fill.abs().max() <= 1
    weights = torch.full((6, 1, 16, 16), 10.0)
    weights[..., 2:14, 2:14] = 1
    l2 = weighted_mse(fill, true, weights)
    d = method.discriminator
    real, fake = d(true), d(fill)
    ones = torch.ones_like(real)
    entropy = F.binary_cross_entropy_with_logits
    apart = entropy(real, ones) + entropy(fake, 0 * ones)
    expected = 0.999 * l2 + 0.001 * entropy(fake, ones) + apart
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.metrics["discriminator"], apart.detach(), rtol=1e-4, atol=1e-5)
    hole = (fill - true)[..., 2:14, 2:14].square().mean().sqrt()
    torch.testing.assert_close(output.metrics["hole_rmse"], hole.detach(), rtol=1e-4, atol=1e-5)


def test_neither_network_trains_the_other(bench):
    built = bench("inpainting", "paper")
    method = built.method
    generator = torch.Generator().manual_seed(0)
    true, drawn = (torch.rand(6, 3, 16, 16, generator=generator) for _ in range(2))
    fill = drawn.requires_grad_()
    adversarial, apart, _ = method.compete(fill, true)
    own = list(method.discriminator.parameters())
    assert torch.autograd.grad(apart, fill, retain_graph=True, allow_unused=True) == (None,)
    assert not any(g is not None for g in torch.autograd.grad(adversarial, own, retain_graph=True, allow_unused=True))
    assert torch.autograd.grad(adversarial, fill)[0].any()
    assert all(g.any() for g in torch.autograd.grad(apart, own))
    # the same numbers as with D itself
    direct = F.softplus(-functional_call(method.discriminator, {}, (fill,))).mean()
    torch.testing.assert_close(adversarial, direct)


def test_the_statistics_of_the_discriminator_are_of_true_regions_and_fills_in_equal_parts(bench):
    method = bench("inpainting", "paper").method
    generator = torch.Generator().manual_seed(0)
    true, fill = (torch.rand(6, 3, 16, 16, generator=generator) for _ in range(2))
    alone = copy.deepcopy(method.discriminator)
    method.compete(fill, true)
    alone(true), alone(fill)
    for (name, moved), expected in zip(method.discriminator.named_buffers(), alone.buffers()):
        torch.testing.assert_close(moved, expected, msg=name)
    assert [n for n, _ in alone.named_buffers() if "num_batches" in n]


def test_the_discriminator_sees_the_region_only(bench):
    built = bench("inpainting", "random", adversarial_weight=0.001)
    method, batch, seen = built.method, built.batch(0), []
    method.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.step(batch, built.progress(0))
    assert len(seen) == 3 and all(not x[~batch.region.expand_as(x)].any() for x in seen)
    assert all(x[batch.region.expand_as(x)].any() for x in seen)


def test_its_rate_is_its_own_and_l2_alone_has_no_discriminator(bench):
    method = bench("inpainting", "paper").method
    optimiser = build_optimiser(method, method.recipe)
    set_rates(optimiser, method.recipe, Progress(0, 10, 0, 1))
    of_discriminator = {id(p) for p in method.discriminator.parameters()}
    for group in optimiser.param_groups:
        ids = {id(p) for p in group["params"]}
        assert ids <= of_discriminator or not ids & of_discriminator
        assert group["lr"] == pytest.approx(2e-4 if ids <= of_discriminator else 2e-3)
    alone = bench("inpainting", "paper", adversarial_weight=0.0, reconstruction_weight=1.0)
    output = alone.backward(0)
    assert alone.method.discriminator is None and alone.method.parameter_groups() is None
    assert set(output.metrics) == {"l2", "hole_rmse"} and output.loss == output.metrics["l2"]


def test_the_adversarial_recipe_trains_both_and_resumes_bit_for_bit(bench):
    straight = bench("inpainting", "paper")
    straight.train(range(2))
    state = {k: v.clone() for k, v in straight.method.state_dict().items()}
    resumed = bench("inpainting", "paper")
    resumed.method.load_state_dict(state)
    resumed.optimiser.load_state_dict(copy.deepcopy(straight.optimiser.state_dict()))
    assert resumed.train(range(2, 4)) == straight.train(range(2, 4))
    straight.backward(4)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in straight.method.parameters())


def test_a_channel_is_connected_to_itself_only():
    layer = ChannelwiseLinear(3, 4)
    x = torch.randn(2, 3, 4, 4)
    expected = torch.stack([x[:, d].flatten(1) @ layer.weight[d].T + layer.bias[d] for d in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected.view(2, 3, 4, 4))


@pytest.mark.parametrize("side, convolutions", [(64, 5), (16, 3), (56, 5), (4, 1)])
def test_the_discriminator_says_one_number_of_any_region(side, convolutions):
    made = discriminator(3, side, 8)
    assert made(torch.randn(2, 3, side, side)).shape == (2, 1, 1, 1)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in made) == convolutions


@pytest.mark.parametrize("size", [32, 40])
def test_any_size_of_image_is_filled_at_its_own_size(backbone, bench, size):
    from attar.methods.base import Setup
    from attar.models.backbones import build_backbone

    made = build_backbone("resnet8x0.5", channels=3, image_size=size)
    recipe = resolve_recipe("inpainting", "paper", {"decoder_dim": 16})
    method = Inpainting(recipe, made, Setup(image=spec(size), images=None))
    fill = method.fill(made.features_and_map(torch.randn(2, 3, size, size))[1])
    assert fill.shape == (2, 3, size // 2, size // 2)


def test_the_answers_are_holed_filled_and_true_with_how_far_off_it_is(bench):
    built = bench("inpainting", "paper")
    method, batch = built.method.eval(), built.batch(0)
    with torch.no_grad():
        answers = method.answers(batch)
    shown = answers.pictures()
    assert list(shown) == ["seen", "filled", "true"]
    visible = ~batch.hole.expand_as(batch.images)
    assert torch.equal(shown["filled"][visible], batch.images[visible])
    off = 255 * 0.25 * (shown["filled"] - batch.images)[0, :, 10:22, 10:22].square().mean().sqrt()
    assert answers.captions["filled"][0].startswith(f"off by {off:.0f} of 255, ")
    assert answers.captions["filled"][0].endswith("% real")


def test_impossible_holes_and_networks_are_refused(bench, backbone):
    with pytest.raises(RecipeError, match="a hole of share 1.0"):
        bench("inpainting", region_share=1.0)
    with pytest.raises(RecipeError, match="an overlap of 8 px leaves nothing of a hole of 16 px"):
        bench("inpainting", "paper", overlap=0.25)
    built = bench("inpainting")
    with pytest.raises(RecipeError, match="vit_micro_p8 makes .* convnet with a square map"):
        Inpainting(built.method.recipe, backbone(name="vit_micro_p8"), built.setup)
