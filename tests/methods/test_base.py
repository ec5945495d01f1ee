"""Recipes: named, replaced field by field, typed, and never silently ignored."""

import re

import pytest

from attar import pretrain
from attar.catalogue import describe
from attar.errors import BackboneError, RecipeError
from attar.methods import CATALOGUE
from attar.methods.base import load, resolve_recipe


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


def test_the_field_of_another_method_is_called_that():
    with pytest.raises(RecipeError, match="unknown recipe field 'queue_length'.*is a field of .*moco.*, not of this"):
        resolve_recipe("simclr", "photo", {"queue_length": 64})
    for nobodys in ("temprature", "__init__", "peak_lr"):
        with pytest.raises(RecipeError) as error:
            resolve_recipe("simclr", "photo", {nobodys: 64})
        assert "is a field of" not in str(error.value)


def test_the_scale_of_a_crop_that_is_padded_is_refused():
    assert resolve_recipe("rotation", "small", {"crop": "resized", "crop_scale": (0.5, 1)}).crop_scale == (0.5, 1)
    for method in ("rotation", "supervised"):
        with pytest.raises(RecipeError, match="crop_scale would be ignored: crop is 'padded'.*or set crop=resized"):
            resolve_recipe(method, "small", {"crop_scale": (0.5, 1)})


@pytest.mark.parametrize(
    ("method", "setting", "accepted"),
    [
        ("relative_position", "gap=-0.5", "give 0 or more"),
        ("relative_position", "displaced=-0.1", "give 0 or more"),
        ("relative_position", "low_resolution=2.0", "give a number from 0 to 1"),
        ("relative_position", "patch_scale=-1.0", "give a number above 0"),
        ("colorization", "uniform_share=2.0", "give a number from 0 to 1"),
        ("colorization", "sigma=0.0", "give a number above 0"),
        ("exemplar", "translation=-1.0", "give 0 or more"),
        ("exemplar", "dropout=1.5", "give a number from 0 to below 1"),
        ("jigsaw", "max_foreign=-1", "give 0 or more"),
        ("jigsaw", "channel_shift=-1", "give 0 or more"),
        ("jigsaw", "grid=0", "give 1 or more"),
        ("jigsaw", "num_permutations=1", "give 2 or more"),
        ("cluster_transfer", "num_clusters=1", "give 2 or more"),
        ("inpainting", "blot_cells=0", "give 1 or more"),
        ("inpainting", "overlap=-0.1", "give 0 or more"),
    ],
)
def test_settings_of_the_pretext_tasks_have_bounds(method, setting, accepted):
    name, value = setting.split("=")
    with pytest.raises(RecipeError, match=f"{method}: {setting} is not accepted; {accepted}"):
        resolve_recipe(method, "small", {name: value})


@pytest.mark.parametrize("method", ["mae", "i_jepa"])
def test_a_backbone_without_patches_is_refused_before_images_are_read(tmp_path, method):
    with pytest.raises(BackboneError, match=f"{method} masks the patches.*resnet20 is none.*vit_tiny_p4"):
        pretrain(tmp_path / "missing", out=tmp_path / "run", method=method, backbone="resnet20")


def test_a_method_from_a_module_of_ones_own(tmp_path, monkeypatch):
    """A name with a dot is a module that Python finds; no line of the catalogue is needed."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("")
    (tmp_path / "my_lab" / "mine.py").write_text("from attar.methods.pretext.rotation import METHOD, RECIPES, views\n")
    (tmp_path / "my_lab" / "half.py").write_text("RECIPES = {}\n")
    (tmp_path / "my_lab" / "broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("my_lab.mine").METHOD is load("rotation").METHOD
    assert resolve_recipe("my_lab.mine", overrides={"epochs": 3}).epochs == 3
    with pytest.raises(RecipeError, match=r"there is no module 'my_lab.none'"):
        load("my_lab.none")
    with pytest.raises(RecipeError, match="does not define METHOD, views"):
        load("my_lab.half")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):  # not ours to explain away
        load("my_lab.broken")


def test_a_page_says_where_recipes_and_their_values_come_from():
    page = describe("dino")
    assert page.origins["small"].startswith("32 px: after the CIFAR-10 benchmark of lightly")
    (rate,) = [field.source for field in page.fields if field.name == "base_lr"]
    assert rate.endswith("small: 0.06 at a batch of 128")
    assert page.origins["small"] in page.markdown() and page.origins["small"] in page.text()
    # a constant of another form of name; in lines above; going on below; beside a word for the type checker
    assert describe("simclr").origins["v2"].startswith("arXiv:2006.10029")
    assert describe("swav").origins["seer"].endswith("give --image-size 160.")
    assert describe("barlow_twins").origins["small"].endswith("few directions of the embedding")
    assert describe("dogo").origins["paper_simsiam"] == 'as "paper", with the published code\'s heads for SimSiam'


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_page_says_of_every_recipe_where_it_comes_from_in_whole_sentences(name):
    page = describe(name)
    assert set(page.origins) == set(page.recipes)
    for note in [*page.origins.values(), *(field.source for field in page.fields)]:
        assert not re.search(r"[,;:(\[]$", note), note
        assert note.count("(") == note.count(")") and "type: ignore" not in note, note


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_page_says_what_a_method_costs_and_when_to_choose_it(name):
    assert "\nCost: " in describe(name).explanation and "\nChoose it " in describe(name).explanation
