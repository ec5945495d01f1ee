"""Ablation claims: the arms are what they say, and the verdict can say yes, no and undecided."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from attar import stages
from attar.claims import CLAIMS, ablation, reproduce
from attar.claims.ablation import Ablation, Arm, Size
from attar.claims.base import ClaimResult
from attar.claims.feature_distillation import CLAIMS as DISTILLATION
from attar.claims.self_distillation import CLAIMS as SELF
from attar.claims.teachers import copy_of
from attar.claims.verdict import METRICS, Expectation, judge
from attar.claims.views_and_collapse import CLAIMS as VIEWS
from attar.data.images import ImageSpec
from attar.data.load import load_images
from attar.errors import RecipeError
from attar.methods.base import Progress, Setup, load, resolve_recipe
from attar.models.backbones import build_backbone
from attar.models.saved import load_backbone
from attar.train.run import RunFolder
from attar.training import Run
from attar.views.draws import Draws

ABLATIONS = {**VIEWS, **DISTILLATION, **SELF}
IMAGE = ImageSpec(size=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
TWO = Ablation(
    name="two",
    statement="",
    source="",
    arms={"whole": Arm("whole", "a"), "part": Arm("part", "b")},
    expectations=[Expectation(("whole",), ("part",), "whole over part")],
)


def result(**arms):
    values = {arm: {metric: list(v) for metric in METRICS} for arm, v in arms.items()}
    return ClaimResult(name="two", statement="", data="", conditions={}, arms={}, values=values)


@pytest.mark.parametrize(
    ("whole", "part", "verdict"),
    [
        ((0.60, 0.61, 0.60), (0.40, 0.41, 0.39), "holds"),
        ((0.40, 0.41, 0.40), (0.60, 0.61, 0.60), "does not hold"),
        ((0.52, 0.48, 0.50), (0.50, 0.50, 0.50), "undecided"),
        ((0.60,), (0.40,), "undecided"),  # one seed
    ],
)
def test_verdicts(whole, part, verdict):
    assert judge(TWO.expectations, result(whole=whole, part=part), digits=False).startswith(
        f"Verdict: {verdict} at this size."
    )


def test_an_expectation_may_compare_differences():
    expected = ABLATIONS["byol_views"].expectations
    arms = dict(byol=(0.6, 0.61, 0.6), byol_crops=(0.5, 0.51, 0.5), simclr=(0.6, 0.61, 0.6))
    assert "Verdict: holds" in judge(expected, result(**arms, simclr_crops=(0.3, 0.31, 0.3)), digits=False)
    assert "Verdict: does not hold" in judge(expected, result(**arms, simclr_crops=(0.58, 0.59, 0.58)), digits=False)


def test_a_margin_is_what_may_be_lost():
    values = dict(whole=(0.60, 0.61, 0.60), part=(0.59, 0.60, 0.59))
    for margin, verdict in ((0.0, "does not hold"), (0.03, "holds")):
        expectations = [Expectation(("part",), ("whole",), "part over whole", margin)]
        said = judge(expectations, result(**values), digits=False)
        assert f"Verdict: {verdict}" in said and "-1.0" in said
    assert "a loss of 3 counts as little" in said


def test_an_expectation_may_be_of_one_metric_and_of_one_whose_lower_value_is_better():
    values = {
        "whole": {"classifier": [0.5] * 3, "ece": [0.02] * 3},
        "part": {"classifier": [0.5] * 3, "ece": [0.1] * 3},
    }
    found = ClaimResult(name="two", statement="", data="", conditions={}, arms={}, values=values)
    for metrics, verdict in ((("ece",), "holds"), (("classifier",), "undecided"), ((), "undecided")):
        expectations = [Expectation(("whole",), ("part",), "whole over part", metrics=metrics)]
        said = judge(expectations, found, metrics=("classifier",), digits=False)
        assert f"Verdict: {verdict}" in said
    assert "+8.0 ± 0.0 ece" in judge([replace(expectations[0], metrics=("ece",))], found, digits=False)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_arm_can_be_built_and_differs_in_what_it_says(name):
    """Method and settings of each arm are accepted, no two arms are the same, and expectations name arms."""
    claim = ABLATIONS[name]
    assert CLAIMS[name]
    found = set()
    for arm in claim.arms.values():
        of_size = {"batch_size": 4, "teacher": "resnet20", "stem": "standard"}
        settings = {k: of_size.get(v, v) if isinstance(v, str) else v for k, v in arm.settings.items()}
        recipe = resolve_recipe(arm.method, arm.recipe, {"epochs": 1, "batch_size": 4, **settings})
        views = load(arm.method).views(recipe, replace(IMAGE, size=32))  # local views are no smaller than 16 px
        found.add(f"{load(arm.method).METHOD} {recipe} {views} {arm.backbone} {arm.teacher} {arm.init} {arm.epochs}")
        assert bool(arm.teacher) == load(arm.method).METHOD.needs_teacher
        earlier = list(claim.arms)[: list(claim.arms.values()).index(arm)]
        assert claim.teacher is not None or arm.teacher in ("", *earlier)
        assert arm.init in ("", *earlier)
    assert len(found) == len(claim.arms)
    expected = {a for e in claim.expectations for a in (*e.better, *e.worse)}
    expected -= {"untrained"} if "knn" in claim.protocols else set()  # measured beside the first arm
    assert expected == set(claim.arms) or (claim.ranked and expected < set(claim.arms))


def build(method: str, recipe_name: str = "small", network: str = "resnet8x0.5"):
    images = load_images(np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8), image_size=16)
    recipe = resolve_recipe(method, recipe_name, {"batch_size": 16, "epochs": 1})
    torch.manual_seed(0)
    backbone = build_backbone(network, channels=3, image_size=16)
    module = load(method)
    method = module.METHOD(recipe, backbone, Setup(image=IMAGE, images=images)).train()
    batch = images.batch(np.arange(16))
    return method, module.views(recipe, IMAGE)(batch, Draws(0, batch.index))


@pytest.mark.parametrize("whole", ["simsiam", "byol"])
def test_without_stop_gradient_the_targets_get_a_gradient(whole):
    """The loss is the method's (BYOL's teacher begins as its student); the gradient is not."""
    gradients = []
    for name in (whole, f"attar.claims.arms.{whole}_without_stop_gradient"):
        method, batch = build(name)
        loss = method.step(batch, Progress(0, 10, 0, 1)).loss
        loss.backward()
        gradients.append((loss.item(), next(method.backbone.parameters()).grad.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-6)
    assert not torch.allclose(gradients[0][1], gradients[1][1], rtol=1e-2)


def test_heads_are_taken_out():
    assert isinstance(build("attar.claims.arms.simclr_without_head")[0].projector, torch.nn.Identity)
    assert isinstance(build("attar.claims.arms.byol_without_predictor")[0].predictor, torch.nn.Identity)
    whole, bare = build("byol")[0], build("attar.claims.arms.byol_without_batch_norm")[0]
    for head in ("projector", "predictor"):
        norms = (torch.nn.BatchNorm1d,)
        kept = [str(layer) for layer in getattr(whole, head) if not isinstance(layer, norms)]
        assert [str(layer) for layer in getattr(bare, head)] == kept and len(kept) < len(getattr(whole, head))


def test_patches_are_trained_by_a_setting_or_positions_missing():
    arms = ABLATIONS["moco_v3_patches"].arms
    assert "freeze_patches" not in arms["frozen"].settings and arms["trained"].settings["freeze_patches"] is False
    lost, batch = build("attar.claims.arms.moco_v3_without_positions", "vit", "vit_micro_p4")
    assert not lost.backbone.network.pos_embed.any() and not lost.backbone.network.pos_embed.requires_grad
    assert not lost.teacher.module[0].network.pos_embed.any()
    lost.step(batch, Progress(0, 10, 0, 1)).loss.backward()
    lost.after_step(Progress(0, 10, 0, 1))
    assert not lost.teacher.module[0].network.pos_embed.any()


@pytest.mark.parametrize("name", ["byol_crops_only", "simclr_crops_only"])
def test_crops_only_leave_colours_alone(name):
    """Views of an image of one colour keep that colour."""
    recipe = resolve_recipe(f"attar.claims.arms.{name}", "small", {"batch_size": 4})
    images = load_images(np.full((4, 16, 16, 3), (200, 50, 90), np.uint8), image_size=16)
    batch = images.batch(np.arange(4))
    made = load(f"attar.claims.arms.{name}").views(recipe, IMAGE)(batch, Draws(0, batch.index))
    colour = (torch.tensor([200, 50, 90]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(made.view1, colour.view(1, 3, 1, 1).expand_as(made.view1), rtol=0, atol=0.02)


@pytest.fixture
def tiny(monkeypatch):
    size = Size(
        images=200,
        test_images=80,
        image_size=8,
        convnet="resnet8x0.5",
        stem="standard",
        vit="vit_micro_p4",
        teacher="resnet8",
        epochs=1,
        batch_size=64,
        seeds=1,
    )
    monkeypatch.setitem(ablation.SIZES, "cpu", size)
    monkeypatch.setitem(ablation.DISTILLING, "cpu", size)


@pytest.mark.slow
def test_an_ablation_end_to_end(tmp_path, tiny):
    found = reproduce("simsiam_collapse", out=tmp_path / "claim", device="cpu")
    assert set(found.values) == {"untrained", "simsiam", "without_stop_gradient", "without_predictor"}
    assert set(found.values["simsiam"]) == {"knn", "linear", "embedding std"}
    assert "Verdict: undecided" in found.verdict and "says" not in found.verdict
    assert json.loads((tmp_path / "claim" / "claim.json").read_text())["values"] == found.values


@pytest.mark.slow
def test_students_of_a_teacher_and_of_shams_end_to_end(tmp_path, tiny, monkeypatch):
    claim = replace(DISTILLATION["compress"], arms={**DISTILLATION["compress"].arms})
    for key in ("compress", "random", "permuted"):
        claim.arms[key] = replace(claim.arms[key], settings={"queue_length": 64})
    monkeypatch.setitem(DISTILLATION, "compress", claim)
    out = tmp_path / "claim"
    found = reproduce("compress", out=out, device="cpu")
    assert set(found.values) == {"untrained", "teacher", *claim.arms}
    assert "teacher, SimCLR (resnet8), for reference" in found.table()
    taught_by = {arm: json.loads((out / f"seed0/{arm}/backbone.json").read_text())["provenance"] for arm in claim.arms}
    assert taught_by["alone"]["teacher"] is None
    assert [taught_by[arm]["teacher"]["name"].split("/")[-1] for arm in ("compress", "random", "permuted")] == [
        "teacher",
        "random-teacher",
        "the teacher's answers, permuted within the batch",
    ]


@pytest.mark.slow
def test_generations_of_arms_and_calibration_end_to_end(tmp_path, tiny, monkeypatch):
    claim = SELF["born_again"]
    arms = {key: claim.arms[key] for key in ("plain", "second", "third")}
    short = replace(claim, arms=arms, expectations=[Expectation(("third",), ("plain",), "third over plain")])
    monkeypatch.setitem(SELF, "born_again", short)
    out = tmp_path / "claim"
    found = reproduce("born_again", out=out, device="cpu")
    assert set(found.values) == set(arms)
    assert set(found.values["third"]) == {"classifier", "nll", "ece", "embedding std"}
    taught_by = json.loads((out / "seed0/third/backbone.json").read_text())["provenance"]["teacher"]["name"]
    assert taught_by.endswith("seed0/second")


def test_an_arm_with_another_network_stands_beside_its_own_untrained_twin(tmp_path, monkeypatch):
    claim = replace(
        ABLATIONS["moco_queue"],
        arms={"rgb": Arm("colours", "rotation"), "grey": Arm("lightness", "rotation", own_twin=True)},
        expectations=[Expectation(("grey",), ("untrained grey",), "grey over its twin")],
    )
    asked = []
    monkeypatch.setattr(ablation, "_train", lambda arm, *_, **__: None)
    monkeypatch.setattr(ablation, "measure", lambda result, key, *_, untrained, **__: asked.append((key, untrained)))
    monkeypatch.setattr(ablation, "judge", lambda *_, **__: "")
    (tmp_path / "claim").mkdir()
    found = ablation.run_ablation(
        claim, data="digits", test=None, size="cpu", out=tmp_path / "claim", seeds=1, device="cpu"
    )
    assert asked == [("rgb", "untrained"), ("grey", "untrained grey")]
    assert found.arms["untrained grey"] == "untrained: lightness"


@pytest.mark.parametrize(("spread", "verdict"), [((0.1, 0.05, 0.1), "holds"), ((0.85, 0.9, 0.88), "does not hold")])
def test_a_collapse_is_seen_in_the_spread_of_embeddings_and_not_in_top1_alone(spread, verdict):
    """Three points of top-1 less, embeddings spread out as before: worse, and no collapse."""
    claim = ABLATIONS["simsiam_collapse"]
    good = {"knn": [0.4, 0.41, 0.4], "linear": [0.4, 0.41, 0.4], "embedding std": [0.9, 0.9, 0.91]}
    bad = {"knn": [0.37, 0.38, 0.37], "linear": [0.37, 0.38, 0.37], "embedding std": list(spread)}
    values = {arm: good if arm == "simsiam" else bad for arm in claim.arms}
    said = judge(
        claim.expectations,
        ClaimResult(name="", statement="", data="", conditions={}, arms={}, values=values),
        digits=False,
    )
    assert f"Verdict: {verdict}" in said and "(by 50 at least)" in said


def test_an_arm_starts_from_another_of_the_same_seed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        ablation.stages, "pretrain", lambda *_, **options: asked.append(options) or Run(tmp_path, {}, None)
    )
    plan = ablation.SIZES["cpu"]
    ablation._train(
        Arm("", "rotation", init="first", generation=2),
        None,
        out=tmp_path / "seed1" / "second",
        plan=plan,
        epochs=1,
        seed=1,
        batch_size=2,
    )
    assert asked[0]["init"] == tmp_path / "seed1" / "first" and asked[0]["seed"] == 2001


def test_compute_is_that_of_the_run_and_of_what_it_starts_from(tmp_path):
    for name, steps, init in (("first", 10, None), ("second", 5, {"name": str(tmp_path / "first")})):
        (tmp_path / name).mkdir()
        fit, recipe = {"total_steps": steps, "flops_per_step": 1e12}, {"settings": {"batch_size": 200}, "init": init}
        (tmp_path / name / "fit.json").write_text(json.dumps(fit))
        RunFolder(tmp_path / name).write_recipe(recipe)
    found = ClaimResult(name="", statement="", data="", conditions={}, arms={"arm": "an arm"})
    found.add_compute("arm", tmp_path / "second")
    assert found.compute == {"arm": {"images": [3.0], "tflops": [15.0]}}


@pytest.mark.slow
def test_a_network_of_ones_own_teaches_in_the_place_of_the_claims(tmp_path, tiny, monkeypatch):
    claim = replace(DISTILLATION["foundation"], arms=dict(DISTILLATION["foundation"].arms))
    for key in ("foundation", "random", "permuted"):
        claim.arms[key] = replace(claim.arms[key], settings={"queue_length": 64})
    monkeypatch.setitem(DISTILLATION, "foundation", claim)
    own = tmp_path / "own"
    stages.pretrain("digits", out=own, backbone="resnet14x0.5", image_size=8, epochs=1, batch_size=64, progress=False)
    found = reproduce("foundation", out=tmp_path / "claim", device="cpu", teacher=str(own))
    assert set(found.values["teacher"]) >= {"knn", "linear"} and not (own / "evaluation.json").exists()
    (folder,) = (tmp_path / "claim").glob("taught-by-*")
    recipe = yaml.safe_load((folder / "seed0" / "foundation" / "recipe.yaml").read_text())
    assert recipe["teacher"]["name"] == str(folder / "teacher")
    assert load_backbone(folder / "teacher")[0].spec == load_backbone(own)[0].spec
    steps = recipe["settings"]["epochs"] * (200 // recipe["settings"]["batch_size"])
    assert found.compute["foundation"]["images"] == [steps * recipe["settings"]["batch_size"] / 1000]
    assert "| 1,000 images seen | TFLOP |" in found.table()


def test_a_network_by_name_is_built_for_the_images_of_the_claim(tmp_path):
    folder = copy_of("hog", tmp_path, image_size=16, channels=1)
    _, image, _ = load_backbone(folder / "teacher")
    assert (image.size, image.channels) == (16, 1)
    assert copy_of("hog", tmp_path, image_size=32, channels=1) != folder


def test_a_teacher_where_none_teaches_is_refused():
    for name in ("moco_queue", "sskd", "seed"):
        with pytest.raises(RecipeError, match="--teacher would be ignored"):
            reproduce(name, teacher="resnet18")


@pytest.mark.slow
def test_an_arm_that_the_images_do_not_admit_is_left_out_and_named(tmp_path, tiny, monkeypatch):
    from attar.claims import transfer

    claim = transfer.CLAIMS["pretext_tasks"]
    arms = {key: claim.arms[key] for key in ("rotation", "colorization")}
    expectations = [e for e in claim.expectations if e.better[0] in arms]
    monkeypatch.setitem(transfer.CLAIMS, "pretext_tasks", replace(claim, arms=arms, expectations=expectations))
    found = reproduce("pretext_tasks", out=tmp_path / "claim", device="cpu")
    assert set(found.values) == {"untrained", "rotation"} == set(found.arms)
    assert "Grey images have no colour" in found.conditions["left out"] and "colorization" not in found.verdict
