"""Checkpoints: round trip, atomicity, refusal of what is damaged or foreign."""

import errno
import json

import pytest
import torch

from attar.errors import CheckpointError
from attar.train import checkpoint as module
from attar.train.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

STATE = {
    "step": 7,
    "method": {"w": torch.arange(6.0).view(2, 3), "pointer": torch.tensor(3)},
    "optimiser": {
        "state": {0: {"momentum_buffer": torch.ones(2), "step": torch.tensor(4.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1], "foreach": None}],
    },
}
WHO = {"method": "simclr", "seed": 0}


def test_round_trip_keeps_tensors_types_and_integer_keys(tmp_path):
    save_checkpoint(tmp_path, STATE, step=7, identity=WHO)
    back = load_checkpoint(tmp_path, identity=WHO)
    assert back["step"] == 7
    assert torch.equal(back["method"]["w"], STATE["method"]["w"])
    assert back["method"]["pointer"].dtype == torch.int64
    assert torch.equal(back["optimiser"]["state"][0]["momentum_buffer"], torch.ones(2))
    assert back["optimiser"]["param_groups"][0]["foreach"] is None


def test_only_the_newest_is_kept(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step}, step=step, identity=WHO)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000002"]


def test_a_full_disk_leaves_the_previous_checkpoint_intact(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, STATE, step=1, identity=WHO)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match="no space is left.*previous checkpoint is intact"):
        save_checkpoint(tmp_path, {**STATE, "step": 2}, step=2, identity=WHO)
    assert load_checkpoint(tmp_path, identity=WHO)["step"] == 7
    assert not list(tmp_path.glob(".step*"))


def test_a_kill_between_writing_and_naming_leaves_the_previous_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, STATE, step=1, identity=WHO)
    monkeypatch.setattr(module, "_point", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**STATE, "step": 99}, step=2, identity=WHO)
    assert load_checkpoint(tmp_path, identity=WHO)["step"] == 7


@pytest.mark.parametrize("part", ["tensors.safetensors", "state.json"])
def test_a_changed_byte_is_refused(tmp_path, part):
    folder = save_checkpoint(tmp_path, STATE, step=1, identity=WHO)
    content = bytearray((folder / part).read_bytes())
    content[-2] ^= 1
    (folder / part).write_bytes(content)
    with pytest.raises(CheckpointError, match="digest differs"):
        load_checkpoint(tmp_path)


def test_another_runs_checkpoint_is_refused_with_the_fields(tmp_path):
    save_checkpoint(tmp_path, STATE, step=1, identity=WHO)
    with pytest.raises(CheckpointError, match=r"method: saved 'simclr', now 'moco'"):
        load_checkpoint(tmp_path, identity={**WHO, "method": "moco"})


def test_missing_foreign_and_future_formats_are_refused(tmp_path):
    assert not has_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
    folder = save_checkpoint(tmp_path, STATE, step=1, identity=WHO)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": "other/2"}))
    with pytest.raises(CheckpointError, match="format 'other/2'"):
        load_checkpoint(tmp_path)
    (folder / "manifest.json").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="not a checkpoint of attar"):
        load_checkpoint(tmp_path)


def test_things_that_are_no_data_are_never_written(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_checkpoint(tmp_path, {"x": object()}, step=1, identity=WHO)
