"""What a model is measured against: random initialisation, pixels, HOG, the teacher, the pretrained twin.

Every control goes through exactly the same protocols. None is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np
import torch
from torch import nn

from attar.data.images import Images, ImageSpec
from attar.errors import RecipeError, unknown_name
from attar.evaluation.features import match_channels, read_ahead
from attar.evaluation.subject import Subject
from attar.evaluation.verdict import NO_WEIGHTS, NOT_PUBLISHED
from attar.models.backbones import build_backbone, cached_weights, evaluation_mode, published_config
from attar.models.lab import SeesLab
from attar.views.augmentation import CentreView

CONTROLS = ("random_init", "pixels", "hog", "pretrained")
PIXELS_SIZE = 32  # `pixels` averages to 16 x 16 from there
HOG_SIZE = 64
STATISTICS_IMAGES = 512  # that BatchNorm's statistics are measured on, each with all its positions
CHOICE_IMAGES = 2048  # that tell which statistics are the stronger
NUM_UNTRAINED = 5


class Omitted(Exception):
    """A control that cannot be built here; the text says why. It is listed in the verdict, not an error."""


def named_controls(controls: bool | Sequence[str]) -> Sequence[str]:
    """True stands for all, False for none."""
    return CONTROLS if controls is True else controls or ()


def check_controls(names: Sequence[str], num_untrained: int | None) -> int:
    """The number of untrained networks; RecipeError for an unknown control, or a number that is none or ignored."""
    if isinstance(names, str):
        raise RecipeError(f"evaluate: controls={names!r} is not accepted; give a list of {', '.join(CONTROLS)}.")
    for name in names:
        if name not in CONTROLS:
            raise RecipeError("evaluate: " + unknown_name("control", name, CONTROLS))
    if num_untrained is None:
        return NUM_UNTRAINED
    if "random_init" not in names:
        raise RecipeError("evaluate: num_untrained would be ignored, because random_init is not among the controls.")
    if not isinstance(num_untrained, Integral) or num_untrained is True or num_untrained < 1 or num_untrained == 2:
        raise RecipeError(
            f"evaluate: num_untrained={num_untrained!r} is not accepted; give 3 or more, so that it shows how much "
            "untrained networks differ, or 1 for a quick look that does not know."
        )
    return int(num_untrained)


def build_control(name: str, model: Subject, *, num_untrained: int = NUM_UNTRAINED) -> Iterable[Subject]:
    """The networks of one control, one after another; raises Omitted if there is none."""
    if name == "random_init":
        return random_init(model, num_untrained)
    if name == "pretrained":
        return [pretrained_twin(model)]
    return [_parameter_free(model, name, PIXELS_SIZE if name == "pixels" else HOG_SIZE)]


def random_init(model: Subject, num_networks: int = 1) -> Iterator[Subject]:
    """The same architecture with fresh weights, as strong as can be had. The draws depend on the task's seed and are
    none that a training with that seed starts from, so that a model which learned nothing is one more draw.

    Untrained networks differ (ResNet-20 on solar cells: by 0.04 of ROC-AUC), so one of them alone says little.

    BatchNorm's running statistics of an untrained network may stay at 0 and 1, or be measured on training images;
    which makes the better features depends on the architecture (on CIFAR-10 5 points of linear top-1 either way). Both
    are tried with the first network, and the one whose training features recognise their neighbours better is taken,
    so that beating this control is never cheap.
    """
    if not any(True for _ in model.backbone.parameters()):
        raise Omitted(NO_WEIGHTS)
    train = model.task.train
    order = np.random.default_rng(0).permutation(len(train))
    some = train.subset(order[:STATISTICS_IMAGES])
    plain = _fresh(model, 0)
    measured = replace(plain, backbone=copy.deepcopy(plain.backbone))
    judges = train if len(train) <= CHOICE_IMAGES else train.subset(order[:CHOICE_IMAGES])
    calibrate = _calibrate(measured, some) and _stronger(measured, plain, judges)
    first = measured if calibrate else plain
    del plain, measured
    yield first
    del first
    for number in range(1, num_networks):
        fresh = _fresh(model, number)
        if calibrate:
            _calibrate(fresh, some)
        yield fresh


def _fresh(model: Subject, number: int) -> Subject:
    spec, task = model.spec, model.task
    with torch.random.fork_rng(devices=[]):
        seed = np.random.SeedSequence([task.seed, number]).generate_state(1)[0]
        torch.default_generator.manual_seed(int(seed))  # of the CPU, where weights are drawn; those of GPUs stay
        network = build_backbone(spec.name, channels=spec.channels, image_size=spec.image_size, stem=spec.stem)
    if isinstance(network.network, SeesLab):
        network.network.expect(model.image.mean, model.image.std)
    settings = {"batchnorm": "as initialised"} if _norms(network) else {}
    return Subject("random_init", network, model.image, task, settings)


def _calibrate(subject: Subject, some: Images) -> bool:
    """Measure BatchNorm's statistics on these images; False where there is none."""
    task = subject.task
    if not calibrate_batchnorm(subject.backbone, some, subject.image, device=task.device, batch_size=task.batch_size):
        return False
    subject.settings = {"batchnorm": f"measured on {len(some)} training images"}
    return True


def _stronger(measured: Subject, plain: Subject, some: Images) -> bool:
    """Whether measured statistics recognise neighbours among these images at least as well."""
    from attar.train.health import online_knn

    def recognised(subject: Subject) -> float:
        if some is not subject.task.train:  # else the features are kept for the protocols
            subject = replace(subject, task=replace(subject.task, train=some, progress=False))
        features = subject.train
        assert features.labels is not None
        return online_knn(features.values, features.labels)

    return recognised(measured) >= recognised(plain)


def calibrate_batchnorm(
    backbone: nn.Module, images: Images, image: ImageSpec, *, device: torch.device | str, batch_size: int
) -> bool:
    """Set running statistics to their mean over these images; False where there is no BatchNorm."""
    norms = _norms(backbone)
    if not norms:
        return False
    backbone.to(device)
    view = CentreView(image)
    momenta = [m.momentum for m in norms]
    with evaluation_mode(backbone), torch.no_grad():
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a plain mean over batches
            m.train()
        for batch in read_ahead(images, np.array_split(np.arange(len(images)), -(-len(images) // batch_size))):
            backbone(view(match_channels(batch.to(device), image)))
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    return True


def _norms(backbone: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorms that keep running statistics."""
    return [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def _parameter_free(model: Subject, name: str, largest: int) -> Subject:
    size = min(model.image.size, largest)
    if model.spec.name == name and model.image.size == size:
        raise Omitted("it is the model itself")
    image = replace(model.image, size=size)
    backbone = build_backbone(name, channels=image.channels, image_size=size)
    return Subject(name, backbone, image, model.task, {"image_size": size})


def pretrained_twin(model: Subject) -> Subject:
    """The same timm architecture with its published weights and their normalisation, if they are on this machine."""
    spec = model.spec
    published = published_config(spec.name)
    if published is None and published_config(spec.name.partition("_")[2]) is not None:
        raise Omitted("published weights are those of the network it is made of")
    if published is None or not (published.hf_hub_id or published.url):
        raise Omitted(NOT_PUBLISHED)
    weights = cached_weights(spec.name)
    if weights is None:
        raise Omitted("no published weights of this network are on this machine")
    if spec.stem != "standard":
        raise Omitted("published weights do not fit the small stem")
    backbone = build_backbone(
        spec.name, channels=spec.channels, image_size=spec.image_size, stem=spec.stem, pretrained=True
    )
    mean, std = published.mean, published.std
    if spec.channels != len(mean):
        mean = (float(np.mean(mean)),) * spec.channels
        std = (float(np.mean(std)),) * spec.channels
    image = replace(model.image, mean=tuple(mean), std=tuple(std))
    return Subject("pretrained", backbone, image, model.task, {"weights": weights[0]})
