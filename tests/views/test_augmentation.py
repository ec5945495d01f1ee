from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from attar.data.images import CanvasBatch
from attar.errors import RecipeError
from attar.views import augmentation
from attar.views.augmentation import Augmentation, CentreView, RandomCropPad
from attar.views.draws import Draws

EVERYTHING = dict(jitter=(0.8, 0.8, 0.8, 0.2), grey=0.5, blur=0.5, solarise=0.5)


def draws_of(batch: CanvasBatch, seed: int = 0) -> Draws:
    return Draws(seed, batch.index)


def permuted(batch: CanvasBatch, order: torch.Tensor) -> CanvasBatch:
    return CanvasBatch(batch.canvases[order], batch.rectangles[order], batch.index[order])


def by_torchvision(augment: Augmentation, batch: CanvasBatch, parameters) -> torch.Tensor:
    """The same parameters, one picture and one operation at a time."""
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    size, views = augment.view_size, []
    for i, image in enumerate(batch.canvases.double() / 255):
        p = {name: values[i] for name, values in vars(parameters).items()}
        top, left, height, width = p["boxes"].int().tolist()
        x = tv.crop(image, top, left, height, width)
        x = tv.resize(x, [size, size], InterpolationMode(augment.interpolation), antialias=True).clamp(0, 1)
        x = tv.horizontal_flip(x) if p["flip"] else x
        grey = (lambda x: tv.rgb_to_grayscale(x, 3)) if p["grey"] else (lambda x: x)
        x = grey(x) if augment.grey_before_jitter else x
        if p["jittered"]:
            for operation in p["order"].tolist():
                x = operations[operation](x, p["factors"][operation].item())
        x = x if augment.grey_before_jitter else grey(x)
        x = tv.gaussian_blur(x, [augment.kernel_size] * 2, [p["sigma"].item()] * 2) if p["blurred"] else x
        x = tv.solarize(x, 0.5) if p["solarised"] else x
        views.append(tv.normalize(x, augment.image.mean, augment.image.std))
    return torch.stack(views)


@pytest.mark.parametrize(
    "settings", [{}, {"grey_before_jitter": True}, {"interpolation": "bicubic", "size": 72}], ids=str
)
def test_a_view_is_torchvisions_step_by_step(make_batch, make_spec, settings):
    batch = make_batch(24, canvas=48, padded=True)
    augment = Augmentation(make_spec(32, normalise=True), **EVERYTHING, **settings)
    parameters = augment.draw(batch, draws_of(batch))
    # kept away from the threshold's jump, everything is continuous in the parameters
    parameters.solarised = torch.zeros_like(parameters.solarised)
    views = augment.apply(batch.canvases, parameters)
    expected = by_torchvision(augment, batch, parameters)
    assert views.dtype == torch.float32
    assert parameters.jittered.any() and parameters.grey.any() and parameters.blurred.any() and parameters.flip.any()
    torch.testing.assert_close(views.double(), expected, rtol=0, atol=2e-4)  # in units of a std of 0.2


def test_solarise_comes_last(make_batch, make_spec):
    batch = make_batch()
    plain = Augmentation(make_spec(), solarise=0.0)(batch, draws_of(batch))
    inverted = Augmentation(make_spec(), solarise=1.0)(batch, draws_of(batch))
    torch.testing.assert_close(inverted, torch.where(plain < 0.5, plain, 1 - plain))


def test_same_draws_same_picture_other_draws_another(make_batch, make_spec):
    batch, augment = make_batch(), Augmentation(make_spec(), **EVERYTHING)
    views = augment(batch, draws_of(batch))
    assert torch.equal(views, augment(batch, draws_of(batch)))
    for other in (Draws(1, batch.index), Draws(0, batch.index, epoch=1)):
        assert (augment(batch, other) - views).abs().flatten(1).amax(dim=1).min() > 0.01


@pytest.mark.parametrize("size", [32, 64])
def test_a_view_depends_on_its_own_sample_only(make_batch, make_spec, monkeypatch, size):
    """Neither the order of the batch, nor its size, nor the blocks it is computed in matter."""
    batch, augment = make_batch(9, canvas=64), Augmentation(make_spec(size), **EVERYTHING)
    views = augment(batch, draws_of(batch))
    order = torch.tensor([4, 2, 8, 0, 7])
    part = permuted(batch, order)
    torch.testing.assert_close(augment(part, draws_of(part)), views[order], rtol=0, atol=1e-6)
    monkeypatch.setattr(augmentation, "_BLOCK_VALUES", 3 * 3 * 64 * 64)
    torch.testing.assert_close(augment(batch, draws_of(batch)), views, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_padding_never_leaks_into_a_view(make_batch, make_spec, interpolation):
    batch = make_batch(40, canvas=48, padded=True)
    settings = dict(jitter=None, grey=0.0, blur=0.0, interpolation=interpolation)
    batch.canvases[batch.canvases < 255] = 0
    assert Augmentation(make_spec(), **settings)(batch, draws_of(batch)).max() == 0
    assert CentreView(make_spec(), interpolation=interpolation)(batch).max() == 0
    assert RandomCropPad(make_spec())(batch, draws_of(batch)).max() == 0


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(make_batch, make_spec, channels):
    batch = make_batch(channels=channels)
    settings = EVERYTHING | {"jitter": (0.4, 0.4, 0.4, 0.0)}
    views = Augmentation(make_spec(channels=channels), **settings)(batch, draws_of(batch))
    assert views.shape == (6, channels, 32, 32) and views.isfinite().all()
    grey = Augmentation(make_spec(channels=channels), jitter=None, grey=1.0, blur=0.0)(batch, draws_of(batch))
    torch.testing.assert_close(grey, grey.mean(dim=1, keepdim=True).expand_as(grey))


@pytest.mark.parametrize("channels", [1, 5])
def test_only_three_channels_have_a_hue(make_batch, make_spec, channels):
    batch = make_batch(channels=channels)
    with_hue = Augmentation(make_spec(channels=channels), jitter=(0.4, 0.4, 0.4, 0.2))(batch, draws_of(batch))
    without = Augmentation(make_spec(channels=channels), jitter=(0.4, 0.4, 0.4, 0.0))(batch, draws_of(batch))
    assert torch.equal(with_hue, without)


def test_geometry_maps_the_view_onto_the_canvas(make_spec):
    """On a canvas that holds its own coordinates, the pixels of an enlarged view are its matrix' prediction."""
    steps = torch.arange(64.0) + 0.5
    ramps = torch.stack([steps.expand(64, 64), steps[:, None].expand(64, 64)])  # x, y
    batch = CanvasBatch(ramps.expand(20, -1, -1, -1), torch.tensor([[0.0, 0, 64, 64]]).repeat(20, 1), torch.arange(20))
    augment = Augmentation(make_spec(channels=2), size=40, scale=(0.1, 0.2), jitter=None, grey=0.0, blur=0.0)
    views, matrices = augment.with_geometry(batch, draws_of(batch))
    assert (matrices[:, 0, 0] < 0).any() and (matrices[:, 0, 0] > 0).any()  # mirrored and not
    y, x = torch.meshgrid(torch.arange(40.0) + 0.5, torch.arange(40.0) + 0.5, indexing="ij")
    predicted = torch.einsum("bij,jhw->bihw", matrices, torch.stack([x, y, torch.ones_like(x)]))[:, :2]
    inner = slice(2, -2)  # beyond the outermost pixel centres the edge is repeated
    torch.testing.assert_close(views[..., inner, inner], predicted[..., inner, inner], rtol=0, atol=1e-3)


def test_geometry_does_not_depend_on_colour(make_batch, make_spec):
    batch = make_batch()
    matrices = [
        Augmentation(make_spec(), **settings).with_geometry(batch, draws_of(batch))[1]
        for settings in ({}, {"jitter": None, "blur": 0.0, "grey": 1.0})
    ]
    assert torch.equal(*matrices)


def test_autocast_changes_nothing(make_batch, make_spec):
    batch, augment = make_batch(), Augmentation(make_spec(64), **EVERYTHING)
    views = augment(batch, draws_of(batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(batch, draws_of(batch)), views)


def test_centre_view_is_the_central_crop(make_batch, make_spec):
    batch = make_batch(canvas=40)
    views = CentreView(make_spec(32, normalise=True, crop_fraction=0.8))(batch)
    spec = make_spec(32, normalise=True)
    expected = tv.normalize(tv.center_crop(batch.canvases.float() / 255, [32, 32]), spec.mean, spec.std)
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-5)
    part = permuted(batch, torch.tensor([3]))
    torch.testing.assert_close(CentreView(make_spec(32, normalise=True, crop_fraction=0.8))(part), views[3:4])


def test_random_crop_pad_covers_every_place(make_batch, make_spec):
    one = make_batch(1, canvas=16)
    batch = CanvasBatch(one.canvases.expand(300, -1, -1, -1), one.rectangles.expand(300, -1), torch.arange(300))
    views = RandomCropPad(make_spec(16), pad=1)(batch, draws_of(batch))
    bordered = tv.pad(one.canvases[0].float() / 255, [1, 1, 1, 1])
    places = [bordered[:, i : i + 16, j : j + 16] for i in range(3) for j in range(3)]
    places = torch.stack(places + [place.flip(-1) for place in places]).flatten(1)
    distance = torch.cdist(views.flatten(1).double(), places.double())
    assert distance.min(dim=1).values.max() < 1e-4
    assert len(distance.argmin(dim=1).unique()) == 18


def test_default_kernel_is_a_tenth_of_the_view(make_spec):
    sizes = {size: Augmentation(make_spec(size)).kernel_size for size in (32, 96, 224)}
    assert sizes == {32: 3, 96: 9, 224: 23}


def test_augmentations_are_values(make_spec):
    augment = Augmentation(make_spec(), flip=0.0)
    assert augment == Augmentation(make_spec(), flip=0.0)
    assert dataclasses.replace(augment, flip=1.0) != augment


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"flip=1.5 is not accepted; give a probability in \[0, 1\]"),
        ({"scale": (0.5, 0.2)}, r"scale=\(0.5, 0.2\) is not accepted"),
        ({"scale": (0.5, 1.2)}, "at most 1"),
        ({"jitter": (0.4, 0.4, 0.4, 0.8)}, r"the last \(hue\) at most 0.5"),
        ({"jitter": (0.4, 0.4)}, "four strengths"),
        ({"blur_kernel": 4}, "blur_kernel=4 is not accepted; give an odd size below 64"),
        ({"blur_sigma": (0.0, 1.0)}, "0 < low <= high"),
        ({"interpolation": "nearest"}, "interpolation=nearest is not accepted; give 'bilinear' or 'bicubic'"),
        ({"size": 0}, "size=0 is not accepted"),
    ],
)
def test_settings_are_checked(make_spec, settings, message):
    with pytest.raises(RecipeError, match=message):
        Augmentation(make_spec(), **settings)
