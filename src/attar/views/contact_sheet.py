"""A picture of the views a network really sees: one row an image, one column a view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attar.data.images import ImageSpec
from attar.errors import ShapeError
from attar.views.batches import Batch

# pixels: side of a picture, space between, row labels, column labels, a line below a picture
CELL, GAP, LEFT, TOP, LINE = 112, 4, 64, 22, 16


def contact_sheet(batch: Batch, image: ImageSpec, num_images: int = 8) -> Image.Image:
    """The first images of a batch, normalisation undone. Columns carry the view's name and size, rows the sample id;
    where the batch has captions (name -> one text an image), they stand below the pictures of that name.

    One channel is shown as grey, two as the first alone, more as the first three.

    Raises:
        ShapeError: if the pictures do not have the channels of the ImageSpec, or num_images < 1.
    """
    pictures = batch.pictures()
    num_images = min(num_images, len(batch.index))
    if num_images < 1:
        raise ShapeError("contact_sheet: no images to show; give a batch that is not empty and num_images >= 1.")
    captions: Mapping[str, Sequence[str]] = getattr(batch, "captions", {})
    height = CELL + GAP + (LINE if captions else 0)
    sheet = Image.new("RGB", (LEFT + len(pictures) * (CELL + GAP), TOP + num_images * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, index in enumerate(batch.index[:num_images].tolist()):
        draw.text((4, TOP + row * height + CELL // 2), f"# {index}", "black", font, anchor="lm")
    for column, (name, images) in enumerate(pictures.items()):
        left = LEFT + column * (CELL + GAP)
        draw.text((left + CELL // 2, TOP // 2), f"{name}, {images.shape[-1]} px", "black", font, anchor="mm")
        for row, picture in enumerate(_as_rgb(images[:num_images], image)):
            cell = Image.fromarray(picture.numpy()).resize((CELL, CELL), _kernel(picture))
            sheet.paste(cell, (left, TOP + row * height))
            if name in captions:
                below = (left + CELL // 2, TOP + row * height + CELL + LINE // 2)
                draw.text(below, captions[name][row], "black", font, anchor="mm")
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
