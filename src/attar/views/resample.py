"""Crop, resize, mirror and shift a batch in two matrix products per sample: Wy @ X @ Wx^T.

Every sample has its own box. The weights are those of torch's antialiased resize of the cropped picture: they never
reach outside the box. Because they are banded, larger outputs are computed in tiles of 16 rows, each from the few
input rows it can depend on; small ones in a single tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attar.errors import ShapeError

Interpolation = Literal["bilinear", "bicubic"]

TILE = 16  # outputs a tile; measured fastest among 16 .. 64 on a CPU, at 224 px from 256 and 280


def resize_weights(
    start: Tensor, length: Tensor, output_size: int, input_size: int, *, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """What each input pixel gives to each output pixel when [start, start + length) is resized, along one axis.

    Args:
        start, length: of the crop, in input pixels, (B,); fractions are allowed. A fractional crop uses every
            pixel it touches.
        interpolation: triangle or cubic (a = -0.5) kernel, widened when shrinking, as torch with antialias=True.

    Returns:
        (B, output_size, input_size); each row sums to 1 and is zero outside the crop.
    """
    outputs = torch.arange(output_size, device=start.device).expand(len(start), -1)
    pixels = torch.arange(input_size, device=start.device).expand(len(start), -1)
    return _weights(start[:, None], length[:, None], outputs, pixels, output_size, interpolation)


def _weights(
    start: Tensor, length: Tensor, outputs: Tensor, pixels: Tensor, output_size: int, interpolation: Interpolation
) -> Tensor:
    """start, length (..., 1), output positions (..., T), pixel numbers (..., L) -> (..., T, L)."""
    scale = length / output_size
    pixel = pixels - start  # relative to the crop, where float32 is finest
    centre = (outputs + 0.5) * scale
    distance = ((pixel + 0.5).unsqueeze(-2) - centre.unsqueeze(-1)).div_(scale.clamp(min=1).unsqueeze(-1)).abs_()
    weights = _cubic(distance) if interpolation == "bicubic" else distance.neg_().add_(1).clamp_(min=0)
    weights *= ((pixel > -1) & (pixel < length)).unsqueeze(-2)
    weights *= ((outputs >= 0) & (outputs < output_size)).unsqueeze(-1)
    return weights.div_(weights.sum(dim=-1, keepdim=True).clamp_(min=1e-6))  # all-zero rows stay zero


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, which torch and PIL use when antialiasing."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


@dataclass
class Bands:
    """Weights of one axis in tiles. weights: (B, N, T, L); starts: (B, N), the first of the L pixels a tile reads."""

    weights: Tensor
    starts: Tensor


def _bands(
    start: Tensor,
    length: Tensor,
    output_size: int,
    input_size: int,
    interpolation: Interpolation,
    flip: Tensor | None,
    shift: Tensor | None,
) -> Bands:
    """Weights of one axis; mirroring and shifting only change which position of the resized crop a row computes."""
    reach = 2 if interpolation == "bicubic" else 1
    tile, window = _tiling(output_size, input_size, reach)
    positions = torch.arange(-(-output_size // tile) * tile, device=start.device).expand(len(start), -1)
    if flip is not None:
        positions = torch.where(flip[:, None], output_size - 1 - positions, positions)
    if shift is not None:
        positions = positions + shift[:, None]
    positions = positions.unflatten(1, (-1, tile))
    start, length = start[:, None, None], length[:, None, None]
    scale = length / output_size
    lowest = torch.minimum(positions[..., :1], positions[..., -1:])
    first = torch.floor(start + (lowest + 0.5) * scale - reach * scale.clamp(min=1)).clamp_(0, input_size - window)
    pixels = first + torch.arange(window, device=start.device)
    return Bands(_weights(start, length, positions, pixels, output_size, interpolation), first.squeeze(-1).long())


def _tiling(output_size: int, input_size: int, reach: int) -> tuple[int, int]:
    """(tile, window): outputs computed together, and input pixels they may depend on, for any crop of the input."""
    scale = input_size / output_size
    window = math.ceil((TILE - 1) * scale + 2 * reach * max(scale, 1)) + 2
    return (TILE, window) if window <= input_size // 2 else (output_size, input_size)


def crop_and_resize(
    canvases: Tensor,
    boxes: Tensor,
    output_size: int,
    *,
    flip: Tensor | None = None,
    shift: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Cut each sample's box out, resize it to a square, then move it by whole pixels and mirror it left-right.

    Equal to torch's antialiased resize of the crop alone. Runs outside autocast, in float32 (float64 for float64
    input): in bfloat16 neighbouring grey levels would merge.

    Args:
        canvases: uint8 or floating point (B, C, S, S). Fastest in the layout images are stored in (channels last).
        boxes: top, left, height, width in canvas pixels, (B, 4), within the canvas, sides > 0.
        flip: which samples to mirror, bool (B,). None: none.
        shift: rows and columns by which the window moves over the resized picture, (B, 2), whole numbers; what
            comes from outside the picture is zero. None: not moved.

    Returns:
        (B, C, output_size, output_size): uint8 input is scaled to [0, 1]; floating point keeps its range.

    Raises:
        ShapeError: if canvases, boxes, flip or shift do not belong together.
    """
    if canvases.ndim != 4 or boxes.shape != (len(canvases), 4):
        raise ShapeError(
            f"crop_and_resize: canvases {tuple(canvases.shape)} and boxes {tuple(boxes.shape)} do not fit; "
            "give canvases (B, C, H, W) and one box (top, left, height, width) for each, (B, 4)."
        )
    for name, given, shape in (("flip", flip, (len(boxes),)), ("shift", shift, (len(boxes), 2))):
        if given is not None and given.shape != shape:
            raise ShapeError(
                f"crop_and_resize: {name} has shape {tuple(given.shape)}; {len(boxes)} boxes need {shape}."
            )
    top, left, height, width = boxes.to(torch.promote_types(canvases.dtype, torch.float32)).unbind(1)
    down, right = (None, None) if shift is None else shift.unbind(1)
    with torch.autocast(canvases.device.type, enabled=False):
        wy = _bands(top, height, output_size, canvases.shape[2], interpolation, None, down)
        wx = _bands(left, width, output_size, canvases.shape[3], interpolation, flip, right)
        if canvases.dtype == torch.uint8:
            wy.weights /= 255
        images = separable_product(canvases, wy, wx)[..., :output_size, :output_size].contiguous()
    return images.clamp_(0, 1) if canvases.dtype == torch.uint8 else images


def separable_product(images: Tensor, wy: Bands, wx: Bands) -> Tensor:
    """Wy @ X @ Wx^T of every channel, (B, C, Ny * Ty, Nx * Tx), tile by tile.

    Letters: Ny, Nx tiles, Ty, Tx outputs a tile, Ly, Lx inputs a tile. Both gathers copy contiguous runs of memory,
    and uint8 becomes floating point only after the first one.
    """
    B, C, H, W = images.shape
    (_, Ny, Ty, Ly), (_, Nx, Tx, Lx) = wy.weights.shape, wx.weights.shape
    rows = images.permute(0, 2, 3, 1).reshape(B, 1, H, W * C)
    strips = _windows(rows, wy.starts, Ly).view(B * Ny, Ly, W * C).to(wy.weights.dtype)
    strips = torch.bmm(strips.mT, wy.weights.view(B * Ny, Ty, Ly).mT)
    tiles = _windows(strips.view(B, Ny, W, C * Ty), wx.starts, Lx).view(B * Nx, Lx, Ny * C * Ty)
    tiles = torch.bmm(tiles.mT, wx.weights.view(B * Nx, Tx, Lx).mT)
    return tiles.view(B, Nx, Ny, C, Ty, Tx).permute(0, 3, 2, 4, 1, 5).reshape(B, C, Ny * Ty, Nx * Tx)


def _windows(lines: Tensor, starts: Tensor, window: int) -> Tensor:
    """Lines start .. start + window - 1: lines (B, M, R, width), starts (B, N) -> (B, N, window, M, width)."""
    B, M, R, width = lines.shape
    if M == 1 and window == R:  # a single tile reads everything
        return lines.view(B, 1, R, 1, width)
    number = starts[:, :, None] + torch.arange(window, device=lines.device)
    first = torch.arange(B * M, device=lines.device).view(B, 1, 1, M) * R
    number = number[..., None] + first
    return lines.reshape(B * M * R, width).index_select(0, number.flatten()).view(*number.shape, width)
