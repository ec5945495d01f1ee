from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from attar.errors import ShapeError
from attar.views.blur import gaussian_blur


# one tile; the widest kernel; several tiles, also where they do not divide the side
@pytest.mark.parametrize(("shape", "kernel_size"), [((12, 12), 3), ((7, 9), 13), ((64, 64), 7), ((70, 83), 23)])
def test_blur_is_torchvisions(shape, kernel_size):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, *shape, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.7, 2.0, 9.0], dtype=torch.float64)
    theirs = [tv.gaussian_blur(x, [kernel_size] * 2, [s.item()] * 2) for x, s in zip(images, sigma)]
    ours = gaussian_blur(images, sigma, kernel_size=kernel_size)
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-12)
    torch.testing.assert_close(gaussian_blur(images.float(), sigma, kernel_size=kernel_size), ours.float())


def test_flat_pictures_stay_flat():
    flat = torch.full((1, 2, 40, 40), 0.25)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([1.5]), kernel_size=9), flat)


@pytest.mark.parametrize("kernel_size", [4, 17])
def test_kernels_that_do_not_fit(kernel_size):
    with pytest.raises(
        ShapeError, match=rf"kernel_size={kernel_size} for images of 8 x 8; give an odd number up to 15"
    ):
        gaussian_blur(torch.rand(1, 1, 8, 8), torch.ones(1), kernel_size=kernel_size)
