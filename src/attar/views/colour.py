"""Colour operations with one parameter per sample, on images in [0, 1], (B, C, H, W).

Equal to torchvision's on the same parameters for one and three channels. For any other number of channels grey is
the mean of the channels and hue is not defined. Grey images have no saturation or hue to change: both leave them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attar.errors import ShapeError

_LUMA = (0.2989, 0.587, 0.114)  # as torchvision


def greyscale(images: Tensor) -> Tensor:
    """The grey picture, (B, 1, H, W): luma of RGB, otherwise the mean of the channels."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def to_grey(images: Tensor) -> Tensor:
    """The grey picture in every channel."""
    return greyscale(images).expand_as(images).contiguous()


def solarise(images: Tensor) -> Tensor:
    """Invert every value from 0.5 on: the smaller of x and 1 - x."""
    return torch.minimum(images, 1 - images)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; factor (B,) >= 0, 1 changes nothing."""
    return _blend_(images.clone(), factor, torch.zeros_like(factor), torch.zeros_like(factor))


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the picture's mean grey; factor (B,) >= 0, 1 changes nothing."""
    return _blend_(images.clone(), factor, torch.zeros_like(factor), torch.ones_like(factor))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey picture; factor (B,) >= 0, 1 changes nothing."""
    return _blend_(images.clone(), factor, torch.ones_like(factor), torch.zeros_like(factor))


def _blend_(images: Tensor, factor: Tensor, with_grey: Tensor, with_mean: Tensor) -> Tensor:
    """In place: factor * image + (1 - factor) * (with_grey * grey + with_mean * mean grey), clamped to [0, 1].

    Brightness, contrast and saturation are this one operation with other weights, (B,), so a batch in which every
    sample takes them in its own order needs no branches. factor = 1 returns the sample bit by bit.
    """
    column = lambda values: values.view(-1, 1, 1, 1)  # noqa: E731
    grey = greyscale(images)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    target = (grey * column((1 - factor) * with_grey)).add_(mean * column((1 - factor) * with_mean))
    return torch.addcmul(target, images, column(factor), out=images).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by shift (B,) in [-0.5, 0.5] of a full turn. Grey images do not change.

    With channels scaled so that the smallest is 0 and the largest 1, the hue in sixths of a turn is
    +-(green + blue - red + 1), negative where blue exceeds green; and back, with hue in [0, 6),
    red = |hue - 3| - 1, green = 2 - |hue - 2|, blue = 2 - |hue - 4|, each clamped to [0, 1].
    (The textbook's case by case selection gives the same numbers at five times the cost on a CPU.)

    Raises:
        ShapeError: for images with neither one nor three channels.
    """
    require_hue(images.shape[1])
    return _turn_hue_(images.clone(), shift)


def _turn_hue_(images: Tensor, shift: Tensor) -> Tensor:
    """In place."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    smallest = images.amin(dim=1, keepdim=True)
    chroma = images.amax(dim=1, keepdim=True).sub_(smallest)
    hue = (green + blue).sub_(red).sub_(smallest).div_(chroma.clamp(min=1e-12)).add_(1)
    hue = hue.copysign_(green - blue).div_(6).add_(shift.view(-1, 1, 1, 1) + 1).frac_().mul_(6)
    for channel, centre, sign, offset in ((red, 3, 1, -1), (green, 2, -1, 2), (blue, 4, -1, 2)):
        scaled = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(smallest, chroma, scaled, out=channel)
    return images


def require_hue(channels: int) -> None:
    """Hue needs colour.

    Raises:
        ShapeError: for a number of channels that has no hue.
    """
    if channels not in (1, 3):
        raise ShapeError(
            f"colour: hue is defined for 3 channels (and does nothing for 1), these images have {channels}; "
            "set the hue strength of the jitter to 0, e.g. jitter=(0.4, 0.4, 0.4, 0)."
        )


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def colour_jitter_(images: Tensor, factors: Tensor, order: Tensor, *, with_hue: bool = True) -> Tensor:
    """In place: brightness, contrast, saturation and hue, every sample with its own factors in its own order.

    Hue is the dear one, so it runs once, between what comes before it in a sample's order and what comes after.

    Args:
        images: in [0, 1], (B, C, H, W).
        factors: (B, 4): of brightness, contrast and saturation (1 changes nothing), and the hue shift (0).
        order: permutation of 0..3 per sample, (B, 4): the operation at each position, numbered as the columns.
        with_hue: False leaves the hue alone (all shifts are known to be 0).
    """
    place_of_hue = (order == HUE).int().argmax(dim=1)
    chosen = factors.gather(1, order)  # the factor at each position

    def blend_(position: int, active: Tensor) -> None:
        """The operation at this position, for samples where it is active; the identity for the others."""
        if images.device.type == "cpu" and not active.any():  # elsewhere, to ask would be to wait
            return
        kind = order[:, position]
        factor = torch.where(active, chosen[:, position], 1.0)
        _blend_(images, factor, (kind == SATURATION).to(factor), (kind == CONTRAST).to(factor))

    if not with_hue:
        for position in range(4):
            blend_(position, place_of_hue.ne(position))
        return images
    for position in (0, 1, 2):
        blend_(position, position < place_of_hue)
    _turn_hue_(images, factors[:, HUE])
    for position in (1, 2, 3):
        blend_(position, position > place_of_hue)
    return images


def contrast_of_components(images: Tensor, factors: Tensor) -> Tensor:
    """Stretch each image's colours along the principal components of its own pixels, about their mean.

    Args:
        images: (B, C, H, W). factors: (B, C), of the components, that of largest variance first; 1 changes nothing.
    """
    pixels = images.flatten(2)
    mean = pixels.mean(dim=2, keepdim=True)
    centred = pixels - mean
    _, directions = torch.linalg.eigh(centred @ centred.mT)  # variances rise; directions are columns
    stretch = (directions * factors.flip(1)[:, None]) @ directions.mT
    return (stretch @ centred + mean).view_as(images)


def contrast_of_hsv(images: Tensor, power: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Saturation and value of HSV become factor * s^power + offset, clamped to [0, 1]; the hue stays.

    A channel is v (1 - s k), v the largest channel, s = (v - smallest) / v, and k in [0, 1], which the hue alone
    decides. Grey has no hue and stays grey. Images of one channel have a value only.

    Args:
        images: in [0, 1], (B, C, H, W). power, factor, offset: (B, 2), of saturation and of value.
    """
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    hue = (value - images) / chroma.clamp(min=1e-12)  # k
    saturation = chroma / value.clamp(min=1e-12)
    changed = []
    for i, component in enumerate((saturation, value)):
        p, f, o = (given[:, i].view(-1, 1, 1, 1) for given in (power, factor, offset))
        changed.append((component**p * f + o).clamp_(0, 1))
    return changed[1] * (1 - changed[0] * hue)


def rgb_to_lab(images: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB images in [0, 1], white point D65: L in [0, 100], a in [-86.2, 98.2], b in [-107.9, 94.5].

    Sums instead of a matrix product, so that autocast leaves the conversion in float32.

    Args:
        images: (B, 3, H, W); values outside [0, 1] are clamped.

    Raises:
        ShapeError: for images without three channels.

    Source: IEC 61966-2-1 (sRGB) and CIE 15 (L*a*b*).
    """
    if images.shape[1] != 3:
        raise ShapeError(f"rgb_to_lab: the images have {images.shape[1]} channels; Lab is defined for 3 (RGB).")
    values = images.float().clamp(0, 1)
    linear = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.split(1, dim=1)
    x, y, z = (_cube_root(r * red + g * green + b * blue) for r, g, b in _RGB_TO_XYZ)
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


_RGB_TO_XYZ = (  # rows divided by the white point (0.95047, 1, 1.08883), so each sums to 1
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)


def _cube_root(t: Tensor) -> Tensor:
    """CIE's f: the cube root, with a straight line near 0."""
    threshold = (6 / 29) ** 3
    return torch.where(t > threshold, t.clamp(min=threshold) ** (1 / 3), t / (3 * (6 / 29) ** 2) + 4 / 29)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours that sRGB cannot show are clamped to [0, 1].

    Args:
        lab: (B, 3, H, W): L in [0, 100], a, b.

    Source: as `rgb_to_lab`.
    """
    if lab.shape[1] != 3:
        raise ShapeError(f"lab_to_rgb: the images have {lab.shape[1]} channels; L, a and b are needed.")
    light, a, b = lab.float().split(1, dim=1)
    y = (light + 16) / 116
    xyz = [torch.where(t > 6 / 29, t**3, 3 * (6 / 29) ** 2 * (t - 4 / 29)) for t in (y + a / 500, y, y - b / 200)]
    inverse = torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)).tolist()
    linear = torch.cat([sum(w * t for w, t in zip(row, xyz)) for row in inverse], dim=1)  # type: ignore[misc]
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curved).clamp_(0, 1)
