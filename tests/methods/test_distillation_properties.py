"""What must hold for every distiller, whatever it compares; each of these has gone wrong somewhere.

A case is a method with its small recipe, or another recipe of it that takes another path. The registry gives the
first; a new method of the family needs a line here only where it compares the images of a batch with one another.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from attar.errors import RecipeError
from attar.losses import attention_transfer, error_rank_gate, kl_divergence, relational_distance
from attar.methods import CATALOGUE
from attar.methods.base import load
from attar.models.momentum import FrozenCopy, MomentumTeacher
from attar.models.teachers import CachedTeacher, FrozenTeacher, JointTeacher
from attar.views.draws import Draws
from tests.methods.conftest import IMAGE, build, tiny_backbone

DISTILLERS = [n for n in CATALOGUE if load(n).METHOD.needs_teacher and load(n).METHOD.needs_labels]
every_distiller = pytest.mark.parametrize("name", DISTILLERS)

VARIANTS = [
    ("seed", "small_patches"), ("compress", "2q"), ("s2bnn", "both"), ("s2bnn", "contrastive"),
    ("dogo", "small_simsiam"), ("born_again", "dkpp"), ("born_again", "cwtm"), ("fitnet", "paper"), ("crd", "small_kd"),
]  # fmt: skip
CASES = [(name, None) for name, listed in CATALOGUE.items() if listed.family == "distill"] + VARIANTS
TAUGHT = [case for case in CASES if load(case[0]).METHOD.needs_teacher]  # by a frozen teacher
SETTINGS = {"dogo": {"peer": "resnet14x0.5"}, "snapshot": {"num_cycles": 2}, "seed": {"num_local_views": 0}}
SAME_NETWORK = ("born_again", "sskd_teacher")  # as the teacher


def made(name, recipe=None, **settings):
    own = {} if recipe == "small_patches" else SETTINGS.get(name, {})
    return build(name, recipe, **own, **settings)


def terms(bench, batch=None, step=0):
    """The loss and every named term, in eval mode; what a step leaves for after_step does not count."""
    output = bench.method.eval().step(bench.batch(0) if batch is None else batch, bench.progress(step))
    return {"loss": output.loss.detach(), **{k: torch.as_tensor(v) for k, v in output.metrics.items()}}


def assert_same(found, expected, *, but=(), rtol=1e-4, atol=1e-5):
    assert found.keys() == expected.keys()
    for key in expected.keys() - set(but):
        torch.testing.assert_close(
            found[key], expected[key], rtol=rtol, atol=atol, msg=lambda m, key=key: f"{key}: {m}"
        )


def doubled(batch):
    """Every tensor of a batch twice; blocks of transformed views stay blocks."""
    size = len(batch.index)

    def twice(value):
        if isinstance(value, list):
            return [twice(part) for part in value]
        return torch.cat([torch.cat([block, block]) for block in value.split(size)])

    given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return type(batch)(**{name: value if value is None else twice(value) for name, value in given.items()})


def test_there_are_some():
    assert {"kd", "sskd", "fitnet", "attention_transfer", "relational_kd", "crd"} <= set(DISTILLERS)


@every_distiller
def test_a_step_leaves_the_teacher_as_it_is(bench, name):
    bench = bench(name)
    teacher = bench.setup.teacher
    networks = [teacher.network, *([teacher.projector] if teacher.projector is not None else [])]
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    bench.method.train()
    bench.train(range(3))
    for network, was in zip(networks, before):
        assert not network.training and not any(p.grad is not None for p in network.parameters())
        assert all(torch.equal(v, was[k]) for k, v in network.state_dict().items())


# ---- 1: a student that is the teacher ------------------------------------------------------------------------------


def identity(*heads):
    """Linear layers, in a head or alone, that hand on what they get."""
    for layer in nn.ModuleList(heads).modules():
        if isinstance(layer, nn.Linear):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)


def identity_hint(method):
    convolution, norm, _ = method.regressor
    nn.init.dirac_(convolution.weight)
    norm.eps = 0.0  # running statistics are 0 and 1: nothing is left to normalise


def classify_alike(method, teacher):
    method.classifier.load_state_dict(teacher.head.state_dict())


def entropy(taught):
    return torch.special.entr(taught.softmax(dim=1)).sum(dim=1).mean()


ALIKE = {  # case -> (settings, the adapters made to change nothing, the term, its value when there is nothing to learn)
    ("seed", "soft"): (
        {"projector_hidden_dim": 32}, lambda m, t: identity(m.projector),
        "similarity_distillation", lambda found, taught: found["teacher_entropy"],
    ),
    ("compress", "1q"): ({}, lambda m, t: identity(m.projector), "kl", 0),
    ("compress", "2q"): ({}, lambda m, t: None, "kl", 0),
    ("s2bnn", "small"): ({"projector_hidden_dim": 32}, lambda m, t: identity(m.projector), "kl", 0),
    ("kd", "small"): ({"ce_weight": 0.0}, classify_alike, "soft_targets", 0),
    ("simclr_v2", "small"): ({}, classify_alike, "soft_targets", lambda found, taught: entropy(taught)),
    ("born_again", "teacher_only"): (
        {}, classify_alike, "teacher_cross_entropy", lambda found, taught: entropy(taught),
    ),
    ("foundation", "small"): ({}, lambda m, t: identity(m.projector, m.token_projector), "kl", 0),
    ("regression", "linear"): ({}, lambda m, t: identity(m.projector), "regression", 0),
    ("fitnet", "small"): ({"ce_weight": 0.0, "kd_weight": 0.0}, lambda m, t: identity_hint(m), "hint", 0),
}  # fmt: skip


@pytest.mark.parametrize("name, recipe", ALIKE)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name, recipe):
    settings, change_nothing, term, floor = ALIKE[name, recipe]
    bench = made(name, recipe, **settings)
    teacher, method = bench.setup.teacher, bench.method

    def largest_gradient():
        method.eval().zero_grad()
        method.step(bench.batch(0), bench.progress(0)).loss.backward()
        return max(p.grad.abs().max() for p in method.parameters() if p.grad is not None)

    before, other = terms(bench), largest_gradient()
    method.backbone.load_state_dict(teacher.backbone.state_dict())
    change_nothing(method, teacher)
    found, batch = terms(bench), bench.batch(0)
    nothing = floor(found, teacher(batch.images, batch.index, IMAGE)) if callable(floor) else torch.tensor(0.0)
    torch.testing.assert_close(found[term], nothing, rtol=1e-5, atol=1e-6)
    assert before[term] > found[term] + 1e-4, "another student has something to learn"
    assert found.get("token_similarity", torch.zeros(())) < 1e-6
    assert largest_gradient() < 1e-3 * other and largest_gradient() < 1e-5


# ---- 2 and 12: what is copied and stored ---------------------------------------------------------------------------


@pytest.mark.parametrize("name, recipe", [*VARIANTS, ("metric", "center"), ("metric", "n_pair")])
def test_copies_and_stores_take_no_gradient_and_are_all_that_is_needed_to_resume(name, recipe):
    """As the contract says of every method with its small recipe."""
    straight, resumed = made(name, recipe), made(name, recipe)
    straight.train(range(3))
    for module in straight.method.modules():
        if isinstance(module, (MomentumTeacher, FrozenCopy)):
            assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    assert not any(buffer.requires_grad for buffer in straight.method.buffers())
    resumed.method.load_state_dict(copy.deepcopy(straight.method.state_dict()))
    resumed.optimiser.load_state_dict(copy.deepcopy(straight.optimiser.state_dict()))
    assert straight.train(range(3, 6)) == resumed.train(range(3, 6))


# ---- 3: means over samples -----------------------------------------------------------------------------------------

# terms that compare the images of a batch with one another: a copy is one more to tell apart
AMONG_IMAGES = {
    "sskd": {"loss", "self_supervision", "task_accuracy", "teacher_task_accuracy"},
    "dogo": {"loss", "nt_xent", "peer_nt_xent"},
    "foundation": {"loss", "similarity_distillation", "kl", "teacher_p_self", "teacher_entropy"},
}


def later(name):
    """A step at which snapshots and recorded answers teach; the steps before it leave something to teach."""
    return 5 if name in ("snapshot", "pskd") else 0


@pytest.mark.parametrize("name, recipe", [case for case in CASES if case[0] != "sskd_teacher"])  # nothing else in it
def test_duplicating_the_batch_leaves_every_term_unchanged(name, recipe):
    """Sums over the batch would double."""
    bench, step = made(name, recipe), later(name)
    bench.train(range(step))
    batch = bench.batch(0)
    terms(bench, batch, step)  # what is estimated once
    once = terms(bench, batch, step)
    simsiam = recipe == "small_simsiam"  # which tells no images apart
    assert_same(terms(bench, doubled(batch), step), once, but=() if simsiam else AMONG_IMAGES.get(name, ()))


# ---- 8: nothing is left behind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, recipe", CASES)
def test_batches_of_another_size_and_students_of_another_width_change_nothing(name, recipe):
    """Maps that a hook left behind would be those of the other batch, or of the other student."""
    bench, step = made(name, recipe), later(name)
    bench.train(range(step))
    batch = bench.batch(0)
    terms(bench, batch, step)  # what is estimated once
    once = terms(bench, batch, step)
    terms(bench, bench.batch(1, num=4), step)
    if (name, recipe) in TAUGHT and name not in SAME_NETWORK:
        wider = type(bench.method)(bench.method.recipe, tiny_backbone(name="resnet8"), bench.setup)
        terms(replace(bench, method=wider), bench.batch(1, num=4), step)
    for key, value in terms(bench, batch, step).items():
        assert torch.equal(value, once[key]), key


# ---- 6 and 13: the teacher's own weights, and its own normalisation ------------------------------------------------


@pytest.mark.parametrize("name", dict(TAUGHT))
def test_a_teacher_that_is_the_student_is_refused(name):
    bench, student = made(name), tiny_backbone()
    teacher = bench.setup.teacher
    itself = FrozenTeacher(student, IMAGE, teacher.head, projector=teacher.projector, classes=teacher.classes)
    with pytest.raises(RecipeError, match=f"{name}: teacher and student are the same network.*another run"):
        type(bench.method)(bench.method.recipe, student, replace(bench.setup, teacher=itself))
    type(bench.method)(bench.method.recipe, copy.deepcopy(student), replace(bench.setup, teacher=itself))


def test_a_student_among_several_teachers_is_refused_too():
    bench, student = made("seed"), tiny_backbone()
    several = JointTeacher([bench.setup.teacher, FrozenTeacher(student, IMAGE)])
    with pytest.raises(RecipeError, match="seed: teacher and student are the same network"):
        type(bench.method)(bench.method.recipe, student, replace(bench.setup, teacher=several))


@pytest.mark.parametrize("name, recipe", [case for case in TAUGHT if case[0] != "sskd_teacher"])  # it takes its input
def test_the_teacher_sees_its_own_normalisation(name, recipe):
    """A teacher trained on other means and deviations says the same of the same pixels."""
    bench = made(name, recipe)
    teacher, method = bench.setup.teacher, bench.method
    other = replace(IMAGE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    column = lambda values: torch.tensor(values).view(1, 3, 1, 1)  # noqa: E731

    def as_before(module, given):
        """From its own normalisation to that of the weights."""
        pixels = given[0] * column(other.std) + column(other.mean)
        return ((pixels - column(IMAGE.mean)) / column(IMAGE.std),)

    def taught():
        built = type(method)(method.recipe, tiny_backbone(), bench.setup)  # what asks the teacher at once does it here
        return terms(replace(bench, method=built))

    expected = taught()
    first = next(module for module in teacher.backbone.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(as_before)
    teacher.image = other
    assert_same(taught(), expected, rtol=1e-3, atol=1e-4)
    teacher.image = IMAGE  # now it is wrong
    found = taught()
    assert any(not torch.allclose(found[key], expected[key], rtol=1e-2, atol=1e-3) for key in expected)


# ---- 7: answers that are kept --------------------------------------------------------------------------------------

ASKED_ONCE = [(n, r) for n, r in TAUGHT if hasattr(next(iter(load(n).RECIPES.values())), "teacher_views")]


@pytest.mark.parametrize("name, recipe", [case for case in ASKED_ONCE if case not in VARIANTS] + [("compress", "2q")])
def test_a_cached_teacher_trains_as_the_live_one(name, recipe):
    """By the ids of the images, which are not their places, and by the epoch: two views of each, in two epochs."""
    live, cached = made(name, recipe), made(name, recipe)
    teacher, images = live.setup.teacher, live.images
    answers = np.full((2, images.num_ids, teacher.num_features_out), np.nan, np.float32)
    for view in range(2):
        canvases = images.batch(np.arange(len(images)))
        shown = live.make_views(canvases, Draws(0, canvases.index, epoch=view))
        answers[view, shown.index] = teacher(shown.images, shown.index, IMAGE)
    table = CachedTeacher(answers, digest="", classes=teacher.classes)
    setup = replace(cached.setup, teacher=table)
    cached = replace(cached, method=type(cached.method)(cached.method.recipe, tiny_backbone(), setup))
    assert cached.train(range(4)) == pytest.approx(live.train(range(4)), rel=1e-4)


# ---- distillers with labels ----------------------------------------------------------------------------------------


@every_distiller
def test_what_the_network_keeps_holds_no_teacher_and_no_moving_copy(bench, name):
    method = bench(name).method
    assert not any(isinstance(m, MomentumTeacher) for m in method.modules())
    taught = sum(p.numel() for p in bench(name).setup.teacher.backbone.parameters())
    held = sum(p.numel() for n, p in method.named_parameters() if not n.startswith("backbone."))
    assert held < taught, "adapters and heads are small; a whole teacher is not"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_full_precision_under_autocast(dtype):
    s, t = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0)) * 8
    maps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(8)
    terms = {
        "kl": lambda: kl_divergence(s, t, temperature=0.5),
        "relations": lambda: relational_distance(s, t),
        "attention": lambda: attention_transfer(*maps),
        "gate": lambda: error_rank_gate(t, truth, keep_wrong=0.5),
    }
    for name, term in terms.items():
        exact = term()
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(term(), exact), name


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_weight_of_soft_targets_stays_when_the_temperature_changes(temperature):
    """With T^2 the gradient of logits that hardly differ is p - q over N, whatever T is; without, it falls by T^2."""
    t = 0.01 * torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = (0.01 * torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    kl_divergence(s, t, temperature=temperature).backward()
    centred = lambda x: x - x.mean(dim=1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(s.grad, (centred(s) - centred(t)).detach() / (10 * 6), rtol=0.1, atol=1e-5)
