"""What a person types: the command line as a process, and its errors in the user's words."""

import json
import subprocess
import sys

import pytest

from attar.methods import CATALOGUE


def attar(*arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", "attar", *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_names_every_command():
    text = attar("--help").stdout
    for command in "demo doctor pretrain distill evaluate embed export report run methods reproduce".split():
        assert f"\n  {command} " in text


def test_methods_as_json_lists_the_catalogue():
    rows = json.loads(attar("methods", "--json").stdout)
    assert [r["name"] for r in rows] == list(CATALOGUE)
    assert all(set(r) == {"name", "family", "paper", "year"} for r in rows)


def test_one_method_whole():
    text = attar("methods", "simclr").stdout
    assert "2002.05709" in text and "temperature" in text and "small" in text
    page = json.loads(attar("methods", "simclr", "--json").stdout)
    assert page["recipes"]["small"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
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
        (["pretrain", "{tmp}", "--out", "{tmp}/r"], "no usable image"),
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
def test_mistakes_are_answered_in_the_users_words(tmp_path, arguments, text):
    (tmp_path / "notes.txt").write_text("no image")
    done = attar(*[a.format(tmp=tmp_path) for a in arguments], code=2)
    assert text in done.stderr and done.stdout == ""
    assert not (tmp_path / "r").exists()
