"""A request for a training: what is wrong is said before images are decoded, and no run is mistaken for another."""

import dataclasses
import json
import logging
import math
import shlex
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml

from attar import stages
from attar.data.images import ImageSpec
from attar.data.load import load_images
from attar.errors import AttarError, BackboneError, RecipeError, RunChanged, RunError, TrainingError
from attar.evaluation.features import extract_features
from attar.models.backbones import BackboneSpec, build_backbone
from attar.models.other_size import check_other_size
from attar.models.saved import load_backbone
from attar.models.teachers import FrozenTeacher, load_teacher
from attar.planning import _is_command_line
from attar.request import Request
from attar.train import loop as training_loop
from attar.train.log import read_json_lines
from attar.training import Run, _fit_into_minutes

TINY = {"backbone": "resnet8x0.5", "image_size": 8, "epochs": 1, "batch_size": 64, "progress": False}


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (128, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def finished(pixels, tmp_path_factory):
    return stages.pretrain(pixels, out=tmp_path_factory.mktemp("runs") / "run", **TINY).path


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"backbone": "resnet81"}, "unknown backbone 'resnet81'"),
        ({"stem": "tiny"}, "--stem 'tiny' is unknown"),
        ({"settings": {"temperatur": 1}}, "unknown recipe field 'temperatur'"),
        ({"recipe": "smal"}, "unknown recipe 'smal'"),
        ({"lr": -1.0}, "--lr -1.0: it must be more than 0"),
        ({"lr": math.inf}, "--lr inf: it must be more than 0, and finite"),
        ({"minutes": -1.0, "epochs": None}, "--minutes -1.0: it must be more than 0"),
        ({"epochs": 0}, "--epochs 0: it must be 1 or more"),
        ({"batch_size": 0}, "--batch-size 0: it must be 1 or more"),
        ({"accumulate": 0}, "--accumulate 0: it must be 1 or more"),
        ({"workers": 0}, "--workers 0: it must be 1 or more"),
        ({"checkpoint_steps": 0}, "--checkpoint-steps 0: it must be 1 or more"),
        ({"image_size": 0}, "--image-size 0: it must be 8 or more"),
        ({"test_size": 0}, "--test-size 0: it must be 8 or more"),
        ({"seed": -1}, "--seed -1: it must be 0 or more"),
        ({"device": "gpu"}, "--device 'gpu' is unknown; accepted: auto, cpu, cuda"),
        ({"precision": "fp8"}, "--precision 'fp8' is unknown"),
    ],
)
def test_mistakes_are_found_before_the_first_image_is_read(tmp_path, monkeypatch, wrong, text):
    monkeypatch.setattr("attar.data.load.load_images", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(AttarError, match=text):
        stages.pretrain("digits", **{"out": tmp_path / "run", **TINY, **wrong})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "backbone", "size", "name"),
    [
        ("dino", "resnet8", 32, "small"),
        ("dino", "vit_micro_p4", 32, "small_vit"),
        ("dino", "resnet8", 96, "convnet"),
        ("dino", "vit_micro_p8", 96, "photo"),
        ("moco_v3", "resnet18", 96, "convnet"),
        ("moco_v3", "vit_micro_p8", 96, "vit"),
        ("lejepa", "swin_tiny_patch4_window7_224", 224, "photo"),
        ("dino", "xcit_nano_12_p8_224", 96, "photo"),
        ("dino", "mixer_s16_224", 224, "photo"),
        ("dino", "tnt_s_legacy_patch16_224", 224, "photo"),
        ("dino", "levit_128s", 224, "photo"),
        ("dino", "resmlp_12_224", 224, "photo"),
        ("dino", "convnext_atto", 96, "photo"),
        ("dino", "convnext_atto_rms", 96, "photo"),
        ("dino", "poolformer_s12", 224, "photo"),
        ("dino", "efficientvit_b0", 224, "convnet"),
        ("dino", "resnet50_gn", 224, "convnet"),
        ("dino", "botnet26t_256", 256, "convnet"),
        ("dino", "seresnet50", 96, "convnet"),
        ("dino", "skresnet18", 96, "convnet"),
        ("dino", "resnet50_clip", 224, "convnet"),
        ("foundation", "vit_micro_p8", 96, "transformer"),
        ("foundation", "resnet8", 96, "v3"),
        ("born_again", "resnet18", 224, "photo"),
        ("snapshot", "resnet18", 224, "photo"),
        ("inva_spread", "resnet18", 224, "photo"),
        ("byot", "resnet18", 64, "small"),
        ("kd", "resnet18", 224, "paper"),
        ("simclr", "vit_micro_p8", 32, "small"),
        ("simclr", "vit_micro_p8", 96, "photo"),
    ],
)
def test_the_usual_recipe_is_for_the_images_size_and_the_kind_of_network(method, backbone, size, name):
    values = {field.name: None for field in dataclasses.fields(Request)}
    request = Request(**{**values, "method": method, "backbone": backbone, "stem": "standard"})
    assert request.recipe_name(size) == name
    assert dataclasses.replace(request, recipe="another").recipe_name(size) == "another"


@pytest.mark.parametrize(
    ("method", "backbone", "size", "settings", "text"),
    [
        ("pirl", "vit_micro_p8", 32, {}, "12 x 12 pixels; use another patch_scale, or --image-size.*multiple of 8"),
        ("cpc", "vit_micro_p4", 32, {}, "10 x 10 pixels; use another num_rows, or --image-size.*multiple of 4"),
        (
            "swav",
            "alexnet",
            64,
            {"num_local_views": 2, "local_size": 0.5},
            "32 x 32 pixels; use another local_size, a larger --image-size",
        ),
    ],
)
def test_pieces_that_the_network_cannot_take_are_refused_and_leave_no_run(
    tmp_path, method, backbone, size, settings, text
):
    given = {"settings": settings, "backbone": backbone, "image_size": size, "epochs": 1, "batch_size": 4}
    with pytest.raises(BackboneError, match=text):
        stages.pretrain(np.zeros((8, size, size, 3), np.uint8), out=tmp_path / "run", method=method, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        (
            "vit_micro_p4",
            "vit_micro_p8",
            "8 cannot take pieces of 12 x 12 .* multiple of 8, .* local_size=0.5 suits both",
        ),
        ("resnet8x0.5", "vit_micro_p32", "32 cannot take pieces of 16 x 16 .* -s num_local_views=0 leaves them out"),
    ],
)
def test_local_views_that_the_teacher_cannot_take_are_refused_and_leave_no_run(tmp_path, student, teacher, text):
    image = ImageSpec(size=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = FrozenTeacher(build_backbone(teacher, image_size=32, channels=3), image)
    given = {"settings": {"num_local_views": 2, "queue_length": 8}, "image_size": 32, "epochs": 1, "batch_size": 4}
    images, run = np.zeros((8, 32, 32, 3), np.uint8), tmp_path / "run"
    with pytest.raises(RecipeError, match=f"seed: the teacher sees the local views too, but .*{text}"):
        stages.distill(images, out=run, method="seed", backbone=student, teacher=teacher, **given)
    assert not run.exists()
    if student == "vit_micro_p4":
        given["settings"]["local_size"] = 0.5
        stages.distill(images, out=run, method="seed", backbone=student, teacher=teacher, **given)
        assert (run / "backbone.safetensors").is_file()


@pytest.mark.parametrize(
    ("started_as", "is_command"),
    [
        ("/usr/bin/attar", True),
        ("/lib/attar/__main__.py", True),
        ("C:/Scripts/attar.exe", True),
        ("train.py", False),
        ("other/__main__.py", False),
    ],
)
def test_the_command_is_kept_however_attar_was_started(monkeypatch, started_as, is_command):
    monkeypatch.setattr("sys.argv", [started_as, "pretrain"])
    assert _is_command_line() == is_command


def test_the_kept_command_can_be_pasted_where_paths_have_blanks(pixels, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/attar", "pretrain", "my photos", "--out", "runs/it's"])
    stages.pretrain(pixels, out=tmp_path / "run", **TINY)
    command = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["command"]
    assert shlex.split(command) == ["attar", "pretrain", "my photos", "--out", "runs/it's"]


def test_an_out_that_cannot_be_made_is_found_first_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file is a file, not a folder"):
        stages.pretrain(tmp_path / "no images", out=tmp_path / "file" / "run", **TINY)


def test_a_finished_run_resumes_to_nothing(finished, pixels):
    before = (finished / "backbone.json").read_bytes()
    assert stages.pretrain(pixels, out=finished, resume=True, **TINY).fit is None
    assert (finished / "backbone.json").read_bytes() == before


def test_a_runs_settings_train_the_same_network_again(finished, pixels, tmp_path):
    ran = yaml.safe_load((finished / "recipe.yaml").read_text())
    options = {"backbone": ran["backbone"]["name"], "image_size": ran["backbone"]["image_size"], "progress": False}
    again = stages.pretrain(
        pixels, out=tmp_path / "run", method=ran["method"], recipe=ran["recipe"], settings=ran["settings"], **options
    )
    for name in ("backbone.safetensors", "projector.safetensors"):
        assert (again.path / name).read_bytes() == (finished / name).read_bytes()
    assert yaml.safe_load((again.path / "recipe.yaml").read_text())["settings"] == ran["settings"]


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"epochs": 2}, "epochs: 1 -> 2"),
        ({"method": "byol"}, "method: 'simclr' -> 'byol'"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"backbone": "resnet8"}, "name: 'resnet8x0.5' -> 'resnet8'"),
        ({"settings": {"temperature": 0.3}}, "temperature: 0.5 -> 0.3"),
        ({"epochs": None, "minutes": 1.0}, "minutes: None -> 1.0"),
        ({"test_size": 12}, "test_size: 8 -> 12"),
    ],
)
def test_a_finished_run_is_not_taken_for_another(finished, pixels, other, text):
    before = {p: p.stat().st_mtime_ns for p in finished.iterdir()}
    with pytest.raises(RunChanged, match=text):
        stages.pretrain(pixels, out=finished, resume=True, **{**TINY, **other})
    assert {p: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def test_a_finished_network_looks_at_images_of_the_test_size(finished, pixels, tmp_path, caplog):
    images = np.random.default_rng(1).integers(0, 256, (40, 12, 12, 3), np.uint8)
    with caplog.at_level("INFO", "attar"):
        run = stages.pretrain(pixels, out=tmp_path / "run", **TINY, test_size=12).path
    assert "on 128 images of 8 px (then 12 px) for 1 epoch" in caplog.text
    weights = "backbone.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes(), "training is the same"
    backbone, image, _ = load_backbone(run)
    as_trained = load_backbone(finished)
    assert (backbone.spec.image_size, image.size, as_trained[1].size) == (12, 12, 8)
    assert image == dataclasses.replace(as_trained[1], size=12)
    stages.embed(run, images, out=tmp_path / "features.npz", progress=False)
    loaded = load_images(images, image_size=12)
    wanted = extract_features(as_trained[0], loaded, image, progress=False).values
    torch.testing.assert_close(torch.as_tensor(np.load(tmp_path / "features.npz")["embedding"]), wanted)
    gallery = np.load(run / "gallery.npz")["features"]
    wanted = extract_features(as_trained[0], load_images(pixels, image_size=12), image, progress=False).values
    np.testing.assert_allclose(gallery, wanted.numpy().astype(np.float16), rtol=1e-2, atol=1e-3)
    assert "8 pixels, then 12" in stages.report([run], out=tmp_path / "report.html").read_text()
    assert load_teacher(run).digest != load_teacher(finished).digest, "it answers otherwise: for caches and a resume"
    student = stages.distill(pixels, teacher=run, out=tmp_path / "student", **{**TINY, "image_size": None}).path
    assert load_backbone(student)[1].size == 12, "as its teacher"


def test_other_networks_that_a_method_keeps_look_at_images_of_the_test_size_too(pixels, tmp_path):
    run = stages.pretrain(pixels, out=tmp_path / "run", **TINY, method="dogo", test_size=12).path
    backbone, image, _ = load_backbone(run / "peer")
    assert (backbone.spec.image_size, image.size) == (12, 12)


def test_crops_are_cut_from_images_as_large_as_those_of_the_test(tmp_path, monkeypatch):
    """And evaluation finds them packed."""
    images = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), np.uint8)
    canvases = []

    def load(*args, **options):
        canvases.append(load_images(*args, **options).canvas_size)
        return load_images(*args, **options)

    monkeypatch.setattr("attar.data.load.load_images", load)
    for name, sizes in (("small", {}), ("large", {"test_size": 24})):
        stages.pretrain(images, out=tmp_path / name, **TINY, **sizes)
    assert canvases == [16, 32]


@pytest.mark.parametrize(
    ("name", "trained", "tested", "text"),
    [
        ("maxvit_rmlp_pico_rw_256", 64, 96, "maxvit_rmlp_pico_rw_256 has weights that belong to images of 64 pixels"),
        ("swin_tiny_patch4_window7_224", 224, 256, "swin_tiny_patch4_window7_224 has weights that belong to images of"),
        ("vit_micro_p4", 8, 12, "vit_micro_p4 has weights that belong to images of 8 pixels"),
        ("swinv2_cr_tiny_ns_224", 224, 192, "swinv2_cr_tiny_ns_224 has weights that belong to images of 224 pixels"),
        ("dla34", 64, 48, "dla34 cannot take images of 48 pixels. Leave it out, or take another size."),
    ],
)
def test_a_network_that_computes_otherwise_at_the_test_size_is_refused(name, trained, tested, text):
    with pytest.raises(BackboneError, match=f"--test-size {tested}: {text}"):
        check_other_size(BackboneSpec(name=name, channels=3, image_size=trained), tested)


def test_a_deep_convnet_is_a_convnet():
    check_other_size(BackboneSpec(name="dla169", channels=1, image_size=32), 64)  # its features would overflow


@pytest.mark.parametrize("by", ["option", "teacher", "init", "images"])
def test_a_test_size_that_the_weights_do_not_allow_is_refused_as_soon_as_sizes_are_known(finished, tmp_path, by):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    source = np.zeros((64, 8, 8, 3), np.uint8) if by == "images" else tmp_path / "images"
    options = {**TINY, "backbone": "vit_micro_p4", "test_size": 12, "image_size": 8 if by == "option" else None}
    with pytest.raises(BackboneError, match="--test-size 12: vit_micro_p4 has weights that belong to images of 8 pix"):
        if by == "teacher":
            stages.distill(source, teacher=finished, out=tmp_path / "run", **options)
        else:
            init = finished if by == "init" else None
            stages.pretrain(source, out=tmp_path / "run", init=init, **options)
    assert not (tmp_path / "run").exists()


def test_a_test_size_equal_to_the_image_size_is_none(finished, pixels, tmp_path):
    run = stages.pretrain(pixels, out=tmp_path / "run", **TINY, test_size=8).path
    assert stages.pretrain(pixels, out=run, **TINY, resume=True).fit is None, "complete, and the same"
    assert stages.pretrain(pixels, out=finished, **TINY, test_size=8, resume=True).fit is None


def test_a_teacher_sees_images_with_the_size_that_was_asked_for(finished, pixels, tmp_path, monkeypatch):
    seen, answer = [], FrozenTeacher.__call__
    own = load_teacher(finished)

    def noting(self, images, *rest, **named):
        seen.append((self.image.size, self._seen(images, rest[1]).shape[-1]))
        return answer(self, images, *rest, **named)

    monkeypatch.setattr(FrozenTeacher, "__call__", noting)
    options = {**TINY, "image_size": 16, "test_size": 24, "settings": {"queue_length": 64}}
    run = stages.distill(pixels, teacher=finished, out=tmp_path / "run", teacher_size=16, **options).path
    assert set(seen) == {(16, 16)}
    assert yaml.safe_load((run / "recipe.yaml").read_text())["teacher_size"] == 16
    assert load_backbone(finished)[1].size == 8 and load_backbone(run)[1].size == 24, "what is kept stays as it is"
    with pytest.raises(RunChanged, match="teacher: other weights, or other images than it took"):
        stages.distill(pixels, teacher=finished, out=run, resume=True, **options)
    other = load_teacher(finished, teacher_size=16)
    assert load_teacher(finished, teacher_size=8).digest == own.digest != other.digest
    assert other.backbone.spec.image_size == 16, "of which the shapes of its maps are told"


@pytest.mark.parametrize("name", ["hog", "vit_micro_p4"])
def test_a_network_by_name_is_built_for_the_teacher_size(pixels, tmp_path, name):
    if name != "hog":
        run = stages.pretrain(pixels, out=tmp_path / "vit", **{**TINY, "backbone": name}).path
        name = f"{name}@{stages.export(run, format='timm').path}"
    own, other = (load_teacher(name, image_size=8, channels=3, teacher_size=size) for size in (None, 16))
    assert (own.image.size, other.image.size) == (8, 16) and own.digest != other.digest
    stages.distill(pixels, teacher=name, out=tmp_path / "run", teacher_size=16, settings={"queue_length": 64}, **TINY)


def test_each_of_several_teachers_has_the_size_that_was_asked_for(finished, pixels, tmp_path, monkeypatch):
    seen, answer = {}, FrozenTeacher.__call__

    def noting(self, *rest, **named):
        seen[self.name] = self.image.size
        return answer(self, *rest, **named)

    monkeypatch.setattr(FrozenTeacher, "__call__", noting)
    options = {**TINY, "settings": {"queue_length": 64}}
    stages.distill(pixels, teacher=["hog", finished], out=tmp_path / "run", teacher_size=16, **options)
    assert list(seen.values()) == [16, 16]


@pytest.mark.parametrize("name", ["hog", "vit_micro_p4"])
def test_a_student_is_measured_beside_its_teacher_as_it_taught(tmp_path, name, pixels):
    if name != "hog":  # and cannot look at images of 10 pixels, the student's
        vit = stages.pretrain(pixels, out=tmp_path / "vit", **{**TINY, "backbone": name}).path
        name = f"{name}@{stages.export(vit, format='timm').path}"
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(128) % 2)
    options = {**TINY, "image_size": 10, "settings": {"queue_length": 64}}
    run = stages.distill(tmp_path / "data.npz", teacher=name, out=tmp_path / "run", teacher_size=16, **options).path
    (_, image, _), _ = stages._teacher_of(load_backbone(run)[2], None, load_backbone(run)[1])
    assert image.size == 16
    rows = stages.evaluate(run, tmp_path / "data.npz", protocols=["knn"], controls=["pixels"]).rows
    assert {row["subject"] for row in rows} == {"model", "teacher", "pixels"}


def test_a_teacher_size_that_cannot_be_had_is_refused_before_images_are_read(tmp_path, pixels):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    teacher = stages.pretrain(pixels, out=tmp_path / "vit", **{**TINY, "backbone": "vit_micro_p4"}).path
    options = {**TINY, "out": tmp_path / "run", "teacher_size": 12}
    with pytest.raises(BackboneError, match="--teacher-size 12: vit_micro_p4 has weights that belong to images of 8 p"):
        stages.distill(tmp_path / "images", teacher=["hog", teacher], **options)
    with pytest.raises(BackboneError, match="18 is not a multiple of 4. Use --teacher-size 16 or 20"):
        file = stages.export(teacher, format="timm").path
        stages.distill(tmp_path / "images", teacher=f"vit_micro_p4@{file}", **{**options, "teacher_size": 18})
    with pytest.raises(RecipeError, match="--teacher-size 4: it must be 8 or more"):
        stages.distill(tmp_path / "images", teacher=teacher, **{**options, "teacher_size": 4})
    with pytest.raises(RecipeError, match="teacher_size would be ignored: this teacher is given as an object"):
        stages.distill(tmp_path / "images", teacher=load_teacher(teacher), **options)


@pytest.mark.parametrize("minutes", [1e-5, 0.1])  # of which the first is exceeded on any machine
def test_a_training_that_exceeds_its_minutes_says_so(pixels, tmp_path, monkeypatch, caplog, minutes):
    measured = "attar.train.loop.measure_step_seconds"
    monkeypatch.setattr(measured, lambda job: minutes * 60 / 2.5 / job.plan.steps_per_epoch)  # two epochs fit
    run = stages.pretrain(pixels, out=tmp_path / "run", **{**TINY, "epochs": None, "minutes": minutes})
    assert run.recipe["settings"]["epochs"] == 2
    assert run.fit is not None
    said = f"took {run.fit.seconds / 60:.2g} minutes instead of {minutes:g}" in caplog.text
    assert said == (run.fit.seconds > 90 * minutes)


def test_a_run_on_other_images_is_another_run(finished, pixels):
    with pytest.raises(RunChanged, match="data: "):
        stages.pretrain(pixels[::-1].copy(), out=finished, resume=True, **TINY)


def test_images_that_shrink_to_a_pixel_are_warned_of(pixels, tmp_path, caplog):
    assert build_backbone("resnet18", image_size=32).reduces_to_a_pixel(32)
    assert not build_backbone("resnet18", image_size=32).reduces_to_a_pixel(64)
    assert not build_backbone("resnet18", image_size=32, stem="small").reduces_to_a_pixel(32)
    assert not build_backbone("resnet20", image_size=8).reduces_to_a_pixel(8)
    assert not build_backbone("hog", image_size=8).reduces_to_a_pixel(8)
    stages.pretrain(pixels, out=tmp_path / "run", **{**TINY, "backbone": "resnet10t", "image_size": 32})
    assert "resnet10t reduces images of 32 pixels to a single position" in caplog.text
    assert "or a larger --image-size." in caplog.text
    caplog.clear()
    for trained, tested, small, option in ((64, 32, 32, "test"), (32, 24, 32, "image")):
        options = {**TINY, "backbone": "resnet10t", "image_size": trained, "test_size": tested}
        stages.pretrain(pixels, out=tmp_path / option, **options)
        assert f"resnet10t reduces images of {small} pixels" in caplog.text
        assert f"or a larger --{option}-size." in caplog.text
        caplog.clear()


def test_a_sequence_of_stages_ends_with_the_interrupted_one(tmp_path):
    class Interrupted:
        interrupted = True

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, {}, Interrupted()).or_stop()
    assert Run(tmp_path, {}, None).or_stop().path == tmp_path


def test_weights_that_are_not_finite_are_never_saved(pixels, tmp_path, monkeypatch):
    """The loss of the last step is finite, but its gradient overflows."""
    from attar.train import loop

    update = loop.update

    def overflowing(job, parts, progress):
        terms = update(job, parts, progress)
        if progress.step == 1:
            next(job.method.parameters()).data.fill_(float("inf"))
        return terms

    monkeypatch.setattr(loop, "update", overflowing)

    with pytest.raises(TrainingError, match="weights are not finite after step 1"):
        stages.pretrain(pixels, out=tmp_path / "run", method="rotation", **TINY)
    assert len(read_json_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert not (tmp_path / "run" / "backbone.json").exists() and not list((tmp_path / "run").glob("checkpoint/*"))


def test_all_processes_choose_the_same_number_of_epochs(monkeypatch):
    """Each measures its own speed; the mean decides."""
    from dataclasses import dataclass, field
    from types import SimpleNamespace

    from attar.methods.base import resolve_recipe

    @dataclass
    class TwoProcesses:
        rank: int
        device: torch.device = field(default_factory=lambda: torch.device("cpu"))

        def mean(self, value):
            return torch.full_like(value, 1.5)  # of 1 and 2 seconds

    @dataclass
    class Job:
        method: SimpleNamespace
        world: TwoProcesses
        plan: SimpleNamespace

    monkeypatch.setattr("attar.train.loop.measure_step_seconds", lambda job: 1.0 + job.world.rank)
    epochs = []
    for rank in range(2):
        method = SimpleNamespace(recipe=resolve_recipe("simclr"))
        job = Job(method, TwoProcesses(rank), SimpleNamespace(steps_per_epoch=4))
        epochs.append(_fit_into_minutes(job, 1.0).method.recipe.epochs)
    assert epochs == [10, 10]


def test_evaluations_of_the_same_images_are_joined_and_others_kept(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    quiet = {"controls": ("random_init",), "num_untrained": 1, "progress": False}
    stages.evaluate(run, "digits", protocols=("linear",), **quiet)
    first = json.loads((run / "evaluation.json").read_text())
    stages.evaluate(run, "digits", protocols=("knn",), **quiet)
    both = json.loads((run / "evaluation.json").read_text())
    assert {r["protocol"] for r in both["rows"]} == {"linear", "knn"}
    assert both["verdict"] == first["verdict"]  # of the more telling protocol
    again = stages.evaluate(run, "digits", protocols=("knn",), **quiet)
    assert len(json.loads((run / "evaluation.json").read_text())["rows"]) == len(both["rows"])
    assert {r["protocol"] for r in again.rows} == {"knn"}  # what was asked for is what is returned
    stages.evaluate(run, "digits", protocols=("knn",), seed=1, **quiet)
    assert {r["protocol"] for r in json.loads((run / "evaluation.json").read_text())["rows"]} == {"knn"}
    assert json.loads((run / "evaluation-1.json").read_text()) == both


def test_a_teacher_that_is_gone_is_named_and_a_collapsed_one_warned_of(finished, pixels, tmp_path, caplog):
    teacher = shutil.copytree(finished, tmp_path / "teacher")
    values = json.loads((teacher / "backbone.json").read_text())
    values["provenance"]["collapsed"] = True
    (teacher / "backbone.json").write_text(json.dumps(values))
    student = stages.distill(
        pixels, teacher=teacher, out=tmp_path / "student", settings={"queue_length": 64}, **TINY
    ).path
    assert f"{teacher} ended collapsed" in caplog.text
    shutil.rmtree(teacher)
    found = stages.evaluate(student, "digits", protocols=("knn",), progress=False)
    assert "which is not there any more" in found.verdict


def test_embeddings_carry_the_names_of_the_classes(finished, tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    for kind, read in (("csv", pyarrow.csv.read_csv), ("parquet", pyarrow.parquet.read_table)):
        stages.embed(finished, "digits", out=tmp_path / f"e.{kind}", progress=False)
        table = read(tmp_path / f"e.{kind}").to_pydict()
        assert [str(name) for name in table["class"][:3]] == [str(n) for n in table["label"][:3]]
    stages.embed(finished, "digits", out=tmp_path / "e.npz", progress=False)
    assert np.load(tmp_path / "e.npz")["classes"].tolist() == [str(i) for i in range(10)]


def test_results_that_cannot_be_written_are_refused_first(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("attar.data.load.load_images", lambda *_, **__: pytest.fail("images were read"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file, not a folder"):
        stages.embed(finished, "digits", out=tmp_path / "file" / "e.csv")
    with pytest.raises(RunError, match="is a folder; name a file in it"):
        stages.report([finished], out=tmp_path)


def test_the_smaller_batch_is_said_to_python_users_too(pixels, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "attar"):
        stages.pretrain(pixels, out=tmp_path / "run", **{**TINY, "batch_size": None})
    assert "Batch 32 instead of the recipe's" in caplog.text
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["settings"]["batch_size"] == 32


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "epochs=0 is not accepted; give 1 or more"),
        ({"batch_size": 0}, "batch_size=0 is not accepted"),
        ({"warmup_fraction": 5}, "warmup_fraction=5.0 is not accepted; give a number from 0 to 1"),
        ({"weight_decay": -1}, "weight_decay=-1.0 is not accepted; give 0 or more"),
        ({"adam_betas": (0.9, 1.5)}, "adam_betas=.* is not accepted"),
        ({"temperature": 0}, "temperature=0.0 is not accepted; give a number above 0"),
        ({"projector_layers": 0}, "projector_layers=0 is not accepted"),
        ({"clip_gradient": -1}, "clip_gradient=-1.0 is not accepted"),
    ],
)
def test_a_field_of_the_recipe_outside_its_range_is_refused(tmp_path, settings, text):
    adam = {"optimiser": "adamw"} if "adam_betas" in settings else {}
    given = {k: v for k, v in TINY.items() if k not in settings}
    with pytest.raises(AttarError, match=text):
        stages.pretrain("digits", out=tmp_path / "run", settings={**adam, **settings}, **given)
    assert not (tmp_path / "run").exists()


def test_every_recipe_of_the_catalogue_is_within_the_ranges():
    from dataclasses import asdict

    from attar.methods import CATALOGUE
    from attar.methods.base import _check_range, load

    for method in CATALOGUE:
        for recipe in load(method).RECIPES.values():
            for name, value in asdict(recipe).items():
                _check_range(method, name, value, default=getattr(type(recipe), name, None))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"teacher": "none/such"}, "none/such does not exist"),
        ({"teacher": "resnet81"}, "unknown backbone 'resnet81'"),
        ({"teacher": "hog", "backbone": "hog"}, "--backbone hog has no weights to train"),
        ({"teacher": "hog", "stem": "small"}, "takes no stem=small"),
        ({"teacher": "hog", "method": "./mine.py"}, "method './mine.py' is a path"),
    ],
)
def test_teacher_and_network_are_looked_at_before_the_images(tmp_path, monkeypatch, wrong, text):
    monkeypatch.setattr("attar.data.load.load_images", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(AttarError, match=text):
        stages.distill("digits", out=tmp_path / "run", **{"method": "cluster_transfer", **TINY, **wrong})


def test_a_run_inside_its_own_images_is_refused(tmp_path):
    with pytest.raises(RunError, match="lies inside the images"):
        stages.pretrain(tmp_path, out=tmp_path / "runs" / "a", **TINY)


def test_a_run_without_a_step_may_be_begun_anew(pixels, tmp_path, monkeypatch):
    from attar.train import loop

    with monkeypatch.context() as broken:
        broken.setattr(loop, "update", lambda *_: (_ for _ in ()).throw(TrainingError("at the first step")))
        with pytest.raises(TrainingError):
            stages.pretrain(pixels, out=tmp_path / "run", **TINY)
    assert (tmp_path / "run" / "recipe.yaml").is_file()
    assert stages.pretrain(pixels, out=tmp_path / "run", **{**TINY, "seed": 1}).recipe["seed"] == 1


def test_a_collapse_is_remembered_over_a_stop_after_the_last_step(pixels, tmp_path, monkeypatch):
    from attar import training
    from attar.train import health

    monkeypatch.setattr(health, "COLLAPSED_STD", 2.0)  # everything counts as collapsed
    with monkeypatch.context() as stopped:
        stopped.setattr(training, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stages.pretrain(pixels, out=tmp_path / "run", **TINY)
    run = stages.pretrain(pixels, out=tmp_path / "run", resume=True, **TINY)
    assert run.fit.collapsed and json.loads((tmp_path / "run" / "backbone.json").read_text())["provenance"]["collapsed"]


def test_a_run_of_few_labels_is_not_tested_on_its_images_in_silence(tmp_path):
    stages.pretrain("digits", out=tmp_path / "few", label_fraction=0.25, **{**TINY, "method": "supervised"})
    quiet = {"controls": False, "progress": False}
    found = stages.evaluate(tmp_path / "few", "digits", protocols=("classifier",), **quiet)
    assert "trained on these images, or some of them, with labels" in found.verdict


def test_settings_of_a_protocol_keep_its_rows_apart(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    found = stages.evaluate(run, "digits", protocols=("knn:1", "knn:60"), controls=("pixels",), progress=False)
    rows = {(r["subject"], r["settings"]["variant"]): r["value"] for r in found.rows if r["metric"] == "top1"}
    assert set(rows) == {(s, v) for s in ("model", "pixels") for v in ("k=1", "k=60")}
    compared = {c["variant"]: c for c in found.details["comparisons"] if c["metric"] == "top1"}
    for variant in ("k=1", "k=60"):
        assert compared[variant]["model_value"] == rows["model", variant]


def test_rows_about_other_labels_are_not_joined(finished, tmp_path):
    from attar.data.load import load_images

    run = shutil.copytree(finished, tmp_path / "run")
    digits = load_images("digits", image_size=8, channels=3)
    quiet = {"controls": False, "progress": False}
    stages.evaluate(run, digits, protocols=("knn",), **quiet)
    from dataclasses import replace

    parity = replace(digits, labels=digits.labels % 2, classes=("even", "odd"))
    stages.evaluate(run, parity, protocols=("linear",), **quiet)
    assert {r["protocol"] for r in json.loads((run / "evaluation.json").read_text())["rows"]} == {"linear"}


def test_an_evaluation_that_cannot_be_kept_is_still_given(finished, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = stages.evaluate(finished, "digits", protocols=("knn",), controls=False, progress=False)
    assert found.rows and "is not writable" in caplog.text and not (finished / "evaluation.json").exists()


def test_other_channels_than_the_teachers_are_refused(finished, tmp_path):
    with pytest.raises(AttarError, match="the teacher takes 3 channels, and these images have 1; use --channels 3"):
        stages.distill("digits", teacher=finished, out=tmp_path / "run", channels=1, backbone="resnet8", epochs=1)
    assert not (tmp_path / "run").exists()


def test_several_teachers_of_classes_are_refused_before_images_are_read(tmp_path):
    with pytest.raises(RecipeError, match="kd learns from one teacher's classes, and 2 teachers are named"):
        stages.distill(tmp_path, teacher="hog,pixels", out=tmp_path / "run", method="kd", **TINY)


def test_operations_of_a_step_are_counted(tmp_path):
    """Of each layer 2 a weight and place forwards, and twice that backwards, but for the gradient of the images."""
    run = stages.pretrain("digits", out=tmp_path / "run", method="supervised", **TINY)
    network, counts = build_backbone("resnet8x0.5", image_size=8, channels=1), []

    def count(layer, _, output):
        counts.append(2 * layer.weight.numel() * (output[0, 0].numel() if output.ndim == 4 else 1))

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    features = network(torch.zeros(1, 1, 8, 8))
    classifier = 2 * features.shape[1] * 10
    crop = 2 * 2 * 8**3  # rows, then columns, as matrix products
    assert run.fit.flops_per_step == 64 * (3 * sum(counts) - counts[0] + 3 * classifier + crop)
    assert json.loads((run.path / "fit.json").read_text())["flops_per_step"] == run.fit.flops_per_step


def test_operations_are_a_mean_over_epochs_of_earlier_calls_too(tmp_path, monkeypatch):
    """Snapshot distillation has a teacher from its second cycle on; here the training ends before its last step."""
    options = dict(method="snapshot", out=tmp_path / "run", settings={"num_cycles": 2}, **{**TINY, "epochs": 4})
    update, steps = training_loop.update, []

    def stopping(*arguments):
        steps.append(1)
        if len(steps) == 60:
            signal.raise_signal(signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(training_loop, "update", stopping)
    assert stages.pretrain("digits", **options).interrupted
    found = stages.pretrain("digits", **options, resume=True).fit
    counts = [row["flops"] for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "flops" in row]
    assert len(counts) == 4 and counts[0] == counts[1] < counts[2] == counts[3]
    assert found.flops_per_step == sum(counts) / 4
