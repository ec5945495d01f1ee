"""One encoded image -> uint8 pixels (H, W, C), at most `canvas` a side. Leaves out ICC profiles and later frames.

What happens to unusual images:
- EXIF orientation is applied.
- Transparency (RGBA, LA, palette) is composited onto white.
- 16-bit values are scaled, not clipped: the full range 0..65535 maps to 0..255 (division by 257), the same for every
  image, so brightness stays comparable. Floats must lie in [0, 1]; 32-bit integers in 0..65535.
- CMYK, Lab, HSV and YCbCr become RGB; RGB becomes grey by ITU-R 601 luma where one channel is wanted.
- Other numbers of channels come from .npy files and multi-band .tif files, as they are stored.
- A truncated, empty, foreign or over-large file (decompression bomb) raises `Unusable` with the reason.
Images are shrunk with antialiasing, never enlarged. A JPEG is decoded at reduced size where that suffices.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

Encoded = bytes | str | os.PathLike | Image.Image | np.ndarray

# Formats that PIL knows by name but that run other programs, hold no raster, or are read by nobody.
_LEFT_OUT = {"EPS", "PDF", "MPEG", "WMF", "HDF5", "GRIB", "BUFR"}
_USUAL = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO")
_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_ORIENTATION = 0x0112  # EXIF tag
_NPY_MAGIC = b"\x93NUMPY"


class Unusable(Exception):
    """This image cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Header:
    """What an image says about itself before it is decoded. bits: of one channel."""

    format: str
    mode: str
    width: int
    height: int
    bits: int

    @property
    def is_grey(self) -> bool:
        return self.mode in _GREY


@cache
def readable_formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read, the usual ones first."""
    Image.init()
    known = [name for name in Image.OPEN if name not in _LEFT_OUT]
    return tuple(sorted(known, key=lambda name: _USUAL.index(name) if name in _USUAL else len(_USUAL)))


@cache
def image_extensions() -> frozenset[str]:
    """File name endings that count as images, lower case with the dot: PIL's, and .npy."""
    formats = set(readable_formats())
    return frozenset(ext for ext, name in Image.registered_extensions().items() if name in formats) | {".npy"}


def probe(data: Encoded) -> Header:
    """Format, mode and size; reads the header only.

    Raises:
        Unusable: with the reason.
    """
    with reasons(), _opened(data) as image:
        if isinstance(image, np.ndarray):
            return _array_header(image)
        return header_of(image)


def header_of(image: Image.Image) -> Header:
    mode = image.mode
    bits = 16 if mode.startswith("I;16") else {"1": 1, "I": 32, "F": 32}.get(mode, 8)
    if "16" in str([getattr(tile, "args", "") for tile in getattr(image, "tile", [])]):
        bits = 16  # 16-bit colour, which PIL reduces to 8 while decoding (raw mode RGB;16B)
    return Header(image.format or "PIL", mode, *image.size, bits)


def decode(data: Encoded, *, canvas: int, channels: int) -> np.ndarray:
    """Decode and shrink.

    Args:
        data: encoded bytes, a path, a PIL image, or an array (H, W) or (H, W, C) of uint8 or uint16.
        canvas: largest side in pixels of the result; smaller images keep their size.
        channels: 1 grey, 3 RGB, otherwise exactly as many as stored.

    Returns:
        uint8 (h, w, channels), h and w <= canvas, contiguous.

    Raises:
        Unusable: with the reason.
    """
    with reasons(), _opened(data, as_stored=channels not in (1, 3)) as image:
        if isinstance(image, np.ndarray):
            return fit_array(image, canvas=canvas, channels=channels)
        image.draft("L" if channels == 1 else None, _drafted_size(image.size, canvas))  # type: ignore[arg-type]
        image.load()
        turn = image.getexif().get(_ORIENTATION, 1)
        small = _shrink(_in_mode(image, channels), canvas)
        return _as_array(small.transpose(_TURNS[turn]) if turn in _TURNS else small)


def _drafted_size(size: tuple[int, int], canvas: int) -> tuple[int, int]:
    """Twice the size that will be kept, so that the antialiasing is ours and the codec's coarse one hardly matters."""
    scale = min(2 * canvas / max(size), 1.0)
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


_TURNS = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _in_mode(image: Image.Image, channels: int) -> Image.Image:
    """8 bits a channel, no transparency, grey or RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if channels == 4:
        return image.convert("RGBA")
    if channels not in (1, 3):
        raise Unusable(f"{len(image.getbands())} channels where {channels} are wanted")
    wanted = "L" if channels == 1 else "RGB"
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode in ("LAB", "HSV", "CMYK") and wanted == "L":
        image = image.convert("RGB")
    return image if image.mode == wanted else image.convert(wanted)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8, the full 16-bit range scaled; see the module's text."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses NaN
            raise Unusable("floating-point pixels outside [0, 1]")
        return (pixels * 255 + 0.5).astype(np.uint8)
    if pixels.dtype.kind in "iu":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise Unusable("integer pixels outside 0..65535")
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise Unusable(f"pixels of type {pixels.dtype}; accepted are uint8, uint16 and floats in [0, 1]")


def _shrink(image: Image.Image, canvas: int) -> Image.Image:
    scale = canvas / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _as_array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[..., None] if pixels.ndim == 2 else pixels)


def fit_array(pixels: np.ndarray, *, canvas: int, channels: int) -> np.ndarray:
    """The same as `decode`, for pixels (H, W) or (H, W, C) that are decoded already."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise Unusable(f"an array of shape {pixels.shape}; accepted are (H, W) and (H, W, C)")
    pixels = to_channels(_eight_bits(pixels), channels)
    if max(pixels.shape[:2]) > canvas:
        if pixels.shape[2] == 3:
            return _as_array(_shrink(Image.fromarray(np.ascontiguousarray(pixels)), canvas))
        planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[2])]
        pixels = np.stack([np.asarray(_shrink(plane, canvas)) for plane in planes], axis=-1)
    return np.ascontiguousarray(pixels)


def to_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (..., C) with this many channels: grey is repeated, RGB weighted by ITU-R 601 luma, alpha put on white."""
    stored = pixels.shape[-1]
    if stored == channels:
        return pixels
    if channels in (1, 3) and stored in (2, 4):
        alpha = pixels[..., -1:].astype(np.uint32)
        pixels = ((pixels[..., :-1] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        return to_channels(pixels, channels)
    if stored == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    if stored == 3 and channels == 1:
        luma = pixels @ np.array([19595, 38470, 7471], np.uint32) + 32768  # 0.299, 0.587, 0.114 in 1/65536
        return (luma >> 16).astype(np.uint8)[..., None]
    raise Unusable(f"{stored} channels where {channels} are wanted")


@contextmanager
def _opened(data: Encoded, *, as_stored: bool = False) -> Iterator[Any]:
    """A PIL image, or an array for .npy and for .tif files that PIL cannot read (or whose bands are wanted)."""
    if isinstance(data, (Image.Image, np.ndarray)):
        yield data
        return
    with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as file:
        head = file.read(16)
        file.seek(0)
        if not head:
            raise Unusable("empty file (0 bytes)")
        if head.startswith(_NPY_MAGIC):
            yield np.load(file, allow_pickle=False)
            return
        is_tiff = head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        if is_tiff and as_stored:
            yield _read_tiff(file)
            return
        try:
            image: Any = Image.open(file, formats=readable_formats())
        except UnidentifiedImageError:
            if not is_tiff:
                raise
            file.seek(0)
            yield _read_tiff(file)  # bands or sample types that PIL has no mode for
            return
        with image:
            yield image


def _read_tiff(file: Any) -> np.ndarray:
    """(H, W, C) of a TIFF with any number of bands; pages of one size count as bands."""
    import tifffile

    pixels = tifffile.imread(file)
    if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def _array_header(pixels: np.ndarray) -> Header:
    bands = 1 if pixels.ndim == 2 else pixels.shape[-1]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(bands, f"{bands} channels")
    return Header("array", mode, pixels.shape[1], pixels.shape[0], pixels.dtype.itemsize * 8)


@contextmanager
def reasons() -> Iterator[None]:
    """Every failure becomes Unusable with a reason that a person understands.

    Damaged files make decoders raise nearly anything (struct.error, KeyError, zlib.error, SyntaxError, …), so
    everything is caught except what is no property of the file.
    """
    try:
        yield
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("no such file") from None
    except IsADirectoryError:
        raise Unusable("a folder, not a file") from None
    except PermissionError:
        raise Unusable("permission denied") from None
    except UnidentifiedImageError:
        raise Unusable("not an image, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise Unusable(f"too large ({pixels[0] if pixels else 'very many'} pixels): a decompression bomb?") from None
    except MemoryError:
        raise Unusable("too large for the memory") from None
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        word = "truncated: " if "truncat" in text.lower() and not text.lower().startswith("truncat") else ""
        raise Unusable(f"damaged: {word}{text}") from None
