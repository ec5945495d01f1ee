"""SimCLR v2's claim: its verdict can say yes, no and undecided, and all of its arms run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from attar.claims import reproduce, simclr_v2
from attar.claims.base import ClaimResult
from attar.claims.simclr_v2 import ARMS, EXPECTATIONS, SIZES
from attar.claims.verdict import judge

LOW, HIGH = (0.30, 0.31, 0.29), (0.60, 0.61, 0.60)


def result(**values):
    rows = {arm: {"top1": list(values.get(arm, LOW))} for arm in ARMS}
    return ClaimResult(name="simclr_v2", statement="", data="", conditions={}, arms=ARMS, values=rows)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"on_all": HIGH, "layer1": HIGH}, "holds"),
        ({"on_all": HIGH}, "undecided"),
        ({"on_all": HIGH, "layer1": HIGH, "layer0": (0.8, 0.81, 0.8)}, "does not hold"),
        ({"on_all": HIGH, "on_labelled": HIGH, "layer1": HIGH}, "undecided"),
    ],
)
def test_verdicts(values, verdict):
    said = judge(EXPECTATIONS, result(**values), metrics=("top1",), digits=False)
    assert said.startswith(f"Verdict: {verdict} at this size.")


@pytest.mark.slow
def test_all_arms_run(tmp_path, monkeypatch):
    tiny = replace(
        SIZES["cpu"],
        images=240,
        test_images=100,
        image_size=8,
        large="resnet8",
        label_fraction=0.1,
        pretraining_epochs=1,
        finetuning_steps=4,
        epochs=1,
        seeds=1,
    )
    monkeypatch.setitem(simclr_v2.SIZES, "cpu", tiny)
    found = reproduce("simclr_v2", out=tmp_path, device="cpu")
    assert set(found.values) == set(ARMS) and "undecided" in found.verdict and "--seeds 3" in found.verdict
    assert json.loads((tmp_path / "claim.json").read_text())["values"] == found.values
