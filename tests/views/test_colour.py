from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from attar.errors import ShapeError
from attar.views import colour

B = 24
TORCHVISION = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
OURS = (colour.adjust_brightness, colour.adjust_contrast, colour.adjust_saturation, colour.adjust_hue)


@pytest.fixture
def images():
    """Random pictures, and the corners: black, white, grey, and every tie between channels."""
    images = torch.rand(B, 3, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[::2] = (images[::2] * 3).round() / 3
    images[0], images[1], images[2] = 0, 1, images[2, :1]
    images[3, 1], images[4, 2], images[5, 0] = images[3, 0], images[4, 1], images[5, 2]
    return images


@pytest.fixture
def factors():
    factors = torch.rand(B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors[:, :3] *= 2
    factors[:, 3] -= 0.5
    factors[6], factors[7] = torch.tensor([0, 0, 0, -0.5]), torch.tensor([1, 1, 1, 0.5])
    return factors


@pytest.mark.parametrize("operation", range(4))
def test_operation_equals_torchvisions(images, factors, operation):
    ours = OURS[operation](images, factors[:, operation])
    theirs = [TORCHVISION[operation](x, f.item()) for x, f in zip(images, factors[:, operation])]
    # torchvision turns hue in float32 whatever it is given
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=3e-6 if operation == colour.HUE else 1e-12)


def test_jitter_follows_each_samples_own_order(images, factors):
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[(orders.sort(dim=1).values == torch.arange(4)).all(dim=1)]
    assert len(orders) == B  # every order once
    theirs = []
    for image, factor, order in zip(images, factors, orders.tolist()):
        for operation in order:
            image = TORCHVISION[operation](image, factor[operation].item())
        theirs.append(image)
    ours = colour.colour_jitter_(images.clone(), factors, orders)
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-5)

    still = torch.cat([factors[:, :3], torch.zeros(B, 1, dtype=factors.dtype)], dim=1)
    without = colour.colour_jitter_(images.clone(), still, orders, with_hue=False)
    torch.testing.assert_close(without, colour.colour_jitter_(images.clone(), still, orders), rtol=0, atol=1e-12)


def test_neutral_factors_change_nothing(images):
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64).repeat(B, 1)
    order = torch.arange(4).repeat(B, 1)
    torch.testing.assert_close(colour.colour_jitter_(images.clone(), neutral, order), images, rtol=0, atol=1e-12)
    assert torch.equal(colour.colour_jitter_(images.clone(), neutral, order, with_hue=False), images)


def test_float32_is_close(images, factors):
    order = torch.arange(4).repeat(B, 1)
    exact = colour.colour_jitter_(images.clone(), factors, order)
    close = colour.colour_jitter_(images.float(), factors.float(), order)
    torch.testing.assert_close(close.double(), exact, rtol=0, atol=1e-5)


def test_grey_and_solarise_equal_torchvisions(images):
    torch.testing.assert_close(colour.to_grey(images), tv.rgb_to_grayscale(images, 3), rtol=0, atol=1e-12)
    images[8, 0, 0, 0] = 0.5  # the threshold itself is inverted, to the same value
    assert torch.equal(colour.solarise(images), tv.solarize(images, 0.5))


def test_grey_pictures_keep_saturation_and_hue(images, factors):
    grey = images[:, :1]
    torch.testing.assert_close(colour.adjust_saturation(grey, factors[:, 2]), grey)
    assert torch.equal(colour.adjust_hue(grey, factors[:, 3]), grey)
    assert torch.equal(colour.to_grey(grey), grey)
    theirs = torch.stack([tv.adjust_contrast(x, f.item()) for x, f in zip(grey, factors[:, 1])])
    torch.testing.assert_close(colour.adjust_contrast(grey, factors[:, 1]), theirs, rtol=0, atol=1e-12)


def test_other_channels_use_their_mean_and_have_no_hue(factors):
    images = torch.rand(B, 5, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mean = images.mean(dim=1, keepdim=True)
    torch.testing.assert_close(colour.to_grey(images), mean.expand_as(images))
    f = factors[:, 2, None, None, None]
    torch.testing.assert_close(
        colour.adjust_saturation(images, factors[:, 2]), (f * images + (1 - f) * mean).clamp(0, 1)
    )
    with pytest.raises(ShapeError, match=r"these images have 5; set the hue strength of the jitter to 0"):
        colour.adjust_hue(images, factors[:, 3])


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 1), (100, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
        ((0.02, 0.02, 0.02), (1.40, 0, 0)),  # on the straight piece of both curves
    ],
)
def test_lab_of_known_colours(rgb, lab):
    from attar.views.colour import rgb_to_lab

    found = rgb_to_lab(torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor(lab, dtype=torch.float32), atol=0.02, rtol=0)


def test_lab_stays_exact_under_autocast_and_needs_three_channels():
    from attar.views.colour import rgb_to_lab

    images = torch.rand(2, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = rgb_to_lab(images)
    assert under.dtype == torch.float32 and torch.equal(under, rgb_to_lab(images))
    with pytest.raises(ShapeError, match="1 channels"):
        rgb_to_lab(torch.rand(2, 1, 4, 4))
