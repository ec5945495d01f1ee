"""S2-BNN: the three recipes, what the calibration of a distribution over dimensions is, and its two stages."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import attar
from attar.errors import RecipeError
from attar.losses import info_nce
from attar.methods.base import Setup
from attar.methods.distill.s2bnn import METHOD, RECIPES
from attar.models.heads import MLP
from attar.models.momentum import MomentumTeacher
from tests.methods.conftest import tiny_backbone


def test_the_numbers_of_the_published_code():
    r = RECIPES["distillation"]
    assert (r.epochs, r.batch_size, r.peak_lr, r.weight_decay, r.schedule) == (200, 256, 3e-4, 0, "linear")
    assert (r.temperature, r.jitter_probability, r.blur) == (0.2, 0.6, 0.2)
    weights = {name: (r.distillation_weight, r.contrastive_weight) for name, r in RECIPES.items()}
    assert weights == {"distillation": (1, 0), "both": (1, 1), "contrastive": (0, 1), "small": (1, 0)}


@pytest.mark.parametrize("recipe", ["distillation", "both", "contrastive"])
def test_step_is_the_sum_of_its_terms(bench, recipe):
    bench = bench("s2bnn", recipe, projector_hidden_dim=None)
    method, batch = bench.method.eval(), bench.batch(0)
    output = method.step(batch, bench.progress(0))
    first = batch.images if recipe == "distillation" else batch.view1
    s = F.normalize(method.student(first), dim=1)
    t = F.normalize(bench.setup.teacher(first, batch.index, bench.setup.image), dim=1)
    p, q = torch.softmax(t / 0.2, dim=1), torch.softmax(s / 0.2, dim=1)
    expected = {"distillation": -(p * q.log()).sum(1).mean(), "contrastive": torch.zeros(())}
    torch.testing.assert_close(output.metrics["kl"], (p * (p / q).log()).sum(1).mean(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(output.metrics["distillation"], expected["distillation"].detach())
    if recipe != "distillation":
        k = method.slow_student(batch.view2)
        expected["contrastive"] = info_nce(s, k, temperature=0.2, negatives=method.queue.rows)
    if recipe == "contrastive":
        expected["distillation"] = torch.zeros(())
    torch.testing.assert_close(output.loss, sum(expected.values()))


def test_distillation_alone_keeps_no_twin_and_no_queue(bench):
    method = bench("s2bnn", "distillation").method
    assert method.queue is None and not any(isinstance(m, MomentumTeacher) for m in method.modules())
    assert not any(True for _ in method.buffers() if _.ndim > 1)


def test_the_calibration_is_a_regression_of_the_embedding(bench):
    """KL over the dimensions of unit vectors at 0.2 is ||s - t||^2 / (2 E T^2), nearly."""
    generator = torch.Generator().manual_seed(0)
    s, t = F.normalize(torch.randn(2, 200, 128, generator=generator, dtype=torch.float64), dim=2)
    p, q = torch.softmax(t / 0.2, dim=1), torch.softmax(s / 0.2, dim=1)
    kl = (p * (p / q).log()).sum(1).mean()
    assert kl.item() == pytest.approx(((s - t) ** 2).sum(1).mean().item() / (2 * 128 * 0.2**2), rel=0.05)


def test_keys_enter_after_the_step_and_the_slow_student_follows(bench):
    bench = bench("s2bnn", "both", momentum=0.9)
    method, queue = bench.method, bench.method.queue.rows.clone()
    output = bench.backward(0)
    assert torch.equal(method.queue.rows, queue)
    bench.optimiser.step()
    before = [p.clone() for p in method.slow_student.parameters()]
    method.after_step(bench.progress(0))
    changed = (method.queue.rows != queue).any(dim=1)
    torch.testing.assert_close(method.queue.rows[changed], F.normalize(output.positives, dim=1))
    for was, now, own in zip(before, method.slow_student.parameters(), method.student.parameters()):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * own)


def test_the_head_is_as_wide_as_the_teacher(bench):
    method = bench("s2bnn", projector_hidden_dim=None).method
    assert isinstance(method.projector, MLP) and method.projector.spec["dims"] == [32, 32, 32]


def test_refusals(bench, backbone):
    built = bench("s2bnn")
    with pytest.raises(RecipeError, match="s2bnn: it distils and needs a teacher"):
        METHOD(built.method.recipe, backbone(), Setup(image=built.setup.image, images=built.images))
    with pytest.raises(RecipeError, match="are both 0"):
        bench("s2bnn", distillation_weight=0.0)
    with pytest.raises(RecipeError, match="teacher_views keeps the answers to one view"):
        bench("s2bnn", "both", teacher_views=1)


def test_two_stages_and_a_packed_file(tmp_path):
    """Real weights, then binary ones that start there; the export is exact."""
    images = (torch.rand(24, 32, 32, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    common = dict(epochs=1, batch_size=8, device="cpu", progress=False, cache=tmp_path / "cache")
    attar.pretrain(images, out=tmp_path / "teacher", method="simclr", backbone="resnet8x0.5", **common)
    common |= dict(teacher=tmp_path / "teacher", method="s2bnn")
    attar.distill(images, out=tmp_path / "one", backbone="bnn_resnet8x0.5_real", **common)
    common |= dict(backbone="bnn_resnet8x0.5", init=tmp_path / "one")
    still = attar.distill(images, out=tmp_path / "still", lr=1e-12, **common)
    assert still.recipe["init"]["name"] == str(tmp_path / "one") and still.recipe["init"]["digest"]
    one, two = (attar.load(tmp_path / name).backbone for name in ("one", "still"))
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    result = attar.export(tmp_path / "still", format="packed")
    assert set(result.parity.values()) == {0.0} and result.binary.full_bytes / result.binary.packed_bytes > 25
    plain = attar.export(tmp_path / "still", format="safetensors")
    assert result.binary.whole_bytes == pytest.approx(plain.bytes, rel=0.01)
    binary, whole = result.binary.text().splitlines()
    assert binary.startswith("binary layers: ") and whole == (
        f"whole file: {result.bytes} bytes instead of {result.binary.whole_bytes} in fp32, "
        f"1/{result.binary.whole_bytes / result.bytes:.1f}"
    )
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(attar.load(result.path)(pixels), attar.load(tmp_path / "still")(pixels))
    with pytest.raises(RecipeError, match="--init and --pretrained"):
        attar.distill(images, out=tmp_path / "x", pretrained=True, **common)


def test_the_state_of_the_contrastive_term_is_saved_whole(bench):
    straight, resumed = bench("s2bnn", "both"), bench("s2bnn", "both")
    straight.train(range(2))
    resumed.method.load_state_dict(straight.method.state_dict())
    resumed.optimiser.load_state_dict(copy.deepcopy(straight.optimiser.state_dict()))
    assert resumed.train(range(2, 4)) == straight.train(range(2, 4))
    final = straight.method.state_dict()
    assert all(torch.equal(v, final[k]) for k, v in resumed.method.state_dict().items())


def test_the_second_stage_starts_from_the_projector_of_the_first(bench):
    first = bench("s2bnn")
    setup = first.setup
    setup.projector = copy.deepcopy(first.method.projector)
    torch.nn.init.constant_(setup.projector[0].weight, 0.25)
    second = METHOD(first.method.recipe, tiny_backbone(), setup)
    assert torch.equal(second.projector[0].weight, setup.projector[0].weight)
