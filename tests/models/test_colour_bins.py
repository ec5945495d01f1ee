"""Colour bins: which colours are shown by a screen, soft encoding, weights of the rare, and back to a colour."""

from __future__ import annotations

import math

import pytest
import torch

from attar.errors import RecipeError, ShapeError
from attar.models.colour_bins import ColourBins, gamut_bins, nearest_bins, rarity_weights, smoothed
from attar.views.colour import lab_to_rgb, rgb_to_lab

Q = 309


def bins(counts=None, **settings) -> ColourBins:
    given = dict(neighbours=5, sigma=5.0, uniform=0.5) | settings
    return ColourBins(torch.ones(Q) if counts is None else counts, **given)


def test_the_bins_are_the_grid_points_around_the_colours_of_srgb():
    centres = gamut_bins()
    assert len(centres) == Q and len(centres.unique(dim=0)) == Q
    assert (centres % 10 == 0).all()
    assert centres.amin(0).tolist() == [-90, -110] and centres.amax(0).tolist() == [100, 100]
    solid = rgb_to_lab(torch.rand(1, 3, 200, 200, generator=torch.Generator().manual_seed(0)))[0, 1:].flatten(1).T
    distance = torch.cdist(solid, centres).amin(dim=1)
    assert distance.max() <= 5 * math.sqrt(2) + 1e-3  # whatever is shown is within half a cell's diagonal of a bin


def test_colours_come_back_from_lab_within_a_step_of_eight_bits():
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    images[0, :, :4] = torch.tensor([0.0, 1 / 255, 2 / 255, 1.0]).view(1, 4, 1)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images)), images, atol=0.2 / 255, rtol=0)
    assert lab_to_rgb(torch.tensor([50.0, 200.0, -200.0]).view(1, 3, 1, 1)).aminmax() == (0, 1)
    with pytest.raises(ShapeError, match="2 channels"):
        lab_to_rgb(torch.zeros(1, 2, 4, 4))


def test_a_colour_on_a_bin_is_shared_with_its_four_neighbours():
    numbers, shares = bins().encode(torch.tensor([10.0, 20.0]).view(1, 2, 1, 1))
    assert gamut_bins()[numbers[0, 0, 0, 0]].tolist() == [10, 20]
    around = sorted(gamut_bins()[numbers[0, 1:, 0, 0]].tolist())
    assert around == [[0, 20], [10, 10], [10, 30], [20, 20]]
    torch.testing.assert_close(shares.flatten(), torch.tensor([0.649] + 4 * [0.088]), atol=1e-3, rtol=0)


def test_encoding_a_picture_keeps_places_and_decoding_inverts_it():
    ab = torch.rand(2, 2, 3, 5, generator=torch.Generator().manual_seed(2)) * 60 - 30
    made = bins()
    numbers, shares = made.encode(ab)
    assert numbers.shape == shares.shape == (2, 5, 3, 5)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 3, 5))
    assert (shares.diff(dim=1) <= 0).all()
    logits = torch.full((2, Q, 3, 5), -1e9).scatter(1, numbers, shares.log())
    assert (made.decode(logits, temperature=1.0) - ab).norm(dim=1).max() < 5
    nearest = made.decode(logits, temperature=1e-3)
    assert (nearest - ab).norm(dim=1).max() < 5 * math.sqrt(2) + 1e-3
    torch.testing.assert_close(nearest, gamut_bins()[numbers[:, 0]].movedim(-1, 1), atol=1e-2, rtol=0)


def test_a_lower_temperature_gives_stronger_colours():
    logits = torch.zeros(1, Q, 1, 1)
    logits[0, nearest_bins(torch.tensor([[50.0, 50.0]]))] = 6.0
    chroma = [bins().decode(logits, temperature=t).norm().item() for t in (1.0, 0.38, 0.01)]
    assert chroma[0] < 0.9 * chroma[1] < chroma[2] and chroma[2] == pytest.approx(50 * math.sqrt(2), rel=1e-3)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0])
def test_weights_are_those_of_equation_4_and_one_in_the_mean(uniform):
    prior = torch.tensor([0.7, 0.2, 0.1])
    weights = rarity_weights(prior, uniform=uniform)
    raw = [1 / ((1 - uniform) * p + uniform / 3) for p in prior.tolist()]
    scale = sum(p * w for p, w in zip(prior.tolist(), raw))
    torch.testing.assert_close(weights, torch.tensor([w / scale for w in raw]))
    assert (prior * weights).sum().item() == pytest.approx(1)
    if uniform == 1.0:
        torch.testing.assert_close(weights, torch.ones(3))


def test_smoothing_moves_mass_to_neighbours_and_loses_none():
    centres = gamut_bins()
    at = nearest_bins(torch.tensor([[0.0, 0.0], [10.0, 0.0], [80.0, 60.0]]))
    prior = smoothed(torch.zeros(Q).index_fill(0, at[:1], 7.0), centres, sigma=5.0)
    assert prior.sum().item() == pytest.approx(1) and prior.argmax() == at[0]
    assert prior[at[1]] / prior[at[0]] == pytest.approx(math.exp(-2), rel=1e-3)
    assert prior[at[2]] < 1e-6
    made = bins(torch.zeros(Q).index_fill(0, at[:1], 7.0))
    assert made.weights[at[0]] < 1 < made.weights[at[2]]
    assert (made.prior * made.weights).sum().item() == pytest.approx(1, rel=1e-4)


def test_wrong_settings_are_refused():
    with pytest.raises(ShapeError, match=r"\(309,\) are needed"):
        bins(torch.ones(3))
    with pytest.raises(RecipeError, match="neighbours=0"):
        bins(neighbours=0)
    with pytest.raises(RecipeError, match="sigma=0 is not accepted; give a width above 0"):
        bins(sigma=0)
    for uniform in (-0.1, 2.0, math.nan):
        with pytest.raises(RecipeError, match=f"uniform_share={uniform} is not accepted; give a number from 0 to 1"):
            bins(uniform=uniform)


def test_by_rarity_alone_bins_without_mass_have_no_weight():
    at = nearest_bins(torch.tensor([[0.0, 0.0], [80.0, 60.0]]))
    counts = torch.zeros(Q).index_fill(0, at[:1], 7.0)
    made = bins(counts, uniform=0.0)
    assert made.weights.isfinite().all() and made.weights[at[1]] == 0 < made.weights[at[0]]
    assert (made.prior * made.weights).sum().item() == pytest.approx(1)
    counts[at[1]] = 1e-4 * counts.sum()  # rare, not absent
    made = bins(counts, uniform=0.0)
    assert made.weights[at[1]] / made.weights[at[0]] == pytest.approx(1e4, rel=0.2)
