"""Small images of every kind, made on the fly."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def picture(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    """A smooth colour picture that differs by seed and survives JPEG."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    a, b, c = np.random.default_rng(seed).uniform(2, 9, 3)
    planes = [np.sin(a * x + b * y), np.cos(c * x - a * y), np.sin(b * x * y * 9 + c)]
    return Image.fromarray(((np.stack(planes, -1) + 1) * 127).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which PIL cannot write: (H, W, 3) uint16."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_folder(root: Path, number: int = 6, *, classes: tuple[str, ...] = ()) -> Path:
    """PNG files 0.png …, spread over class folders where given."""
    for i in range(number):
        folder = root / classes[i % len(classes)] if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    return root


def write_zoo(root: Path) -> tuple[set[str], dict[str, str]]:
    """Every kind of file in one folder. Returns the names of good ones, and of broken ones what their reason holds."""
    root.mkdir(parents=True, exist_ok=True)
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)
    good = {
        "grey.png": encoded(image.convert("L")),
        "bilevel.png": encoded(image.convert("1")),
        "rgba.png": encoded(image.convert("RGBA")),
        "grey_alpha.png": encoded(image.convert("LA")),
        "palette.png": encoded(image.quantize(16)),
        "palette_transparent.gif": encoded(image.quantize(16), "GIF", transparency=0),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "deep.png": encoded(Image.fromarray(deep)),
        "deep.tif": encoded(Image.fromarray(deep), "TIFF"),
        "deep_colour.png": png16(np.stack([deep] * 3, -1)),
        "turned.JPG": encoded(image, "JPEG", exif=exif),
        "sub/deeper/normal.jpeg": encoded(image, "JPEG"),
        "frames.webp": encoded(image, "WEBP", save_all=True, append_images=[picture(1)]),
        "bitmap.bmp": encoded(image, "BMP"),
        "float.tif": encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"),
        "wrong_ending.png": encoded(image, "JPEG"),
        "one_pixel.png": encoded(image.resize((1, 1))),
    }
    whole = encoded(image.resize((300, 200)), "JPEG")
    broken = {
        "empty.jpg": (b"", "empty file"),
        "text.png": (b"<html>404 not found</html>", "not an image"),
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "cut.png": (encoded(image)[:300], "truncated"),
        "cut_header.png": (encoded(image)[:12], "not an image"),
        "float_range.tif": (encoded(Image.fromarray(np.full((8, 8), 7.5, np.float32)), "TIFF"), "outside"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        "objects.npy": (b"\x93NUMPY\x01\x00", "damaged"),
    }
    for name, content in [*good.items(), *((n, c) for n, (c, _) in broken.items())]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "notes.txt").write_text("not meant as an image")
    (root / ".hidden.png").write_bytes(b"")
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    return set(good), {name: reason for name, (_, reason) in broken.items()} | {"dangling.png": "no such file"}


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions above, for tests."""
    return SimpleNamespace(picture=picture, encoded=encoded, png16=png16, folder=write_folder, zoo=write_zoo)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache."""
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
