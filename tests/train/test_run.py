"""The run folder: who may write where, and the texts a person gets otherwise."""

import subprocess
import sys

import pytest

from attar.errors import RunError
from attar.train.run import RunFolder


def test_a_new_folder_is_made_and_its_recipe_read_back(tmp_path):
    run = RunFolder.create(tmp_path / "a" / "run", resume=False)
    run.write_recipe({"method": "simclr", "settings": {"lr_drops": [0.1, 0.2]}})
    run.release()
    assert RunFolder.open(run.path).read_recipe()["settings"] == {"lr_drops": [0.1, 0.2]}


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path):
    RunFolder.create(tmp_path, resume=False).write_recipe({"method": "x"})
    RunFolder.check(tmp_path, resume=False)  # no step was taken yet, so nothing can be lost
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(RunError, match="already holds a run.*--resume"):
        RunFolder.create(tmp_path, resume=False)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.txt").write_text("meow")
    with pytest.raises(RunError, match="not empty and is no run"):
        RunFolder.create(other, resume=False)
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(other / "cat.txt", resume=False)


def test_a_folder_another_process_writes_is_refused(tmp_path):
    code = (
        "import sys, time; from attar.train.run import RunFolder;"
        "r = RunFolder.create(sys.argv[1], resume=False); print('held', flush=True); time.sleep(30)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(RunError, match="another process"):
            RunFolder.create(tmp_path, resume=True)
    finally:
        holder.kill()
        holder.wait()
    RunFolder.create(tmp_path, resume=True).release()  # a killed writer leaves no lock


def test_too_little_space_is_said_before_training(tmp_path):
    with pytest.raises(RunError, match="no space.*the run needs about"):
        RunFolder.create(tmp_path, resume=False, needed_bytes=10**18)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="has no recipe.yaml"):
        RunFolder.open(tmp_path)
    (tmp_path / "recipe.yaml").write_text("just text")
    with pytest.raises(RunError, match="not a recipe of attar"):
        RunFolder.open(tmp_path).read_recipe()
