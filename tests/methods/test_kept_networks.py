"""Networks that a run keeps beside its own: the momentum teachers whose figures papers publish."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attar import stages
from attar.models.saved import load_backbone


@pytest.mark.parametrize("method", ["dino", "ibot", "dinov2", "i_jepa"])
def test_the_teacher_is_a_network_of_its_own_that_follows_the_student(bench, method):
    method = bench(method).method
    kept = method.others()["teacher"].backbone
    assert kept.spec == method.backbone.spec
    before = {name: p.clone() for name, p in kept.named_parameters()}
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1)
    method.teacher.update(getattr(method, "student", method.backbone), 0.75)
    for name, p in kept.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.25)


def test_a_run_keeps_it_and_it_is_measured_like_any_run(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    options = {"backbone": "resnet8x0.5", "image_size": 8, "epochs": 2, "batch_size": 16, "progress": False}
    run = stages.pretrain(pixels, out=tmp_path / "run", method="dino", settings={"num_prototypes": 8}, **options).path
    checkpoint = next((run / "checkpoint").glob("step-*"))
    state = load_file(next(checkpoint.glob("*.safetensors")))
    kept = load_backbone(run / "teacher")[0].state_dict()
    for name, value in kept.items():
        torch.testing.assert_close(value, state[f"/method/teacher.module.0.{name}"], rtol=0, atol=0)
    own = load_backbone(run)[0].state_dict()
    assert any((own[name] != kept[name]).any() for name in own)
    stages.embed(run / "teacher", pixels, out=tmp_path / "features.npz", progress=False)
    assert np.isfinite(np.load(tmp_path / "features.npz")["embedding"]).all()
