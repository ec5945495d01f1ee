"""Settings: one that has no effect, or makes no sense, is refused; with what it needs it is accepted."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

from attar import demo
from attar.data.images import ImageSpec
from attar.errors import RecipeError
from attar.methods import CATALOGUE
from attar.methods.base import Recipe, UsedWith, load, resolve_recipe
from attar.request import plain


def conditions(recipe: Recipe) -> dict[str, UsedWith]:
    kinds = reversed(type(recipe).__mro__)
    return {name: needed for kind in kinds for name, needed in vars(kind).get("used_with", {}).items()}


# method, recipe, what is set, how it is refused, what makes it accepted
IGNORED = [
    ("simclr", "v2", "memory_momentum=0.9", "memory_length is None.*used with a number above 0", "memory_length=64"),
    ("simclr", "photo", "clip_per_parameter=true", "clip_gradient is None", "clip_gradient=1"),
    ("simclr", "photo", "decay_bias_and_norm=true optimiser=sgd weight_decay=0", "weight_decay is 0", "weight_decay=1"),
    ("moco", "v1", "projector_hidden_dim=64", "projector_layers is 1.*a number above 1", "projector_layers=2"),
    ("moco_v3", "small", "projector_hidden_dim=64 projector_layers=1", "projector_layers is 1", "projector_layers=2"),
    ("nnclr", "small", "projector_hidden_dim=64 projector_layers=1", "projector_layers is 1", "projector_layers=2"),
    ("simsiam", "small", "projector_hidden_dim=64 projector_layers=1", "projector_layers is 1", "projector_layers=2"),
    ("barlow_twins", "small", "projector_hidden_dim=9 projector_layers=1", "projector_layers is", "projector_layers=3"),
    ("dino", "small", "local_scale=0.1,0.2", "num_local_views is 0.*set num_local_views to a", "num_local_views=2"),
    ("dino", "photo", "local_size=0.5 num_local_views=0", "num_local_views is 0", "num_local_views=2"),
    ("lejepa", "small", "local_size=0.5", "num_local_views is 0", "num_local_views=2"),
    ("deep_cluster", "small", "local_size=0.5", "num_local_views is 0", "num_local_views=2"),
    ("seed", "small", "local_scale=0.1,0.2", "num_local_views is 0", "num_local_views=2"),
    ("ibot", "small", "local_size=0.5 num_local_views=0", "num_local_views is 0", "num_local_views=2"),
    ("ibot", "small", "teacher_temperature_start=0.1", "teacher_temperature_f", "teacher_temperature_fraction=1"),
    ("ibot", "small", "mask_ratio=0.1,0.2 mask_probability=0", "mask_probability is 0", "mask_probability=0.5"),
    ("swav", "small", "queue_start_fraction=0.5", "queue_length is 0", "queue_length=64"),
    ("swav", "small", "head_batch_norm=false projector_layers=1", "projector_layers is 1", "projector_layers=2"),
    ("dinov2", "small", "sinkhorn_iterations=5 centring=softmax", "centring is 'softmax'", "centring=sinkhorn"),
    ("dinov2", "small", "centre_momentum=0.5", "centring is 'sinkhorn'.*set centring=softmax", "centring=softmax"),
    ("inpainting", "small", "discriminator_dim=32", "adversarial_weight is 0", "adversarial_weight=0.1"),
    ("inpainting", "small", "overlap_weight=2", "overlap is 0", "overlap=0.1"),
    ("inpainting", "paper", "blot_cells=4", "region is 'central'", "region=random"),
    ("metric", "n_pair", "margin=0.5", "loss is 'n_pair', and margin is used with contrastive_pair or", "loss=triplet"),
    ("metric", "center", "mining=hard", "loss is 'center'", "loss=triplet"),
    ("metric", "triplet", "center_rate=0.1", "loss is 'triplet'", "loss=center"),
    ("compress", "small", "momentum=0.9", "own_queue is False.*set own_queue=True", "own_queue=true"),
    ("s2bnn", "small", "queue_length=64", "contrastive_weight is 0", "contrastive_weight=1"),
    ("dogo", "small", "predictor_hidden_dim=64", "objective is 'nt_xent'", "objective=simsiam"),
    ("dogo", "small_simsiam", "temperature=0.2", "objective is 'simsiam'", "objective=nt_xent"),
    ("born_again", "cwtm", "label_smoothing=0.1", "weighted_by_confidence is True", "weighted_by_confidence=false"),
    ("born_again", "cwtm", "permuted=true", "teacher_weight is 0", "teacher_weight=1"),
    ("attention_transfer", "small", "temperature=2", "kd_weight is 0", "kd_weight=1"),
    ("crd", "small", "num_negatives=16 contrast_weight=0", "contrast_weight is 0", "contrast_weight=1"),
    ("fitnet", "small", "student_stage=stage1 hint_weight=0", "hint_weight is 0", "hint_weight=1"),
    ("byot", "supervised_only", "temperature=2", "distillation_weight is 0", "distillation_weight=0.1"),
    ("ddgsd", "small", "temperature=2 distillation_weight=0", "distillation_weight is 0", "distillation_weight=1"),
    ("pskd", "small", "table_precision=fp32 own_share=0", "own_share is 0", "own_share=0.5"),
    ("snapshot", "small", "teacher_temperature=3 num_cycles=1", "num_cycles is 1", "num_cycles=2"),
    ("born_again", "teacher_only", "label_smoothing=0.1", "label_weight is 0", "label_weight=1"),
    ("born_again", "dkpp", "label_smoothing=0.1", "label_weight is 0", "label_weight=1"),
    ("ddgsd", "small", "label_smoothing=1 cross_entropy_weight=0", "cross_entropy_weight is", "cross_entropy_weight=1"),
    ("pirl", "small", "patch_scale=0.5 patch_weight=0", "patch_weight is 0", "patch_weight=0.5"),
    ("pirl", "small", "patch_crop_scale=0.5,1 patch_weight=0", "patch_weight is 0", "patch_weight=0.5"),
    ("snapshot", "small", "distillation_weight=0.5 num_cycles=1", "num_cycles is 1", "num_cycles=2"),
    ("finetune", "small", "label_seed=1", "label_fraction is 1.0.*a number below 1", "label_fraction=0.5"),
    ("simclr_v2", "small", "label_fraction=0.5", "label_weight is 0", "label_weight=0.5"),
    ("sskd", "small", "keep_wrong=1 self_supervision_weight=0", "self_supervision_weight", "self_supervision_weight=1"),
    ("sskd", "small", "transformations=four task=jigsaw", "task is 'jigsaw'", "task=contrastive"),
    ("sskd_teacher", "small", "margin=0.5", "task is 'contrastive'", "task=exemplar"),
]  # fmt: skip


def settings(text: str) -> dict[str, str]:
    return dict(setting.split("=") for setting in text.split())


@pytest.mark.parametrize(("method", "recipe", "given", "refused", "with_it"), IGNORED, ids=lambda value: str(value))
def test_a_setting_without_what_it_needs_is_refused(method, recipe, given, refused, with_it):
    name = given.split("=")[0]
    with pytest.raises(RecipeError, match=f"{method}: {name} would be ignored: {refused}"):
        resolve_recipe(method, recipe, settings(given))
    assert resolve_recipe(method, recipe, settings(given) | settings(with_it))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_recipe_with_every_field_of_its_own_is_accepted_or_told_what_it_needs(name):
    """Conditions are of fields that exist, and what a recipe itself holds is no setting that a person gave."""
    for recipe_name, recipe in load(name).RECIPES.items():
        own = plain(dataclasses.asdict(recipe))
        again = resolve_recipe(name, recipe_name, own)
        assert resolve_recipe(name, recipe_name) == again == recipe and not again.given
        assert own.keys() >= set(conditions(recipe))
        for field, needed in conditions(recipe).items():
            value = another(recipe, field)
            if not needed.fits(getattr(recipe, needed.field)):
                with pytest.raises(RecipeError, match=f"{field} would be ignored: {needed.field} is"):
                    resolve_recipe(name, recipe_name, {field: value})


def another(recipe: Recipe, field: str) -> object:
    """A value of the field's type that the recipe does not have."""
    own = getattr(recipe, field)
    if isinstance(own, bool):
        return not own
    if isinstance(own, int):
        return own + 1
    if isinstance(own, float):
        return 0.6 * own + 0.05
    if isinstance(own, tuple):
        return tuple(0.7 * value for value in own) or (0.5,)
    kinds = typing.get_args(typing.get_type_hints(type(recipe))[field])
    if str in kinds:
        return "stage1"
    return next((value for value in kinds if isinstance(value, str) and value != own), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_setting_that_is_said_to_be_ignored_changes_no_loss_and_no_weight(bench, monkeypatch, name):
    """But for those of the optimiser, which every method has."""
    recipe = load(name).RECIPES.get("small") or next(iter(load(name).RECIPES.values()))
    own = {field: needed for field, needed in conditions(recipe).items() if field not in Recipe.used_with}
    monkeypatch.setattr("attar.methods.base._refuse_ignored", lambda *_: None)
    for field, needed in own.items():
        without = {needed.field: unfit(recipe, needed)} | ({"peer": "resnet8x0.5"} if hasattr(recipe, "peer") else {})
        first, second = (bench(name, **without, **given) for given in ({}, {field: another(recipe, field)}))
        assert first.train(range(4)) == second.train(range(4)), field
        weights, others = (dict(trained.method.backbone.named_parameters()) for trained in (first, second))
        assert all(torch.equal(weights[name], others[name]) for name in weights), field


def unfit(recipe: Recipe, needed: UsedWith) -> object:
    """A value of the field that a condition is of, for which the condition does not hold."""
    kind = typing.get_type_hints(type(recipe))[needed.field]
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else (1, 0, True, False)
    candidates = [getattr(recipe, needed.field), *choices]
    return next(value for value in candidates if not needed.fits(value))


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("simclr", {"optimiser": "adamw", "base_lr": 1e-3}),
        ("simclr", {"lr": 0.1}),
        ("snapshot", {"num_cycles": 1}),
        ("kd", {"crop": "resized", "crop_scale": (0.2, 1.0), "kd_weight": 0.0}),
    ],
)
def test_all_settings_of_a_run_can_be_given_again(method, changed):
    """As recipe.yaml holds them, those that have no effect among them."""
    ran = resolve_recipe(method, "small", changed)
    again = resolve_recipe(method, "small", plain(dataclasses.asdict(ran)))
    assert again == ran and again.given <= ran.given == changed.keys()


def test_all_settings_of_a_run_suit_whatever_recipe_is_the_usual_one():
    """Another network or size may have another usual recipe; epochs may be left to --minutes."""
    for method in CATALOGUE:
        recipes = load(method).RECIPES
        for ran in recipes.values():
            settings = plain(dataclasses.asdict(ran))
            for name in recipes:
                assert resolve_recipe(method, name, settings) == ran, (method, name)
                without = {key: value for key, value in settings.items() if key != "epochs"}
                assert dataclasses.replace(resolve_recipe(method, name, without), epochs=ran.epochs) == ran


@pytest.mark.parametrize(
    ("method", "given", "accepted"),
    [
        ("cpc", "patch_crop=1.5", "give a number above 0, at most 1"),
        ("simmim", "mask_cell=0", "give a number above 0, at most 1"),
        ("simmim", "mask_cell=2", "give a number above 0, at most 1"),
        ("i_jepa", "min_context=0", "give 1 or more"),
        ("i_jepa", "predictor_heads=0", "give 1 or more"),
        ("i_jepa", "target_scale=0.2,0.15", "give two numbers, 0 < low <= high <= 1"),
        ("i_jepa", "target_scale=0.6,1.9", "give two numbers, 0 < low <= high <= 1"),
        ("i_jepa", "context_scale=0.0,0.9", "give two numbers, 0 < low <= high <= 1"),
        ("i_jepa", "target_aspect=1.5,0.75", "give two numbers, 0 < low <= high"),
        ("ibot", "mask_ratio=0.9,0.1", "give two numbers, 0 <= low <= high <= 1"),
        ("ibot", "mask_ratio=0.0,0.0", "give two numbers, 0 <= low <= high <= 1 and high above 0"),
        ("ibot", "local_scale=0.3,0.1", "give two numbers, 0 < low <= high <= 1"),
        ("ibot", "mask_probability=2.0", "give a number from 0 to 1"),
        ("dinov2", "mask_ratio=0.1,1.5", "give two numbers, 0 <= low <= high <= 1"),
        ("dinov2", "local_size=1.0", "give a number above 0 and below 1"),
        ("lejepa", "sigreg_weight=2.0", "give a number from 0 to 1"),
        ("simclr", "crop_scale=0.5,0.2", "give two numbers, 0 < low <= high <= 1"),
        ("nnclr", "queue_length=0", "give 1 or more"),
        ("moco", "queue_length=0", "give 1 or more"),
        ("swav", "queue_length=-1", "give 1 or more, or 0"),
        ("supervised", "label_smoothing=3", "give a number from 0 to 1"),
        ("sskd", "keep_wrong=3", "give a number from 0 to 1"),
        ("sskd", "transformed_keep_wrong=-1", "give a number from 0 to 1"),
        ("dinov2", "layer_decay=-1", "give a number above 0, at most 1"),
        ("simclr", "base_lr=inf", "give a number that is not infinite"),
        ("dino", "global_scale=0.1,inf", "give a number that is not infinite"),
    ],
)
def test_a_value_without_sense_is_refused(method, given, accepted):
    name, value = given.split("=")
    with pytest.raises(RecipeError, match=f"{method}: {name}=.*{value.split(',')[0]}.* is not accepted; {accepted}"):
        resolve_recipe(method, "small", {name: value})


def test_the_default_of_a_method_is_accepted():
    """0 is no queue for SwAV, and an error for the others."""
    assert resolve_recipe("swav", "photo_256", {"queue_length": "0"}).queue_length == 0


@pytest.mark.parametrize("given", ["0.5", "0.5,0.5,0.5", "(0.5)", "a,b", 0.5])
def test_a_field_of_two_numbers_says_so(given):
    with pytest.raises(RecipeError, match=r"byol: blur=.* is not accepted; give two numbers, separated by commas\."):
        resolve_recipe("byol", "small", {"blur": given})


def test_fields_of_more_numbers_say_how_many():
    with pytest.raises(RecipeError, match="dino: blur='1,2' is not accepted; give three numbers"):
        resolve_recipe("dino", "small", {"blur": "1,2"})
    with pytest.raises(RecipeError, match="jitter='0.4' is not accepted; give four numbers"):
        resolve_recipe("cluster_transfer", "small", {"jitter": "0.4"})
    with pytest.raises(RecipeError, match="lr_drops='soon' is not accepted; give numbers"):
        resolve_recipe("moco", "v1", {"lr_drops": "soon"})
    jitter = resolve_recipe("cluster_transfer", "small", {"jitter": "0.4,0.4,0.4,0.1"}).jitter
    assert jitter == (0.4, 0.4, 0.4, 0.1), "where the recipe has none"


def test_a_schedule_in_steps_needs_steps():
    with pytest.raises(RecipeError, match="simclr: schedule=step without lr_drops would never lower the rate"):
        resolve_recipe("simclr", "small", {"schedule": "step"})
    assert resolve_recipe("simclr", "small", {"schedule": "step", "lr_drops": "0.5"}).lr_drops == (0.5,)


@pytest.mark.parametrize("factor", ["-3", "0", "2"])
def test_a_drop_lowers_the_rate(factor):
    with pytest.raises(RecipeError, match=f"simclr: lr_drop_factor={factor}.* give a number above 0, at most 1"):
        resolve_recipe("simclr", "small", {"schedule": "step", "lr_drops": "0.5", "lr_drop_factor": factor})


@pytest.mark.parametrize("optimiser", ["sgd", "lars"])
def test_nesterovs_step_without_momentum_is_refused(optimiser):
    given = {"optimiser": optimiser, "nesterov": "true"}
    with pytest.raises(RecipeError, match="simclr: nesterov=True looks ahead along the momentum, and sgd_momentum is"):
        resolve_recipe("simclr", "small", {**given, "sgd_momentum": "0"})
    with pytest.raises(RecipeError, match="supervised: nesterov=True looks ahead"):
        resolve_recipe("supervised", "photo", {"sgd_momentum": "0"})
    assert resolve_recipe("simclr", "small", given).nesterov


def test_no_rate_of_its_own_is_none_that_a_base_rate_would_be_ignored_for():
    assert resolve_recipe("simclr", "small", {"lr": "none", "base_lr": "0.1"}).base_lr == 0.1
    with pytest.raises(RecipeError, match="base_lr would be ignored because lr is given"):
        resolve_recipe("simclr", "small", {"lr": "0.2", "base_lr": "0.1"})


@pytest.mark.parametrize("schedule", ["constant", "step", "linear"])
def test_snapshots_cycles_are_those_of_a_cosine(schedule):
    given = {"schedule": schedule, "num_cycles": 2, "lr_drops": (0.5,)}
    with pytest.raises(RecipeError, match=f"snapshot: schedule='{schedule}' is not accepted: Input should be 'cosine'"):
        resolve_recipe("snapshot", "small", given)


def test_a_training_in_which_nothing_would_be_learned_is_refused(bench):
    with pytest.raises(RecipeError, match="inpainting: reconstruction_weight and adversarial_weight are both 0"):
        bench("inpainting", reconstruction_weight=0.0)
    with pytest.raises(RecipeError, match="fitnet: with hint_weight=0 the first 50% of training.*set hint_fraction=0"):
        bench("fitnet", hint_weight=0.0, hint_fraction=0.5)
    assert bench("inpainting", reconstruction_weight=0.0, adversarial_weight=0.1)
    assert bench("fitnet", hint_weight=0.0)


def test_the_demos_settings_are_accepted():
    for recipe in ("photo", "small"):
        assert resolve_recipe("simclr", recipe, {**demo.TEACHER_SETTINGS, "epochs": 3})
        assert resolve_recipe("seed", "small", {**demo.STUDENT_SETTINGS, "epochs": 3})


@pytest.fixture
def built(bench, backbone):
    """A method by a recipe that knows what was given."""

    def build(method: str, recipe: str, network: str, **given):
        setup = bench(method).setup
        return load(method).METHOD(resolve_recipe(method, recipe, given), backbone(name=network), setup)

    return build


def test_patches_to_freeze_are_those_of_a_backbone_that_has_some(built):
    recipe = {"projector_hidden_dim": 20, "predictor_hidden_dim": 20, "projector_dim": 12}
    assert built("moco_v3", "small", "resnet8x0.5", **recipe).recipe.freeze_patches, "one recipe is for both"
    for given in (True, False):
        with pytest.raises(RecipeError, match="moco_v3: freeze_patches would be ignored: resnet8x0.5 has no patch"):
            built("moco_v3", "small", "resnet8x0.5", **recipe, freeze_patches=given)
        method = built("moco_v3", "vit", "vit_micro_p8", **recipe, freeze_patches=given)
        assert method.backbone.network.patch_embed.proj.weight.requires_grad is not given


def test_a_group_size_is_that_of_a_backbones_batch_norm(built):
    assert built("moco", "small", "resnet8x0.5", bn_group_size=3)
    with pytest.raises(RecipeError, match="moco: bn_group_size would be ignored: vit_micro_p8 has no batch norm"):
        built("moco", "small", "vit_micro_p8", bn_group_size=3)
    assert built("moco", "small", "vit_micro_p8")


def test_a_temperature_of_likeness_is_that_of_networks_that_learn_from_each_other(built):
    given = {"peer": "resnet8x0.5", "similarity_temperature": 0.2, "distillation_weight": 0.0}
    with pytest.raises(RecipeError, match="dogo: similarity_temperature would be ignored: distillation_weight and"):
        built("dogo", "small", "resnet8x0.5", **given, peer_distillation_weight=0.0)
    assert built("dogo", "small", "resnet8x0.5", **given)


def test_one_view_of_an_image_has_no_other_to_predict(bench):
    with pytest.raises(RecipeError, match="lejepa: num_global_views=1 and num_local_views=0 make one view"):
        bench("lejepa", num_global_views=1, num_local_views=0)
    assert bench("lejepa", num_global_views=1, num_local_views=1)


def image(size: int) -> ImageSpec:
    return ImageSpec(size=size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize("method", ["dino", "swav", "deep_cluster", "lejepa", "seed", "ibot", "dinov2"])
def test_local_views_are_smaller_than_global_ones_and_about_as_small_as_asked(method):
    patch = [8] if load(method).METHOD.needs_tokens else []
    least = patch[0] if patch else 16

    def sizes(size: int, **given) -> list[int]:
        maker = load(method).views(resolve_recipe(method, None, {"num_local_views": 1, **given}), image(size), *patch)
        return [view.view_size for view in getattr(maker, "local_views", ())]

    assert sizes(2 * least, local_size=0.5) == [least]
    assert sizes(2 * least, local_size=0.25) == [least], "half a patch is rounded up"
    with pytest.raises(RecipeError, match=f"{method}: local_size=0.1 of {2 * least} px would .* {least} px at least"):
        sizes(2 * least, local_size=0.1)
    with pytest.raises(RecipeError, match=f"{method}: local views would have {least} px.*global ones have {least}"):
        sizes(least, local_size=0.6)
    assert sizes(least, num_local_views=0) == []


def test_targets_that_would_mostly_be_seen_are_refused():
    views = load("i_jepa").views
    assert views(resolve_recipe("i_jepa", "small"), image(32), 4) and views(resolve_recipe("i_jepa"), image(224), 16)
    for given in ({"min_context": 150}, {"target_scale": (0.6, 0.9)}):
        with pytest.raises(RecipeError, match=r"do not suit 14 x 14 patches: in \d+% of the images too few remain"):
            views(resolve_recipe("i_jepa", "photo", given), image(224), 16)
    with pytest.raises(RecipeError, match="min_context=10, target_scale=0.15,0.2 do not suit 4 x 4 patches"):
        views(resolve_recipe("i_jepa", "small"), image(32), 8)
    assert views(resolve_recipe("i_jepa", "small", {"min_context": 3}), image(32), 8)
