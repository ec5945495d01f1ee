"""The report: one file, with what the folders hold, and a reason where they hold nothing."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from attar import stages
from attar.errors import CheckpointError, RunError
from attar.models.clusters import load_clusters
from attar.reporting.gallery import collect_gallery, map_of
from attar.reporting.page import RunContent, key_figures, write_report
from attar.reporting.plots import HEIGHT, Line, line_plot, smoothed, ticks
from attar.reporting.tradeoff import Point, not_beaten

EVIL = "<script>alert('x')</script>.jpg"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short, real run on digits, evaluated."""
    out = tmp_path_factory.mktemp("runs") / "student"
    settings = dict(backbone="resnet8x0.5", image_size=8, epochs=1, batch_size=256, progress=False)
    stages.pretrain("digits", out=out, **settings)
    quickly = {"num_untrained": 1, "progress": False}
    stages.evaluate(out, "digits", protocols=("knn", "low_label:0.1,1,num_seeds=2"), **quickly)
    (out / "broken.json").write_text(json.dumps([{"index": 3, "where": EVIL, "reason": "truncated"}]))
    return out


class Page(HTMLParser):
    """Section ids, attributes that load something, and the text outside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.loads, self.words, self.tags, self._hidden = [], [], [], [], False
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._hidden = tag in ("script", "style")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)


def test_what_a_vision_transformer_looks_at_is_in_its_report(finished, tmp_path):
    settings = {"num_local_views": 0, "num_prototypes": 64, "projector_hidden_dim": 32}
    made = dict(method="dino", backbone="vit_micro_p8", image_size=16, epochs=1, batch_size=256, progress=False)
    run = tmp_path / "dino"
    stages.pretrain("digits", out=run, settings=settings, **made)
    with Image.open(run / "attention.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100, "images, not a blank sheet"
    said = "Where the class token of the last block looks"
    for folder, there in ((run, True), (finished, False)):
        page = Page(stages.report([folder], out=tmp_path / "report.html").read_text())
        assert (said in page.text) == there
    attended = "data:image/png;base64," + base64.b64encode((run / "attention.png").read_bytes()).decode()
    assert attended in (stages.report([run], out=tmp_path / "report.html")).read_text()


def test_networks_kept_in_a_run_stand_beside_it(tmp_path):
    """A momentum teacher is evaluated like a run; what was measured on other data is not compared."""
    settings = {"num_local_views": 0, "num_prototypes": 64, "projector_hidden_dim": 32}
    made = dict(method="dino", backbone="resnet8x0.5", image_size=8, epochs=1, batch_size=256, progress=False)
    run, kept = tmp_path / "run", tmp_path / "run" / "teacher"
    stages.pretrain("digits", out=run, settings=settings, **made)
    measure = {"protocols": ("knn", "layers"), "controls": ("pixels",), "progress": False}
    evaluated = {folder: stages.evaluate(folder, "digits", **measure).rows for folder in (run, kept)}
    own, other = ([row for row in rows if row["subject"] == "model"] for rows in evaluated.values())
    shutil.copytree(kept, run / "of another method")  # has no part in this run
    saved = json.loads((run / "of another method" / "backbone.json").read_text())
    del saved["provenance"]["part"]
    (run / "of another method" / "backbone.json").write_text(json.dumps(saved))

    text = stages.report([run], out=tmp_path / "report.html").read_text()
    table = text[text.index("Networks kept beside it") :].split("</table>")[0]
    words = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table)
    assert words[:4] == ["", "run", "run/teacher", "top-1 accuracy, k nearest neighbours"]
    shown = [f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for pair in zip(own, other) for row in pair]
    assert [word for word in words[3:] if " [" in word] == shown
    assert own[0]["value"] != other[0]["value"], "two networks"

    for name in ("evaluation.json", "evaluation_details.json"):
        (run / name).rename(tmp_path / name)
    alone = stages.report([run], out=tmp_path / "report.html").read_text()
    assert shown[1] in alone and shown[0] not in alone, "the run itself was not evaluated"
    for name in ("evaluation.json", "evaluation_details.json"):
        (tmp_path / name).rename(run / name)

    details = json.loads((kept / "evaluation_details.json").read_text())
    (kept / "evaluation_details.json").write_text(json.dumps(details | {"data": "other"}))
    assert "Networks kept beside it" not in stages.report([run], out=tmp_path / "report.html").read_text()


def test_the_page_has_every_section_and_asks_nothing_of_the_network(finished, tmp_path):
    text = stages.report([finished], out=tmp_path / "report.html").read_text()
    page = Page(text)
    assert {"controls", "confusion", "gallery", "views", "curves", "health", "lineage", "loading"} <= set(page.ids)
    assert page.loads and all(value.startswith("data:") for value in page.loads)
    assert not re.search(r"url\((?!\$\{data)", text) and "@import" not in text
    assert len(text) < 5_000_000
    assert "Left out" not in page.text


def test_the_numbers_are_those_of_the_run(finished, tmp_path):
    page = Page(write_report([finished], tmp_path / "r.html").read_text())
    evaluation = json.loads((finished / "evaluation.json").read_text())
    for line in evaluation["verdict"].splitlines()[1:]:
        assert line in page.text
    row = next(r for r in evaluation["rows"] if r["protocol"] == "knn" and r["subject"] == "hog")
    assert f"{row['value']:.3f}" in page.text
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert recipe["data"]["digest"][:12] in page.text
    assert sum(page.tags.count(tag) for tag in ("polyline",)) >= 5


def test_raw_values_stay_inside_the_plot_of_their_smooth_line():
    plot = line_plot([Line("loss", x=[0, 1, 2], y=[1.0, 2.0, 1.0], faint=[1.0, 90.0, -90.0])], x_label="", y_label="")
    heights = [float(point.split(",")[1]) for line in re.findall('points="(.*?)"', plot) for point in line.split()]
    assert len(heights) == 6 and min(heights) >= 0 and max(heights) <= HEIGHT


@pytest.mark.parametrize(("teacher", "shown"), [(0.9, ["80 %"]), (0.6, []), (0.4, [])])
def test_how_much_a_student_keeps_is_told_of_a_teacher_above_untrained_networks(finished, teacher, shown):
    run = RunContent.read(finished)
    alike = {"protocol": "knn", "variant": "", "metric": "top1", "model_value": 0.74}
    run.details.update(protocol="knn", variant="", metric="top1", chance=0.1)
    run.details["comparisons"] = [
        {**alike, "subject": "random_init", "value": 0.6},
        {**alike, "subject": "teacher", "value": teacher},
    ]
    assert [value for value, what, _ in key_figures(run) if what == "of the teacher"] == shown


@pytest.mark.slow
def test_layers_are_a_curve_over_depth_beside_level_lines(finished, tmp_path):
    run = tmp_path / "layers"
    shutil.copytree(finished, run)
    protocols = ("layers:50", "mlp:8,learning_rates=1e-2,epochs=1")
    stages.evaluate(run, "digits", protocols=protocols, num_untrained=1, progress=False)
    before = len(re.findall("<polyline", write_report([finished], tmp_path / "a.html").read_text()))
    page = Page(text := write_report([run], tmp_path / "b.html").read_text())
    assert len(re.findall("<polyline", text)) == before + 4  # model, untrained twin, pixels, HOG
    for words in ("linear probe of each layer, top-1 accuracy", "stem", "stage1", "stage3", "non-linear probe"):
        assert words in page.text
    assert "linear probe of layer" not in page.text, "layers are drawn as a curve, not as one more dot plot"


def test_what_a_person_named_is_text_not_markup(finished, tmp_path):
    text = write_report([finished], tmp_path / "r.html").read_text()
    assert EVIL not in text and "&lt;script&gt;alert" in text


def test_a_bare_run_says_what_is_missing_and_several_runs_stand_side_by_side(finished, tmp_path):
    bare = tmp_path / "teacher"
    bare.mkdir()
    (bare / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    page = Page(write_report([bare], tmp_path / "bare.html").read_text())
    assert "No verdict yet" in page.text and page.text.count("Left out") == 5
    for order in ([finished, bare], [bare, finished]):
        both = Page(write_report(order, tmp_path / "both.html").read_text())
        assert "student" in both.text and "teacher" in both.text
        assert "No verdict yet" not in both.text, "the evaluated one is the subject"
    with pytest.raises(RunError, match="at least one"):
        write_report([], tmp_path / "none.html")


def test_gallery_keeps_thumbnails_labels_and_the_networks_mode(tmp_path):
    from attar.data.load import load_images
    from attar.data.statistics import image_spec
    from attar.models.backbones import build_backbone

    pixels = np.zeros((20, 16, 16, 3), np.uint8)
    pixels[10:, :, :, 0] = 255
    images = load_images(pixels, image_size=16)
    backbone = build_backbone("resnet8x0.5", image_size=16).train()
    collect_gallery(backbone, image_spec(images, 16), images, out=tmp_path / "g.npz", device=torch.device("cpu"))
    assert backbone.training
    with np.load(tmp_path / "g.npz", allow_pickle=False) as found:
        assert found["thumbnails"].shape == (20, 48, 48, 3) and found["features"].shape == (20, 32)
        assert found["thumbnails"][0].max() == 0 and found["thumbnails"][19][..., 0].min() == 255
        assert (found["labels"] == -1).all()
        assert found["coordinates"].min() >= 0 and found["coordinates"].max() <= 1


def test_the_map_separates_what_is_far_apart_and_survives_a_collapse():
    generator = np.random.default_rng(0)
    features = np.repeat(np.eye(2), 40, axis=0) @ generator.normal(size=(2, 16)) + 0.01 * generator.normal(
        size=(80, 16)
    )
    flat = map_of(features)
    spread = max(flat[:40].std(axis=0).max(), flat[40:].std(axis=0).max())
    assert np.linalg.norm(flat[:40].mean(0) - flat[40:].mean(0)) > 2 * spread
    assert np.allclose(map_of(np.ones((10, 4))), 0.5)


def test_ticks_and_smoothing():
    assert ticks(0.13, 0.87) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(0.0, 50.0) == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert smoothed([1.0, 1.0, 4.0], window=3) == [1.0, 2.0, 2.5]


def copy_of(run, folder, *, value):
    """The same run under another name, with another value in its evaluation."""
    shutil.copytree(run, folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for row in evaluation["rows"]:
        row |= {"value": value, "low": value - 0.01, "high": value + 0.01}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_several_runs_are_drawn_over_their_size_and_latency(finished, tmp_path):
    better = copy_of(finished, tmp_path / "better", value=0.99)
    elsewhere = copy_of(finished, tmp_path / "elsewhere", value=0.5)
    details = json.loads((elsewhere / "evaluation_details.json").read_text())
    (elsewhere / "evaluation_details.json").write_text(json.dumps(details | {"data": "others"}))
    text = write_report([finished, better, elsewhere], tmp_path / "r.html").read_text()
    page = Page(text)
    assert "trade-off" in page.ids and "better is not beaten" in page.text and "Left out: elsewhere" in page.text
    section = text[text.index('id="trade-off"') :].split("</section>")[0]
    assert section.count("<svg") == 2 and "ONNX" not in section, "nothing was exported"
    bare = tmp_path / "teacher"
    bare.mkdir()
    shutil.copy(finished / "recipe.yaml", bare)
    page = Page(write_report([bare, finished, better], tmp_path / "b.html").read_text())
    assert "trade-off" in page.ids and "Left out: teacher" in page.text, "the first that was evaluated is the measure"
    (better / "export.json").write_text(json.dumps({"onnx": _onnx(0.7)}))
    (finished / "export.json").write_text(json.dumps({"onnx": _onnx(0.5)}))
    text = write_report([finished, better], tmp_path / "r2.html").read_text()
    (finished / "export.json").unlink()
    assert "ONNX Runtime, one CPU thread" in text[text.index('id="trade-off"') :].split("</section>")[0]
    assert "trade-off" not in Page(write_report([finished], tmp_path / "r3.html").read_text()).ids


def _onnx(milliseconds):
    latency = {"ONNX Runtime": {"1": milliseconds}}
    return {"num_parameters": 5, "bytes": 20, "parity": {"1": 1e-6}, "latency_ms": latency, "snippet": "load"}


def test_who_is_not_beaten():
    points = [Point(n, v, v, v, c, c, None) for n, v, c in (("a", 0.5, 1), ("b", 0.4, 2), ("c", 0.5, 1), ("d", 0.9, 3))]
    found = [p.name for p, _ in not_beaten([(p, p.parameters) for p in points])]
    assert found == ["a", "d"]


def test_clusters_alone_make_a_page(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    stages.cluster("pixels", "digits", out=tmp_path / "clusters", num_clusters=12, image_size=8, progress=False)
    text = write_report([tmp_path / "clusters"], tmp_path / "r.html").read_text()
    Page(text)
    assert text.count("<figure>") == 12 and "12 clusters by the features of pixels" in text
    assert "How to load it" not in text and "None" not in text


def test_clusters_without_pictures_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "cache"))
    stages.cluster("pixels", "digits", out=tmp_path / "clusters", num_clusters=12, image_size=8, progress=False)
    (tmp_path / "clusters" / "gallery.npz").unlink()
    with pytest.raises(RunError, match="clusters without pictures"):
        write_report([tmp_path / "clusters"], tmp_path / "r.html")
    described = tmp_path / "clusters" / "clusters.json"
    about = json.loads(described.read_text())
    described.write_text(json.dumps({**about, "settings": {**about["settings"], "layer": "means", "grid": 2}}))
    with pytest.raises(CheckpointError, match="another layer means: its centroids have 192 values, that layer has 12"):
        load_clusters(tmp_path / "clusters")
