"""One folder with every broken kind of file: the run finishes, and each is listed."""

import json

import numpy as np
import pytest
from PIL import Image

from attar import stages
from attar.errors import DataError
from attar.train.log import read_json_lines


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for i in range(40):
        pixels = noise.integers(0, 256, (24, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "deep" / f"{i:02d}.{'jpg' if i % 2 else 'png'}")
    colour = Image.fromarray(noise.integers(0, 256, (24, 30, 3), np.uint8))
    for mode, name in (("L", "grey.png"), ("RGBA", "alpha.png"), ("P", "palette.gif"), ("CMYK", "print.jpg")):
        colour.convert(mode).save(folder / name)
    Image.fromarray(noise.integers(0, 65536, (24, 30)).astype(np.uint16)).save(folder / "deep" / "er" / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=turned)
    whole = (folder / "deep" / "01.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "notes.txt").write_text("ignored")
    return folder


def test_broken_files_are_listed_and_do_not_stop_the_run(photos, tmp_path):
    run = stages.pretrain(
        photos,
        out=tmp_path / "run",
        backbone="resnet8x0.5",
        image_size=16,
        epochs=2,
        batch_size=8,
        cache=tmp_path / "cache",
        progress=False,
    )
    broken = json.loads((run.path / "broken.json").read_text())
    assert {b["where"].rsplit("/", 1)[-1] for b in broken} == {"cut.jpg", "empty.png", "text.jpg"}
    assert all(b["reason"] for b in broken)
    assert run.recipe["data"]["num_images"] == 46
    assert len(read_json_lines(run.path / "metrics.jsonl")) == 2 * (46 // 8)
    page = stages.report([run.path], out=tmp_path / "r.html").read_text()
    assert "empty.png" in page


def test_only_broken_files_are_a_clear_error(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no picture")
    with pytest.raises(DataError, match="a.jpg"):
        stages.pretrain(tmp_path / "photos", out=tmp_path / "run", backbone="resnet8", cache=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_a_float_that_overflows_stops_with_the_step_and_leaves_the_checkpoint(tmp_path):
    from attar.errors import TrainingError
    from attar.train.checkpoint import load_checkpoint

    with pytest.raises(TrainingError, match=r"not finite at step \d+"):
        stages.pretrain(
            "digits",
            out=tmp_path / "run",
            method="rotation",
            backbone="resnet8x0.5",
            image_size=8,
            epochs=3,
            batch_size=128,
            settings={"lr": 1e30},
            precision="fp32",
            checkpoint_steps=1,
            progress=False,
        )
    state = load_checkpoint(tmp_path / "run" / "checkpoint")
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] in ("nan", "inf") and state["step"] == rows[-1]["step"]
