from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from attar.errors import AttarError, DataError
from attar.evaluation.features import extract_features, tracked
from attar.models.backbones import build_backbone
from attar.views.augmentation import CentreView


class Net(nn.Module):
    """Flattened pixels through BatchNorm and dropout, so that a wrong mode is seen."""

    def __init__(self, fill=None):
        super().__init__()
        self.norm, self.dropout, self.fill = nn.BatchNorm2d(3), nn.Dropout(0.5), fill

    def forward(self, images):
        values = self.dropout(self.norm(images)).flatten(1)
        return values if self.fill is None else values * self.fill


def test_features_are_those_of_the_central_view_in_eval_mode(striped, spec):
    images, net = striped(11), Net()
    net.norm.running_mean.fill_(0.3)
    features = extract_features(net, images, spec, batch_size=4, progress=False)
    with torch.no_grad():
        expected = net.eval()(CentreView(spec)(images.batch(np.arange(11))))
    assert features.values.numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    assert features.values.dtype == torch.float32
    assert not features.values.is_inference()  # probes may use them with autograd
    assert features.index.tolist() == list(range(11))
    assert features.labels.tolist() == [i % 2 for i in range(11)]


def test_modes_and_statistics_are_left_as_they_were(striped, spec):
    net = Net().train()
    net.dropout.eval()
    before = net.norm.running_mean.clone()
    extract_features(net, striped(8), spec, progress=False)
    assert (net.training, net.norm.training, net.dropout.training) == (True, True, False)
    assert (net.norm.running_mean == before).all()


def test_rows_follow_the_images_not_the_listing(striped, spec):
    images = striped(9)
    order = np.array([5, 0, 7])
    net = build_backbone("pixels", channels=3, image_size=16)
    whole = extract_features(net, images, spec, progress=False)
    part = extract_features(net, images.subset(order), spec, progress=False)
    assert part.index.tolist() == [5, 0, 7]
    assert (part.values == whole.values[order]).all()


def test_bf16_is_close_and_only_when_asked(striped, spec):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    exact = extract_features(net, striped(6), spec, progress=False).values
    half = extract_features(net, striped(6), spec, progress=False, precision="bf16").values
    assert half.dtype == torch.float32
    assert 0 < (exact - half).abs().max() < 0.05
    with pytest.raises(AttarError, match=r"--precision 'fp16' is unknown; accepted: auto, fp32, bf16"):
        extract_features(net, striped(6), spec, precision="fp16")


def test_grey_images_are_repeated_for_a_colour_network(make_images, spec):
    grey = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 1), dtype=np.uint8)
    net = build_backbone("pixels", channels=3, image_size=16)
    one = extract_features(net, make_images(grey), spec, progress=False).values
    three = extract_features(net, make_images(grey.repeat(3, axis=3)), spec, progress=False).values
    assert (one == three).all()
    with pytest.raises(DataError, match="the images have 4 channels, the network takes 3"):
        extract_features(net, make_images(grey.repeat(4, axis=3)), spec, progress=False)


def test_features_that_are_not_finite_and_no_images_are_errors(striped, spec):
    with pytest.raises(AttarError, match="the features of 6 of 6 images are not finite"):
        extract_features(Net(fill=float("nan")), striped(6), spec, progress=False)
    with pytest.raises(DataError, match="small holds no usable image"):
        extract_features(Net(), striped(6).subset(np.arange(0)), spec, progress=False)


def test_progress_goes_to_stderr_only(capsys):
    assert list(tracked(iter([1, 2, 3]), 3, description="x")) == [1, 2, 3]
    assert capsys.readouterr().out == ""
