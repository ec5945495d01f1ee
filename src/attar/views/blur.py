"""Gaussian blur with one width per sample, equal to torchvision's for the same kernel size."""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import ShapeError
from attar.views.resample import TILE, Bands, separable_product


def gaussian_blur(images: Tensor, sigma: Tensor, *, kernel_size: int) -> Tensor:
    """Convolve each sample with its own Gaussian, edges mirrored: two banded matrix products, as resizing is.

    Args:
        images: floating point (B, C, H, W).
        sigma: standard deviations in pixels, > 0, (B,).
        kernel_size: odd; the kernel is cut there and normalised.

    Raises:
        ShapeError: if the kernel is even, or so wide that the mirrored edge would need more pixels than there are.
    """
    H, W = images.shape[2:]
    half = kernel_size // 2
    if kernel_size % 2 == 0 or half >= min(H, W):
        raise ShapeError(
            f"gaussian_blur: kernel_size={kernel_size} for images of {H} x {W}; "
            f"give an odd number up to {2 * min(H, W) - 1}."
        )
    with torch.autocast(images.device.type, enabled=False):
        wy = _bands(sigma.to(images.dtype), half, H)
        wx = wy if W == H else _bands(sigma.to(images.dtype), half, W)
        return separable_product(images, wy, wx)[..., :H, :W].contiguous()


def _bands(sigma: Tensor, half: int, size: int) -> Bands:
    """Rows of the kernel's matrix along an axis of this size; what falls over an edge is added to its mirror image."""
    tile, window = (TILE, TILE + 2 * half) if TILE + 2 * half <= size // 2 else (size, size)
    outputs = torch.arange(-(-size // tile) * tile, device=sigma.device).view(-1, tile)
    starts = (outputs[:, 0] - half).clamp(0, size - window)
    pixels = (starts[:, None] + torch.arange(window, device=sigma.device))[:, None]  # (N, 1, window)
    outputs = outputs[..., None]  # (N, tile, 1)
    offsets = torch.arange(-half, half + 1, device=sigma.device)
    kernels = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)  # rows sum to 1
    kernels = torch.nn.functional.pad(kernels, (0, 1))  # the last column answers for every offset outside

    def kernel(pixels: Tensor) -> Tensor:
        """The kernel's value at each pixel, for each output around which it is centred, (B, N, tile, window)."""
        column = pixels - outputs + half
        column = torch.where((column >= 0) & (column <= 2 * half), column, 2 * half + 1)
        return kernels.index_select(1, column.flatten()).view(-1, *column.shape)

    outside = 4 * size  # no output reaches there: an edge pixel is not its own mirror image
    before = torch.where(pixels > 0, -pixels, outside)
    after = torch.where(pixels < size - 1, 2 * (size - 1) - pixels, outside)
    weights = kernel(pixels).add_(kernel(before)).add_(kernel(after))
    return Bands(weights, starts.expand(len(sigma), -1))
