"""A picture of the views a network really sees: one row an image, one column a view."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import ShapeError
from attar.views.batches import Batch

CELL, GAP, LEFT, TOP = 112, 4, 64, 22  # pixels: side of a picture, space between, row labels, column labels


def contact_sheet(batch: Batch, image: ImageSpec, num_images: int = 8) -> Image.Image:
    """The first images of a batch, normalisation undone. Columns carry the view's name and size, rows the sample id.

    One channel is shown as grey, two as the first alone, more as the first three.

    Raises:
        ShapeError: if the pictures do not have the channels of the ImageSpec, or num_images < 1.
    """
    pictures = batch.pictures()
    num_images = min(num_images, len(batch.index))
    if num_images < 1:
        raise ShapeError("contact_sheet: no images to show; give a batch that is not empty and num_images >= 1.")
    sheet = Image.new("RGB", (LEFT + len(pictures) * (CELL + GAP), TOP + num_images * (CELL + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, index in enumerate(batch.index[:num_images].tolist()):
        draw.text((4, TOP + row * (CELL + GAP) + CELL // 2), f"# {index}", "black", font, anchor="lm")
    for column, (name, images) in enumerate(pictures.items()):
        left = LEFT + column * (CELL + GAP)
        draw.text((left + CELL // 2, TOP // 2), f"{name}, {images.shape[-1]} px", "black", font, anchor="mm")
        for row, picture in enumerate(_as_rgb(images[:num_images], image)):
            cell = Image.fromarray(picture.numpy()).resize((CELL, CELL), _kernel(picture))
            sheet.paste(cell, (left, TOP + row * (CELL + GAP)))
    return sheet


def _kernel(picture: Tensor) -> Image.Resampling:
    """Small pictures show their pixels."""
    return Image.Resampling.NEAREST if len(picture) < CELL else Image.Resampling.BOX


def _as_rgb(images: Tensor, image: ImageSpec) -> Tensor:
    """Normalised (B, C, H, W) -> uint8 (B, H, W, 3) on the CPU."""
    if images.ndim != 4 or images.shape[1] != image.channels:
        raise ShapeError(
            f"contact_sheet: pictures of shape {tuple(images.shape)}; the ImageSpec has {image.channels} channels, "
            "so (B, C, H, W) with that C is needed."
        )
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image.mean, image.std))
    pixels = (images.detach().float().cpu() * std + mean).clamp(0, 1)
    pixels = pixels[:, :3] if image.channels >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).contiguous()
