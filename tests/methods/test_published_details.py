"""Details of the papers that training goes on without: views, layers of heads, what is decayed, the teacher's
schedule. The numbers of recipes are in test_published_recipes.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from attar.data.images import ImageSpec
from attar.methods.base import load, resolve_recipe
from attar.models.heads import MLP
from attar.train.optimisers import build_optimiser, parameter_groups, set_rates
from attar.views.augmentation import Augmentation
from tests.methods.test_published_recipes import METHODS


class Kind(NamedTuple):
    """One kind of view: fields of Augmentation, with the commonest values."""

    scale: tuple[float, float]
    jitter: tuple[float, float, float, float] | None
    jitter_probability: float = 0.8
    flip: float = 0.5
    grey: float = 0.2
    grey_before_jitter: bool = False
    blur: float = 0.0
    solarise: float = 0.0
    interpolation: str = "bilinear"
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def crops(scale: tuple[float, float], **changes: Any) -> Kind:
    """Without colours."""
    return Kind(scale, None, grey=0.0)._replace(**changes)


def byol(scale: tuple[float, float], blur: tuple[float, ...], solarise: tuple[float, ...], resized: str) -> list[Kind]:
    """BYOL's colours; views that differ in blur and solarisation."""
    colours = (0.4, 0.4, 0.2, 0.1)
    return [Kind(scale, colours, blur=b, solarise=s, interpolation=resized) for b, s in zip(blur, solarise)]


def dino(whole: tuple[float, float], local: tuple[float, float] | None, blur: tuple[float, ...]) -> list[Kind]:
    """Two global views, and local ones."""
    pair = byol(whole, blur[:2], (0.0, 0.2), "bicubic")
    return pair + (byol(local, blur[2:], (0.0,), "bicubic") if local else [])


OLD, WEAK, STRONG = (0.4, 0.4, 0.4, 0.4), (0.4, 0.4, 0.4, 0.1), (0.8, 0.8, 0.8, 0.2)
GREY_FIRST = Kind((0.2, 1.0), OLD, 1.0, grey_before_jitter=True)
SWAV = [Kind((0.14, 1.0), STRONG, blur=0.5), Kind((0.05, 0.14), STRONG, blur=0.5)]
SIMCLR = [Kind((0.08, 1.0), STRONG, blur=0.5, interpolation="bicubic")]
SIMCLR_SMALL = [Kind((0.08, 1.0), WEAK, interpolation="bicubic")]
ASYMMETRIC, SHARP = (1.0, 0.1), (0.0, 0.0)
WHOLE = crops(((256 / 300) ** 2,) * 2, ratio=(1.0, 1.0))  # CPC's 256 x 256 of 300 x 300
LEJEPA = [Kind(scale, (0.4, 0.4, 0.2, 0.1), blur=0.5, solarise=0.2) for scale in ((0.3, 1.0), (0.05, 0.3))]

VIEWS = {
    ("cpc", "photo"): [WHOLE._replace(grey=1.0)],
    ("cpc", "small"): [WHOLE._replace(grey=0.5)],
    ("inst_disc", "photo"): [GREY_FIRST],
    ("inst_disc", "sampled"): [GREY_FIRST],
    ("inst_disc", "small"): [Kind((0.2, 1.0), OLD, 1.0, flip=0.0)],
    ("inva_spread", "small"): [Kind((0.2, 1.0), OLD, 1.0)],
    ("inva_spread", "photo"): [Kind((0.2, 1.0), OLD, 1.0)],
    ("cmc", "photo"): [crops((0.08, 1.0))],  # grey would destroy the view of colours
    ("cmc", "small"): [crops((0.2, 1.0))],
    ("pirl", "photo"): [Kind(scale, (0.4, 0.4, 0.4, 0.2), 1.0) for scale in ((0.08, 1.0), (0.6, 1.0))],
    ("pirl", "small"): [Kind(scale, (0.4, 0.4, 0.4, 0.2), 1.0) for scale in ((0.2, 1.0), (0.6, 1.0))],
    ("moco", "v1"): [GREY_FIRST],
    ("moco", "v2"): [Kind((0.2, 1.0), WEAK, blur=0.5)],
    ("moco", "small"): [Kind((0.08, 1.0), WEAK)],
    ("moco_v3", "vit"): byol((0.08, 1.0), ASYMMETRIC, (0.0, 0.2), "bilinear"),
    ("moco_v3", "convnet"): byol((0.2, 1.0), ASYMMETRIC, (0.0, 0.2), "bilinear"),
    ("moco_v3", "small"): byol((0.08, 1.0), SHARP, (0.0, 0.2), "bilinear"),
    ("moco_v3", "small_vit"): byol((0.08, 1.0), ASYMMETRIC, (0.0, 0.2), "bilinear"),
    ("simclr", "photo"): SIMCLR,
    ("simclr", "v2"): SIMCLR,
    ("simclr", "v2_memory"): SIMCLR,
    ("simclr", "small"): SIMCLR_SMALL,
    ("simclr", "small_lars"): SIMCLR_SMALL,
    ("nnclr", "photo"): SIMCLR,
    ("nnclr", "small"): SIMCLR_SMALL,
    ("densecl", "photo"): [Kind((0.2, 1.0), WEAK, blur=0.5)],
    ("densecl", "small"): [Kind((0.2, 1.0), WEAK)],
    ("simsiam", "photo"): [Kind((0.2, 1.0), WEAK, blur=0.5)],
    ("simsiam", "small"): [Kind((0.2, 1.0), WEAK)],
    ("byol", "photo"): byol((0.08, 1.0), ASYMMETRIC, (0.0, 0.2), "bicubic"),
    ("byol", "small"): byol((0.08, 1.0), SHARP, (0.0, 0.2), "bicubic"),
    ("barlow_twins", "photo"): byol((0.08, 1.0), ASYMMETRIC, (0.0, 0.2), "bicubic"),
    ("barlow_twins", "small"): byol((0.08, 1.0), SHARP, (0.0, 0.2), "bicubic"),
    ("vicreg", "photo"): byol((0.08, 1.0), ASYMMETRIC, (0.0, 0.2), "bicubic"),
    ("vicreg", "small"): byol((0.2, 1.0), (0.0,), (0.1,), "bicubic"),
    ("swav", "photo"): SWAV,
    ("swav", "photo_256"): SWAV,
    ("swav", "seer"): SWAV,
    ("swav", "small"): [Kind((0.14, 1.0), WEAK)],
    ("deep_cluster", "photo"): SWAV,
    ("deep_cluster", "small"): [Kind((0.14, 1.0), WEAK)],
    ("dino", "photo"): dino((0.4, 1.0), (0.05, 0.4), (1.0, 0.1, 0.5)),
    ("dino", "convnet"): dino((0.14, 1.0), (0.05, 0.14), (1.0, 0.1, 0.5)),
    ("dino", "small"): dino((0.14, 1.0), None, SHARP),
    ("dino", "small_vit"): dino((0.4, 1.0), (0.05, 0.4), (0.0, 0.0, 0.0)),
    ("lejepa", "photo"): LEJEPA,
    ("lejepa", "convnet"): LEJEPA,
    ("lejepa", "small"): [Kind((0.08, 1.0), STRONG, solarise=0.2)],
    ("lejepa", "small_vit"): [Kind((0.08, 1.0), STRONG, solarise=0.2)],
    ("ibot", "photo"): dino((0.25, 1.0), (0.05, 0.25), (1.0, 0.1, 0.5)),
    ("ibot", "small"): dino((0.25, 1.0), (0.05, 0.25), (0.0, 0.0, 0.0)),
    ("dinov2", "photo"): dino((0.32, 1.0), (0.05, 0.32), (1.0, 0.1, 0.5)),
    ("dinov2", "large"): dino((0.32, 1.0), (0.05, 0.32), (1.0, 0.1, 0.5)),
    ("dinov2", "small"): dino((0.32, 1.0), (0.05, 0.32), (0.0, 0.0, 0.0)),
    ("mae", "photo"): [crops((0.2, 1.0), interpolation="bicubic")],
    ("mae", "small"): [crops((0.2, 1.0), interpolation="bicubic")],
    ("simmim", "photo"): [crops((0.67, 1.0))],
    ("simmim", "small"): [crops((0.67, 1.0))],
    ("i_jepa", "photo"): [crops((0.3, 1.0), flip=0.0)],
    ("i_jepa", "small"): [crops((0.3, 1.0), flip=0.0)],
}


def augmentations(part: Any) -> Iterator[Augmentation]:
    """All that a view maker holds, in its order."""
    if isinstance(part, Augmentation):
        yield part
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from augmentations(getattr(part, field.name))
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from augmentations(item)


@pytest.mark.parametrize("name, recipe", VIEWS)
def test_views_are_the_published_ones(name, recipe):
    image = ImageSpec(size=224, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    found = list(augmentations(load(name).views(resolve_recipe(name, recipe), image)))
    kinds = [Kind(*(getattr(view, field) for field in Kind._fields)) for view in found]
    assert list(dict.fromkeys(kinds)) == VIEWS[name, recipe]
    assert all(view.blur_sigma == (0.1, 2.0) for view in found if view.blur)


def test_no_recipe_is_without_its_views():
    assert VIEWS.keys() == {(name, recipe) for name in METHODS for recipe in load(name).RECIPES}


# Of a method, or of one of its recipes. Linear without a bias: "Linear"; with: "Linear+b". Batch norm with scale and
# shift: "BN"; without a shift: "BN-b"; without both: "BN0".
LINEAR, WIDE = "Linear+b", "Linear+b ReLU Linear+b"
BYOL = "Linear+b BN ReLU Linear"
SWAV_HEAD = "Linear+b BN ReLU Linear+b"
DINO_HEAD = "Linear+b GELU Linear+b GELU Linear+b"
MOCO_V3_VIT = {"projector": "Linear BN ReLU Linear BN ReLU Linear BN0", "predictor": "Linear BN ReLU Linear BN0"}
HEADS = {
    "inst_disc": {"projector": LINEAR},
    "inva_spread": {"projector": LINEAR},
    "pirl": {"projector": LINEAR, "patch_projector": LINEAR, "patches_projector": LINEAR},
    "cmc": {"projectors.0": LINEAR, "projectors.1": LINEAR},
    "moco": {"projector": LINEAR},
    "moco v2": {"projector": WIDE},
    "densecl": {"projector": WIDE, "dense_projector": WIDE},
    "simclr": {"projector": "Linear BN ReLU Linear BN-b"},
    "simclr v2": {"projector": "Linear BN ReLU Linear BN ReLU Linear BN-b"},
    "simclr v2_memory": {"projector": "Linear BN ReLU Linear BN ReLU Linear BN-b"},
    "moco_v3": {"projector": "Linear BN ReLU Linear BN0", "predictor": "Linear BN ReLU Linear"},
    "moco_v3 vit": MOCO_V3_VIT,
    "moco_v3 small_vit": MOCO_V3_VIT,
    "nnclr": {"projector": "Linear BN ReLU Linear BN ReLU Linear BN", "predictor": "Linear BN ReLU Linear+b"},
    "nnclr small": {"projector": "Linear BN ReLU Linear BN", "predictor": "Linear BN ReLU Linear+b"},
    "deep_cluster": {"projector": SWAV_HEAD},
    "swav": {"projector": SWAV_HEAD},
    "swav seer": {"projector": "Linear+b ReLU Linear+b ReLU Linear+b"},
    "byol": {"projector": BYOL, "predictor": BYOL},
    "dino": {"head.mlp": DINO_HEAD},
    "dino small": {"head.mlp": "Linear+b BN GELU Linear+b BN GELU Linear+b"},
    "simsiam": {"projector": "Linear BN ReLU Linear BN ReLU Linear BN0", "predictor": "Linear BN ReLU Linear+b"},
    "simsiam small": {"projector": "Linear BN ReLU Linear BN0", "predictor": "Linear BN ReLU Linear+b"},
    "barlow_twins": {"projector": "Linear BN ReLU Linear BN ReLU Linear"},
    "barlow_twins small": {"projector": "Linear BN ReLU Linear"},
    "vicreg": {"projector": "Linear+b BN ReLU Linear+b BN ReLU Linear"},
    "lejepa": {"projector": "Linear+b BN ReLU Linear+b BN ReLU Linear+b"},
    "ibot": {"head.mlp": DINO_HEAD},
    "dinov2": {"head.mlp": DINO_HEAD, "patch_head.mlp": DINO_HEAD},
}
WITHOUT_HEADS = {"cpc", "mae", "simmim", "i_jepa"}  # they have parts of their own in the place


def kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return "Linear" if layer.bias is None else "Linear+b"
    if isinstance(layer, nn.BatchNorm1d):
        if not layer.affine:
            return "BN0"
        assert layer.weight.requires_grad
        return "BN" if layer.bias.requires_grad else "BN-b"
    return type(layer).__name__


@pytest.mark.parametrize("name, recipe", [key for key in VIEWS if key[0] not in WITHOUT_HEADS])
def test_heads_have_the_published_layers(bench, name, recipe):
    parts = bench(name, recipe).method.named_modules()
    heads = {n: head for n, head in parts if isinstance(head, MLP) and not n.startswith(("backbone.", "teacher."))}
    found = {n: " ".join(kind(layer) for layer in head) for n, head in heads.items()}
    assert found == HEADS.get(f"{name} {recipe}", HEADS[name])
    layers = [layer for head in heads.values() for layer in head if kind(layer) == "BN-b"]
    assert all(not layer.bias.any() for layer in layers), "no shift: a bias that stays 0"


DECAYED = {  # weight decay, and LARS's adaptation, of biases and norms: of published code, or said by the paper
    ("inst_disc", "photo"): True,  # optimisers over all parameters
    ("inva_spread", "photo"): True,
    ("cmc", "photo"): True,
    ("moco", "v1"): True,
    ("moco", "v2"): True,
    ("moco_v3", "vit"): True,
    ("densecl", "photo"): True,
    ("simsiam", "photo"): True,
    ("swav", "photo"): True,
    ("swav", "seer"): True,
    ("deep_cluster", "photo"): True,
    ("lejepa", "photo"): True,
    ("simclr", "photo"): False,  # LARS that leaves them out
    ("simclr", "v2"): False,
    ("byol", "photo"): False,
    ("moco_v3", "convnet"): False,
    ("barlow_twins", "photo"): False,
    ("vicreg", "photo"): False,
    ("nnclr", "photo"): False,
    ("pirl", "photo"): False,
    ("dino", "photo"): False,  # AdamW with two groups
    ("mae", "photo"): False,
    ("simmim", "photo"): False,
    ("ibot", "photo"): False,
    ("dinov2", "photo"): False,
    ("i_jepa", "photo"): False,
}


@pytest.mark.parametrize("name, recipe", DECAYED)
def test_biases_and_norms_are_decayed_where_the_published_code_does(bench, name, recipe):
    built = bench(name, recipe)
    settings = built.method.recipe
    assert settings.weight_decay > 0
    optimiser = build_optimiser(built.method, settings)
    set_rates(optimiser, settings, built.progress(1))
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    small = {n: groups[id(p)] for n, p in built.method.named_parameters() if p.requires_grad and p.ndim <= 1}
    assert any("bn" in n or "norm" in n for n in small)
    assert any(not n.startswith("backbone.") for n in small)
    expected = settings.weight_decay if DECAYED[name, recipe] else 0.0
    decays = {n: group["weight_decay"] for n, group in small.items()}
    assert set(decays.values()) == {expected}, decays
    if settings.optimiser == "lars":
        names = {id(p): n for n, p in built.method.named_parameters()}
        adapted = {names[key] for key, group in groups.items() if group["adapt"]}
        assert adapted == {names[key] for key in groups} - (set() if DECAYED[name, recipe] else small.keys())


UNDECAYED = {
    "mae": {"backbone.network.pos_embed"},
    "i_jepa": {"backbone.network.pos_embed"},
    "moco_v3": {"backbone.network.pos_embed"},
    "simmim": {"mask_token", *(f"backbone.network.{token}" for token in ("pos_embed", "cls_token", "reg_token"))},
}


@pytest.mark.parametrize("name", UNDECAYED)
def test_positions_are_not_decayed_and_all_else_is_treated_as_usual(bench, monkeypatch, name):
    method = bench(name, **({"recipe": "vit", "network": "vit_micro_p8"} if name == "moco_v3" else {})).method
    if name == "simmim":  # the networks it takes need have neither
        for token in ("cls_token", "reg_token"):
            setattr(method.backbone.network, token, nn.Parameter(torch.zeros(1, 1, 4)))

    def settings() -> dict[str, dict[str, Any]]:
        names = {id(p): n for n, p in method.named_parameters()}
        groups = parameter_groups(method, method.recipe)
        return {names[id(p)]: {k: v for k, v in g.items() if k != "params"} for g in groups for p in g["params"]}

    own = settings()
    monkeypatch.setattr(method, "parameter_groups", lambda: None)
    usual = settings()
    assert usual.keys() == own.keys() > UNDECAYED[name]
    for parameter, group in usual.items():
        decayed = method.get_parameter(parameter).ndim > 1 or method.recipe.decay_bias_and_norm
        assert group["weight_decay_scale"] == decayed
        expected = group | {"weight_decay_scale": 0.0} if parameter in UNDECAYED[name] else group
        assert own[parameter] == expected, parameter


@pytest.mark.parametrize("name", ["dino", "ibot", "dinov2", "byol", "moco_v3"])
def test_the_teacher_after_two_steps_is_the_mean_its_schedule_says(bench, name):
    """Of eight steps: m is 0.9 at the first, 1 - 0.1 (1 + cos(pi / 8)) / 2 at the second."""
    built = bench(name, momentum=0.9)
    followed = built.method.student if hasattr(built.method, "student") else built.method.encoder
    with torch.no_grad():
        for i, parameter in enumerate(followed.parameters()):  # far from the teacher
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    teacher = [p.double() for p in built.method.teacher.parameters()]
    for step, m in enumerate((0.9, 1 - 0.1 * (1 + math.cos(math.pi / 8)) / 2)):
        built.train(range(step, step + 1))
        teacher = [m * old + (1 - m) * new.detach().double() for old, new in zip(teacher, followed.parameters())]
    for expected, found in zip(teacher, built.method.teacher.parameters(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
