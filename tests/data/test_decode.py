"""One image of every kind becomes the pixels it should, or a reason."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from attar.data.decode import Unusable, decode, fit_array, probe, to_channels


def test_pixels_of_a_small_image_are_untouched(make):
    image = make.picture()
    assert (decode(make.encoded(image), canvas=64, channels=3) == np.asarray(image)).all()


def test_shrinks_with_antialias_and_never_enlarges(make):
    image = make.picture(width=300, height=200)
    found = decode(make.encoded(image), canvas=60, channels=3)
    assert found.shape == (40, 60, 3)
    expected = np.asarray(image.resize((60, 40), Image.Resampling.LANCZOS)).astype(int)
    assert abs(found - expected).mean() < 1
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    grey = decode(make.encoded(stripes), canvas=16, channels=1)
    assert abs(grey[2:-2, 2:-2].astype(int) - 127).max() <= 2  # aliasing would give 0 or 255
    assert decode(make.encoded(image), canvas=500, channels=3).shape == (200, 300, 3)


def test_jpeg_is_decoded_at_reduced_size_without_harm(make):
    image = make.picture(width=800, height=600)
    found = decode(make.encoded(image, "JPEG", quality=95), canvas=64, channels=3)
    assert found.shape == (48, 64, 3)
    assert abs(found - np.asarray(image.resize((64, 48), Image.Resampling.LANCZOS)).astype(int)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(make, orientation):
    image = make.picture(width=48, height=32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = make.encoded(image, "PNG", exif=exif)
    import io

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    assert (decode(stored, canvas=64, channels=3) == np.asarray(expected)).all()


def test_sixteen_bits_are_scaled_not_clipped(make):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        found = decode(make.encoded(Image.fromarray(ramp), format), canvas=16, channels=1)
        assert (found[..., 0] == np.arange(256).reshape(16, 16)).all()
    colour = decode(make.png16(np.stack([ramp] * 3, -1)), canvas=16, channels=3)
    assert abs(colour[..., 1].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    assert probe(make.encoded(Image.fromarray(ramp))).bits == 16
    assert probe(make.png16(np.stack([ramp] * 3, -1))).bits == 16


def test_transparency_is_put_on_white(make):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 10, 10, 255)
    found = decode(make.encoded(Image.fromarray(pixels)), canvas=8, channels=3)
    assert (found[:2] == (200, 10, 10)).all() and (found[2:] == 255).all()
    palette = Image.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    found = decode(make.encoded(palette, "PNG", transparency=0), canvas=8, channels=1)
    assert (found == 255).all()
    assert (to_channels(pixels, 3) == decode(make.encoded(Image.fromarray(pixels)), canvas=8, channels=3)).all()


def test_cmyk_becomes_rgb(make):
    image = make.picture()
    found = decode(make.encoded(image.convert("CMYK"), "JPEG", quality=95), canvas=64, channels=3)
    assert abs(found - np.asarray(image).astype(int)).mean() < 6


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_in_one_folder(make, tmp_path, channels):
    good, broken = make.zoo(tmp_path / "zoo")
    for name in good:
        found = decode(tmp_path / "zoo" / name, canvas=40, channels=channels)
        assert found.dtype == np.uint8 and found.shape[2] == channels and max(found.shape[:2]) <= 40, name
    for name, reason in broken.items():
        with pytest.raises(Unusable, match=reason):
            decode(tmp_path / "zoo" / name, canvas=40, channels=channels)


def test_decompression_bomb(make, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unusable, match=r"too large .*bomb"):
        decode(make.encoded(make.picture()), canvas=32, channels=3)


def test_any_number_of_channels_from_arrays_and_tiff(make, tmp_path):
    import tifffile

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)
    np.save(tmp_path / "five.npy", pixels)
    tifffile.imwrite(tmp_path / "five.tif", pixels, photometric="minisblack", planarconfig="contig")
    for name in ("five.npy", "five.tif"):
        assert (decode(tmp_path / name, canvas=32, channels=5) == pixels).all()
    assert decode(tmp_path / "five.npy", canvas=15, channels=5).shape == (10, 15, 5)
    with pytest.raises(Unusable, match="5 channels where 3 are wanted"):
        decode(tmp_path / "five.tif", canvas=32, channels=3)


def test_grey_and_colour_arrays():
    grey = np.full((4, 6), 100, np.uint8)
    assert fit_array(grey, canvas=8, channels=3).shape == (4, 6, 3)
    colour = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    assert (fit_array(colour, canvas=9, channels=1)[..., 0] == luma).all()
    with pytest.raises(Unusable, match="shape"):
        fit_array(np.zeros((2, 2, 2, 2), np.uint8), canvas=8, channels=3)
    with pytest.raises(Unusable, match=r"outside \[0, 1\]"):
        fit_array(np.full((2, 2), np.nan), canvas=8, channels=1)
