"""Recipes: named, replaced field by field, typed, and never silently ignored."""

import pytest

from attar import pretrain
from attar.errors import BackboneError, RecipeError
from attar.methods.base import resolve_recipe


def test_strings_become_the_fields_type():
    recipe = resolve_recipe(
        "simclr",
        "photo",
        {"temperature": "0.2", "crop_scale": "(0.2, 1)", "lr_scaling": "none", "projector_hidden_dim": "none"},
    )
    assert recipe.temperature == 0.2 and recipe.crop_scale == (0.2, 1.0)
    assert recipe.lr_scaling == "none" and recipe.projector_hidden_dim is None
    assert recipe.peak_lr == recipe.base_lr


def test_the_first_recipe_is_the_default_and_others_have_names():
    assert resolve_recipe("moco") == resolve_recipe("moco", "v2")
    with pytest.raises(RecipeError, match="moco: unknown recipe 'v3'.*Known: v"):
        resolve_recipe("moco", "v3")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temprature": 1}, "unknown recipe field 'temprature'. Did you mean temperature?"),
        ({"temperature": "hot"}, "temperature='hot' is not accepted"),
        ({"optimiser": "adamw", "sgd_momentum": 0.9}, "sgd_momentum would be ignored: optimiser is 'adamw'"),
        ({"lr_drops": (0.5,)}, "lr_drops would be ignored: schedule is 'cosine'"),
        ({"lr": 0.1, "base_lr": 0.2}, "base_lr would be ignored because lr is given"),
    ],
)
def test_what_would_be_ignored_or_misread_is_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        resolve_recipe("simclr", "photo", settings)


@pytest.mark.parametrize("method", ["mae", "i_jepa"])
def test_a_backbone_without_patches_is_refused_before_images_are_read(tmp_path, method):
    with pytest.raises(BackboneError, match=f"{method} masks the patches.*resnet20 is none.*vit_tiny_p4"):
        pretrain(tmp_path / "missing", out=tmp_path / "run", method=method, backbone="resnet20")
