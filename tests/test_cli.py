"""What a person types: the command line as a process, and its errors in the user's words."""

import inspect
import json
import os
import subprocess
import sys

import pytest

from attar import stages
from attar.claims import CLAIMS
from attar.cli import main
from attar.errors import AttarError
from attar.methods import CATALOGUE


@pytest.fixture
def attar(monkeypatch, capsys):
    """Run a command as the installed script does, in this process; returns (stdout, stderr)."""

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["attar", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, err
        return out, err

    return run


def test_as_a_process_an_error_is_one_paragraph_without_a_traceback(tmp_path):
    arguments = ["pretrain", "digits", "--out", str(tmp_path / "r"), "--method", "mocco"]
    done = subprocess.run([sys.executable, "-m", "attar", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("attar: unknown method 'mocco'. Did you mean moco?") and "Traceback" not in done.stderr
    )


def test_help_names_every_command(attar):
    text = attar("--help")[0]
    for (
        command
    ) in "demo doctor pretrain distill evaluate embed export report run methods reproduce leaderboard".split():
        assert f"\n  {command} " in text


def test_methods_as_json_lists_the_catalogue(attar):
    rows = json.loads(attar("methods", "--json")[0])
    assert [r["name"] for r in rows] == list(CATALOGUE)
    assert all(set(r) == {"name", "family", "paper", "year"} for r in rows)


def test_claims_are_listed_without_a_name(attar):
    assert "\nmoco_queue " in attar("reproduce")[0]
    rows = json.loads(attar("reproduce", "--json")[0])
    assert [r["name"] for r in rows] == list(CLAIMS) and all(r["claim"] and r["source"] for r in rows)


def test_one_method_whole(attar):
    text = attar("methods", "simclr")[0]
    assert "2002.05709" in text and "temperature" in text and "small" in text
    page = json.loads(attar("methods", "simclr", "--json")[0])
    assert page["recipes"]["small"]["temperature"] == 0.5


@pytest.mark.parametrize("command", ["pretrain", "distill"])
def test_every_option_of_a_training_reaches_it(attar, tmp_path, monkeypatch, command):
    given = {
        "method": "byol", "backbone": "resnet8", "recipe": "small", "epochs": 3, "minutes": 2.5, "batch_size": 16,
        "image_size": 48, "test_size": 80, "channels": 1, "stem": "small", "lr": 0.5, "labels": "column",
        "label_fraction": 0.25, "label_noise": "symmetric:0.4", "workers": 2, "seed": 7, "device": "cpu",
        "precision": "fp32", "accumulate": 4, "checkpoint_steps": 9, "init": tmp_path / "init", "cache": tmp_path / "c",
        "out": tmp_path / "out",
    }  # fmt: skip
    switches = ("pretrained", "compile", "checkpoint_activations", "shard", "resume")
    words = [
        command,
        "digits",
        *(["--teacher", "hog", "--teacher-size", "64"] if command == "distill" else []),
        "-s",
        "temperature=0.2",
    ]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    words += [f"--{name.replace('_', '-')}" for name in switches]
    called = []

    def record(source, **options):
        called.append((source, options))
        raise AttarError("enough")

    taken = set(inspect.signature(getattr(stages, command)).parameters)
    monkeypatch.setattr(stages, command, record)
    attar(*words, code=2)
    source, options = called[0]
    assert source == "digits"
    teacher = {"teacher": "hog", "teacher_size": 64} if command == "distill" else {}
    assert options == {**given, **dict.fromkeys(switches, True), **teacher, "settings": {"temperature": "0.2"}}
    assert set(options) == taken - {"source", "progress"}, "nothing that Python takes is left out"


def test_commands_set_what_torch_reads_when_it_is_imported(attar, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for name, value in (("GOMP_SPINCOUNT", "5000"), ("OMP_WAIT_POLICY", "PASSIVE"), ("THP_MEM_ALLOC_ENABLE", "1")):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)
        attar("methods")
        assert os.environ[name] == value
        monkeypatch.setenv(name, "mine")
        if name == "GOMP_SPINCOUNT":
            monkeypatch.delenv("OMP_WAIT_POLICY")
        attar("methods")
        assert os.environ[name] == "mine", "a person's own setting stays"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    attar("methods")
    assert "GOMP_SPINCOUNT" not in os.environ, "it would overrule a person's own policy"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["reproduce", "--seeds", "5"], "--seeds would be ignored: name a claim"),
        (["methods", "simcrl"], "unknown method 'simcrl'. Did you mean simclr?"),
        (["pretrain", "digits", "--out", "{tmp}/r", "--method", "mocco"], "Did you mean moco?"),
        (["pretrain", "digits", "--out", "{tmp}/r", "--backbone", "resnet81"], "unknown backbone 'resnet81'"),
        (["pretrain", "digits", "--out", "{tmp}/r", "-s", "temperatur=1"], "unknown recipe field 'temperatur'"),
        (["pretrain", "digits", "--out", "{tmp}/r", "-s", "temperature"], "NAME=VALUE"),
        (["pretrain", "digits", "--out", "{tmp}/r", "-s", "temperature=warm"], "temperature='warm' is not accepted"),
        (["pretrain", "digits", "--out", "{tmp}/r", "-s", "lr_drops=0.5"], "lr_drops would be ignored"),
        (["pretrain", "digits", "--out", "{tmp}/r", "--method", "seed"], "needs a teacher"),
        (["distill", "digits", "--teacher", "hog", "--out", "{tmp}/r", "--method", "simclr"], "no use for a teacher"),
        (["pretrain", "{tmp}/none", "--out", "{tmp}/r"], "/none"),
        (["pretrain", "{tmp}", "--out", "{tmp}-r"], "holds no images"),
        (["pretrain", "{tmp}", "--out", "{tmp}/r"], "lies inside the images of"),
        (
            ["pretrain", "digits", "--out", "{tmp}/r", "--backbone", "resnet8", "--batch-size", "4096"],
            "larger than the data",
        ),
        (["pretrain", "digits", "--out", "{tmp}", "--backbone", "resnet8"], "not empty and is no run"),
        (["pretrain", "digits", "--out", "{tmp}/r", "--epochs", "1", "--minutes", "1"], "give one of them"),
        (["evaluate", "{tmp}/none", "digits"], "none"),
        (["run", "{tmp}/none.yaml"], "does not exist"),
    ],
)
def test_mistakes_are_answered_in_the_users_words(attar, tmp_path, arguments, text):
    (tmp_path / "notes.txt").write_text("no image")
    out, err = attar(*[a.format(tmp=tmp_path) for a in arguments], code=2)
    assert text in err and out == ""
    assert not (tmp_path / "r").exists()
