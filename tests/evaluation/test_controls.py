from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attar.errors import RecipeError
from attar.evaluation import controls
from attar.evaluation.controls import (
    Omitted,
    build_control,
    calibrate_batchnorm,
    check_controls,
    random_init,
)
from attar.evaluation.subject import Subject, Task
from attar.models.backbones import build_backbone, cached_weights
from attar.views.augmentation import CentreView
from attar.views.colour import rgb_to_lab


@pytest.fixture
def model(striped, spec):
    def make(backbone="resnet8", seed=0):
        task = Task(striped(40), striped(10, seed=1), ("rows", "columns"), seed=seed, progress=False)
        return Subject("model", build_backbone(backbone, channels=3, image_size=16), spec, task)

    return make


def test_every_control_is_built_and_measured_on_the_same_task(model):
    m = model()
    built = [s for name in ("random_init", "pixels", "hog") for s in build_control(name, m, num_untrained=2)]
    assert [s.name for s in built] == ["random_init", "random_init", "pixels", "hog"]
    assert all(s.task is m.task for s in built)
    assert all(len(s.train) == 40 for s in built)


def test_random_init_is_the_same_network_with_other_weights_fixed_by_the_seed(model):
    weights = lambda s: torch.cat([p.detach().flatten() for p in s.backbone.parameters()])  # noqa: E731
    m = model()
    torch.manual_seed(0)
    start = Subject("start", build_backbone("resnet8", channels=3, image_size=16), m.image, m.task)
    (first, second), (again,), (other,) = random_init(m, 2), random_init(model()), random_init(model(seed=1))
    assert first.backbone.spec.name == m.backbone.spec.name
    assert weights(first).shape == weights(m).shape
    assert (weights(first) == weights(again)).all()
    assert (weights(first) != weights(m)).any()
    assert (weights(first) != weights(second)).any()
    assert (weights(first) != weights(other)).any()
    assert (weights(first) != weights(start)).any(), "a training with this seed starts there"


def test_random_init_takes_the_statistics_that_make_it_stronger(model, monkeypatch):
    tried = []
    monkeypatch.setattr("attar.train.health.online_knn", lambda values, labels: tried.append(values) or len(tried) == 1)
    assert [s.settings for s in random_init(model(), 2)] == [{"batchnorm": "measured on 40 training images"}] * 2
    assert len(tried) == 2, "the first network decides for all"
    assert (tried[0] != tried[1]).any()
    monkeypatch.setattr("attar.train.health.online_knn", lambda values, labels: tried.append(values) or len(tried) == 4)
    assert [s.settings for s in random_init(model(), 2)] == [{"batchnorm": "as initialised"}] * 2


@pytest.mark.parametrize(("most", "judged_by", "again"), [(40, 40, 0), (30, 30, 1)])
def test_features_that_chose_the_statistics_are_not_computed_again(model, monkeypatch, most, judged_by, again):
    """Of many images a part decides, whose features are no use afterwards."""
    seen = []
    monkeypatch.setattr(controls, "CHOICE_IMAGES", most)
    monkeypatch.setattr("attar.train.health.online_knn", lambda values, labels: seen.append(len(values)) or 0.5)
    taken = next(random_init(model()))
    assert seen == [judged_by] * 2
    forwards = []
    taken.backbone.register_forward_hook(lambda *_: forwards.append(1))
    assert len(taken.train.values) == 40 and len(forwards) == again


@pytest.mark.parametrize("name", ["lightness_resnet8", "lab_resnet8"])
def test_random_init_sees_the_true_lab_of_the_images(model, spec, name):
    twin = next(random_init(model(name))).backbone.network
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    torch.testing.assert_close(twin.lab((pixels - mean) / std), rgb_to_lab(pixels), atol=0.01, rtol=0)


def test_random_init_does_not_touch_the_global_generator(model):
    m = model()
    before = torch.random.get_rng_state()
    list(random_init(m, 2))
    assert (torch.random.get_rng_state() == before).all()


def test_calibrated_statistics_are_those_of_the_images(striped, spec):
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.37), nn.Flatten(), nn.Dropout(0.5))
    images = striped(32)
    assert calibrate_batchnorm(net, images, spec, device="cpu", batch_size=16)
    views = CentreView(spec)(images.batch(images.rows))
    assert net[0].running_mean.numpy() == pytest.approx(views.mean((0, 2, 3)).numpy(), abs=1e-5)
    assert net[0].running_var.numpy() == pytest.approx(views.var((0, 2, 3)).numpy(), rel=0.02)
    assert net[0].momentum == 0.37
    assert net.training and net[0].training
    assert not calibrate_batchnorm(nn.Flatten(), images, spec, device="cpu", batch_size=16)


def test_pixels_and_hog_look_at_thumbnails(model, spec):
    from dataclasses import replace

    m = model()
    m.image = replace(spec, size=128)
    (pixels,), (hog,) = build_control("pixels", m), build_control("hog", m)
    assert (pixels.image.size, hog.image.size) == (32, 64)
    assert pixels.settings == {"image_size": 32}


def test_what_cannot_be_built_is_named_with_its_reason(model):
    reasons = {
        "random_init": "the model has no weights",
        "pixels": "it is the model itself",
        "pretrained": "nobody publishes weights of this network",
    }
    for name, reason in reasons.items():
        with pytest.raises(Omitted, match=reason):
            list(build_control(name, model("pixels")))


def test_the_pretrained_twin_is_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: None)
    assert cached_weights("resnet18") is None
    assert cached_weights("resnet8") is None  # not a timm name
    for kind in ("model.safetensors", "pytorch_model.bin"):
        here = lambda repo, file, kind=kind: "somewhere" if file == kind else None  # noqa: E731
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", here)
        assert cached_weights("resnet18") == ("timm/resnet18.a1_in1k", Path("somewhere"))


def test_the_pretrained_twin_takes_its_own_normalisation(model, monkeypatch):
    m = model("resnet18")
    asked = {}

    def build(name, **settings):
        asked.update(settings, name=name)
        return m.backbone

    monkeypatch.setattr(controls, "build_backbone", build)
    monkeypatch.setattr(controls, "cached_weights", lambda name: ("timm/resnet18.a1_in1k", "file"))
    twin = controls.pretrained_twin(m)
    assert asked["pretrained"] is True
    assert twin.image.mean == (0.485, 0.456, 0.406)
    assert twin.settings == {"weights": "timm/resnet18.a1_in1k"}
    small = SimpleNamespace(spec=SimpleNamespace(name="resnet18", stem="small", channels=3, image_size=16))
    with pytest.raises(Omitted, match="small stem"):
        controls.pretrained_twin(small)


def test_unknown_controls_are_an_error():
    with pytest.raises(RecipeError, match=r"unknown control 'pixel'. Did you mean pixels\?"):
        check_controls(("pixel",), None)
    with pytest.raises(RecipeError, match="controls='hog' is not accepted; give a list of random_init, pixels"):
        check_controls("hog", None)


@pytest.mark.parametrize("number", [0, -1, 2, 2.5, "two", True])
def test_numbers_of_untrained_networks_that_are_none_or_say_nothing_are_an_error(number):
    with pytest.raises(RecipeError, match=f"num_untrained={number!r} is not accepted; give 3 or more"):
        check_controls(("random_init",), number)


def test_a_network_made_of_a_published_one_is_not_called_unpublished(model):
    for name in ("lab_resnet18", "lightness_resnet18"):
        with pytest.raises(Omitted, match="those of the network it is made of"):
            controls.pretrained_twin(model(name))
    timms = SimpleNamespace(spec=SimpleNamespace(name="tf_mobilenetv3_small_100", stem="standard"))
    with pytest.raises(Omitted, match="are on this machine"):
        controls.pretrained_twin(timms)


def test_the_number_of_untrained_networks_is_not_ignored():
    assert check_controls(("random_init",), None) == 5
    assert check_controls(("pixels", "random_init"), 3) == 3
    with pytest.raises(RecipeError, match="num_untrained would be ignored, because random_init is not among"):
        check_controls(("pixels",), 3)
