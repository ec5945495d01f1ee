"""The leaderboard trains what is missing, keeps what is done, and says which methods beat their untrained backbone."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import attar.evaluation.controls
import attar.evaluation.evaluation
import attar.methods
import attar.train.checkpoint
from attar import leaderboard as module
from attar.cli import app
from attar.errors import AttarError, RecipeError, RunError
from attar.leaderboard import SIZES, Size, leaderboard
from attar.leaderboard_table import PUBLISHED, Entry, Leaderboard, plot
from attar.models.backbones import build_backbone
from tests.methods.conftest import make_images

TINY = Size(images=200, test_images=80, image_size=8, backbone="resnet8x0.5", vit="none", epochs=1, batch_size=64)
RANDOM = "random initialisation"


def entry(name, kind="siamese", knn=0.5, seed=0, **more):
    values = {"knn": (knn, knn - 0.02, knn + 0.02), "linear": (knn, knn - 0.02, knn + 0.02)}
    return Entry(name, kind, "resnet8", seed, values, 10.0, 100.0, 60.0, 10**9, **more)


def board(tmp_path, *entries, size="quick", **more):
    return Leaderboard(size, "images", tmp_path, list(entries), **more)


def test_a_method_is_better_than_untrained_where_the_interval_of_the_difference_is_above_zero(tmp_path):
    random = entry(RANDOM, "control", 0.40)
    clear, near = entry("simclr", knn=0.43), entry("byol", knn=0.425)
    found = board(tmp_path, random, clear, near)
    assert found.better([clear]) == "kNN, linear" and found.better([near]) == "no" and found.better([random]) == ""
    assert board(tmp_path, clear).better([clear]) == "?"
    assert board(tmp_path, clear, entry(RANDOM, "control", failure="no memory")).better([clear]) == "?"
    upper = entry("supervised", "upper line", knn=0.9)
    assert board(tmp_path, random, upper).better([upper]) == ""


def test_several_seeds_are_compared_by_their_means_and_spread(tmp_path):
    seeds = lambda name, values, kind="siamese": [entry(name, kind, v, i) for i, v in enumerate(values)]  # noqa: E731
    method = seeds("simclr", [0.46, 0.47, 0.48])
    steady, wide = seeds(RANDOM, [0.39, 0.40, 0.41], "control"), seeds(RANDOM, [0.34, 0.40, 0.46], "control")
    assert board(tmp_path, *method, *steady).better(method) == "kNN, linear"
    assert board(tmp_path, *method, *wide).better(method) == "no"  # the same mean; a single lucky draw said otherwise
    assert board(tmp_path, *method, *steady[:1]).better(method) == "kNN, linear"
    uneven = seeds("byol", [0.45, 0.55])  # the mean is 10 points above, of two that are 10 apart
    assert board(tmp_path, *uneven, *steady[:1]).better(uneven) == "no"
    diverged = Entry("simclr", "siamese", "resnet8", 3, failure="not finite")
    assert board(tmp_path, *method, diverged, *steady).better([*method, diverged]) == "kNN, linear"
    text = board(tmp_path, *method, diverged, *steady).text()
    assert "- simclr, seed 3: not finite" in text and "untrained ones and seeds of a method;" in text
    assert "40.0 ± 1.0" in text


def test_how_much_untrained_networks_differ_counts_for_a_method_with_one_seed(tmp_path):
    """Its training starts from one such network: 5 points above five that lie 4 apart is what the next one may have."""
    several = lambda *values: [entry(RANDOM, "control", v, i) for i, v in enumerate(values)]  # noqa: E731
    one = entry("simclr", knn=0.45)
    close, far = several(0.395, 0.4, 0.4, 0.4, 0.405), several(0.38, 0.38, 0.4, 0.42, 0.42)
    assert board(tmp_path, one, *close).better([one]) == "kNN, linear"
    assert board(tmp_path, one, *far).better([one]) == "no"


def test_the_table_gives_spread_over_seeds_and_names_failures(tmp_path):
    failed = Entry("moco", "contrastive", "resnet8", 0, failure="out of memory")
    upper = entry("supervised", "upper line", knn=0.95)
    upper.values["classifier"] = (0.96, 0.95, 0.97)
    found = board(
        tmp_path, entry("byol"), entry("byol", knn=0.6, seed=1), entry("pixels", "control", 0.99), failed, upper,
        entry("x", knn=0.9),
    )  # fmt: skip
    lines = found.table().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["x", "byol", "moco", "*supervised*", "*pixels*"]
    assert "55.0 ± 7.1" in lines[3] and "| failed, see below |" in lines[4]
    assert "own classifier" in lines[0] and "| 96.0 |" in lines[5] and "upper line" in lines[5]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "- moco, seed 0: out of memory" in found.text()


def test_methods_that_are_not_better_say_what_was_tried(tmp_path):
    random, near, far = entry(RANDOM, "control", 0.40), entry("byol", knn=0.41), entry("simclr", knn=0.5)
    text = board(tmp_path, random, near, entry("simsiam", knn=0.4), far, notes={"byol": "twice the rate: 41.2"}).text()
    assert "- byol: twice the rate: 41.2\n- simsiam: nothing was tried\n" in text and "- simclr:" not in text
    assert "Not above" not in board(tmp_path, random, far).text()


def test_published_figures_stand_beside_the_size_they_belong_to(tmp_path):
    assert "lightly" not in board(tmp_path, entry("simclr")).text()
    found = board(tmp_path, entry("simclr"), entry("vicreg"), size="gpu")
    lines = found.table().splitlines()
    place = lines[0].split(" | ").index("lightly's kNN")
    shown = {line.split(" | ")[0].strip("| "): line.split(" | ")[place] for line in lines[2:]}
    assert shown == {"simclr": "84.8", "vicreg": "–"} and set(PUBLISHED) <= set(attar.methods.CATALOGUE)
    assert "200 epochs, the best epoch" in found.text()


def test_conditions_are_shown_once_or_by_entry(tmp_path):
    on = {"device": "A", "torch": "2.9", "precision": "bf16", "compile": False}
    same = board(tmp_path, entry("simclr", conditions=on), entry("byol", conditions=dict(on))).text()
    assert "Conditions: device A; torch 2.9; precision bf16; compile no." in same and "Conditions differ" not in same
    other = entry("byol", conditions={**on, "device": "B", "compile": True})
    text = board(tmp_path, entry("simclr", conditions=on), other, entry("moco")).text()
    assert "Conditions: torch 2.9; precision bf16." in text and "images/s and memory compare only" in text
    assert "- device A: simclr, seed 0\n- device B: byol, seed 0\n- compile no: simclr, seed 0\n- compile yes" in text
    assert "Conditions not recorded: moco, seed 0." in text
    assert "Conditions" not in board(tmp_path, entry("moco")).text()
    most = [entry("simclr", seed=seed, conditions=on) for seed in range(5)]
    assert "- device A: all others\n- device B: byol, seed 0\n" in board(tmp_path, *most, other).text()


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown size 'huge'"):
        leaderboard(size="huge")
    with pytest.raises(RecipeError, match="seed needs a teacher or labels"):
        leaderboard(methods=["seed"])
    with pytest.raises(RecipeError, match="--methods supervised: it is trained in any case"):
        leaderboard(methods=["supervised"])
    with pytest.raises(RecipeError, match="--seeds 0"):
        leaderboard(seeds=0)
    with pytest.raises(RecipeError, match="--precision 'fp8' is unknown"):
        leaderboard(precision="fp8")
    (tmp_path / "notes.json").write_text('{"simsiam": ["a list"]}')
    with pytest.raises(RunError, match="notes.json: accepted is one object of texts"):
        leaderboard(size="quick", methods=["rotation"], out=tmp_path)


def test_untrained_networks_are_five_at_least_and_the_upper_line_has_every_seed():
    found = module._entries(["simclr", "colorization"], SIZES["quick"], 2)
    names = [(e.name, e.backbone, e.seed) for e in found if not e.is_method]
    untrained = [(RANDOM, name, seed) for seed in range(5) for name in ("resnet8", "lightness_resnet8")]
    upper = [("supervised", "resnet8", seed) for seed in range(2)]
    assert names == [("pixels", "–", 0), ("hog", "–", 0), *untrained, *upper]
    assert sum(e.name == RANDOM for e in module._entries(["simclr"], SIZES["quick"], 7)) == 7
    files = [module._file(Path("out"), e).name for e in found]
    assert len(set(files)) == len(files) and {"resnet8.json", "resnet8-1.json", "simclr-0.json"} <= set(files)


@pytest.mark.parametrize("size", SIZES)
def test_every_network_of_a_size_can_be_built(size):
    plan = SIZES[size]
    found = module._entries(["simclr", "cmc", "colorization", "mae", "i_jepa"], plan, 1)
    names = {e.backbone if e.name == RANDOM else e.name for e in found if e.kind == "control"}
    assert len(names) == 7
    for name in names:
        build_backbone(name, channels=3, image_size=plan.image_size, stem=plan.stem_for(name))


def test_the_command_passes_on_what_it_was_given(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(module, "leaderboard", lambda data, **more: given.update(more) or board(tmp_path))
    result = CliRunner().invoke(app, ["leaderboard", "--precision", "fp32", "--compile", "--methods", "simclr,byol"])
    assert result.exit_code == 0, result.output
    assert (given["precision"], given["compile"], given["methods"]) == ("fp32", True, ["simclr", "byol"])


def bench(tmp_path, monkeypatch, **more):
    """What the entries share, and the commands that were given to train."""
    said = {"device": "A", "torch": "2.9", "attar": "0", "precision": "bf16", "compile": True}
    given = []
    monkeypatch.setattr(module, "_wait_for", lambda command: given.append(command) or (2, "no such thing"))
    values = {"device": "cpu", "precision": "bf16", "compile": True, "conditions": said, **more}
    return module._Bench(SIZES["quick"], tmp_path, None, None, **values), given


def test_what_is_asked_for_reaches_the_training(tmp_path, monkeypatch):
    shared, given = bench(tmp_path, monkeypatch)
    for name in ("simclr", "mae", "supervised"):
        module._make(Entry(name, "upper line" if name == "supervised" else "x", "-", 0), shared)
    texts = [" ".join(command) for command in given]
    assert all("--precision bf16" in text and "--resume" in text for text in texts)
    assert ["--compile" in text for text in texts] == [True, False, True]  # mae reads tokens past what it compiles
    assert ["--labels true_labels --recipe small" in text for text in texts] == [False, False, True]
    assert "--backbone resnet8 " in texts[2] and "--epochs 30" in texts[2]
    assert [json.loads((tmp_path / name / "seed0.json").read_text())["compile"] for name in ("simclr", "mae")] == [
        True,
        False,
    ]


def test_a_training_that_goes_on_elsewhere_has_the_conditions_of_both(tmp_path, monkeypatch):
    shared, _ = bench(tmp_path, monkeypatch)
    wanted = Entry("simclr", "contrastive", "resnet8", 0)
    beside = tmp_path / "simclr" / "seed0.json"
    module._make(wanted, shared)
    on_b = replace(shared, conditions={**shared.conditions, "device": "B"}, compile=False)
    module._make(wanted, on_b)
    assert json.loads(beside.read_text())["device"] == "B", "nothing was saved of what A did"
    module._make(wanted, shared)
    monkeypatch.setattr(attar.train.checkpoint, "has_checkpoint", lambda folder: True)
    for _ in range(2):
        module._make(wanted, on_b)
        found = json.loads(beside.read_text())
        assert (found["device"], found["compile"], found["torch"]) == ("A, then B", "yes, then no", "2.9")
    beside.unlink()
    module._make(wanted, on_b)
    assert json.loads(beside.read_text())["device"] == "not recorded, then B"


def test_untrained_networks_are_those_of_evaluate_by_one_choice_for_batch_norm(tmp_path, monkeypatch):
    def networks(subject, number):
        assert subject.task.seed == 0, "the first network decides for all"
        return iter([replace(subject, backbone=f"network {i}") for i in range(number)])

    images = make_images()
    shared, _ = bench(tmp_path, monkeypatch)
    shared = replace(shared, train=images, held_out=images)
    measured = []
    monkeypatch.setattr(attar.evaluation.controls, "random_init", networks)
    monkeypatch.setattr(module, "_measure", lambda entry, model, *_, **__: measured.append(model))
    for seed in (0, 3):
        module._control(Entry(RANDOM, "control", "resnet8", seed), shared)
    assert measured == ["network 0", "network 3"]


@pytest.mark.parametrize("error", [AttarError("features\nare not finite"), RuntimeError("svd did not converge")])
def test_an_entry_that_cannot_be_measured_leaves_the_others_alone(tmp_path, monkeypatch, error):
    def evaluate(backbone, *_, **__):
        if backbone.spec.name == "hog":
            raise error
        return attar.evaluation.evaluation.Evaluation([], "", {"feature_rank": 3.0})

    def trained(made, _):
        made.images_per_second = 1.0
        if made.name == "rotation":
            raise error

    monkeypatch.setattr(attar.evaluation.evaluation, "evaluate", evaluate)
    monkeypatch.setattr(module, "_trained", trained)
    monkeypatch.setitem(SIZES, "quick", TINY)
    run = lambda: leaderboard("digits", methods=["rotation", "simclr"], size="quick", out=tmp_path, device="cpu")  # noqa: E731
    failures = {e.name: e.failure for e in run().entries}
    text = " ".join(str(error).split())
    assert failures == {"hog": text, "pixels": None, RANDOM: None, "rotation": text, "simclr": None, "supervised": None}
    assert f"- rotation, seed 0: {text}" in (tmp_path / "leaderboard.md").read_text()
    monkeypatch.setattr(module, "_trained", lambda made, _: None)
    assert {e.name for e in run().entries if e.failure} == {"hog"}  # tried again, and this time it went well


def test_a_plan_comes_first_and_the_time_left_with_every_entry(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_make", lambda made, _: made.values.update(knn=(0.4, 0.3, 0.5)))
    monkeypatch.setitem(SIZES, "quick", TINY)
    (tmp_path / "results").mkdir()
    old = entry("simclr", conditions={"device": "another"})
    (tmp_path / "results" / "simclr-0.json").write_text(json.dumps(asdict(old)))
    with caplog.at_level(logging.INFO, "attar"):
        leaderboard("digits", methods=["rotation", "simclr"], size="quick", out=tmp_path, device="cpu")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "3 trainings: 1 done, 2 to do; with measuring and controls about 8 minutes on two cores."
    assert "Made under other conditions than now asked for, and kept: simclr, seed 0." in said[1]
    assert said[2] == "pixels, seed 0: knn 40.0; 0.0 minutes; trainings left: 2, about 8 minutes."
    assert said[9] == "rotation, seed 0: knn 40.0; 0.0 minutes; trainings left: 1, less than 2 minutes."
    assert said[10] == "supervised, seed 0: knn 40.0; 0.0 minutes." and len(said) == 11


def test_the_time_of_training_alone_follows_the_epochs_and_the_pace(tmp_path, monkeypatch):
    shared, _ = bench(tmp_path, monkeypatch)
    short = replace(shared, plan=replace(shared.plan, epochs=3))
    missing = [Entry("pixels", "control", "–", 0), Entry(RANDOM, "control", "vit_micro_p4", 0)]
    missing += [Entry("simclr", "contrastive", "resnet8", 0), Entry("mae", "masked", "vit_micro_p4", 0)]
    full = lambda size, plan: module._Clock(size, plan, list(missing))  # noqa: E731
    # trainings of 3 and 19, 2 fine-tunings of 2.5, 4 times 0.2
    assert full("quick", shared)._left == "about 28 minutes"
    clock = full("quick", short)
    assert clock._left == "about 8 minutes"  # of 0.3 and 1.9, the rest as before
    for entry in missing[:3]:
        clock.finished(entry, 60 * 1.0)  # simclr: twice as long as guessed
    assert clock._left == "about 9 minutes"  # 2 * (1.9 + 2.5 + 0.2)
    unknown = full("gpu", shared)
    assert unknown._left == ""
    for entry in missing[:3]:
        unknown.finished(entry, 60.0)
    assert unknown._left != ""


@pytest.mark.parametrize("epochs, folder", [(None, "leaderboard-quick-"), (2, "leaderboard-quick-epochs2-")])
def test_the_budget_is_named(tmp_path, monkeypatch, epochs, folder):
    monkeypatch.setattr(module, "_make", lambda made, _: None)
    monkeypatch.setitem(SIZES, "quick", TINY)
    monkeypatch.chdir(tmp_path)
    found = leaderboard("digits", methods=["rotation"], size="quick", epochs=epochs, device="cpu")
    assert len(found.out.name) == len(folder) + 8 and found.out.name.startswith(folder)
    budget = f"200 images of digits at 8 pixels, {epochs or 1} epochs, batch 50, measured on 80 test images"
    assert budget in (found.out / "leaderboard.md").read_text()


def test_a_call_that_names_only_new_methods_keeps_the_others(tmp_path, monkeypatch):
    def make(made, _):
        tried.append(made.title)
        made.failure = "no memory" if made.name == "byol" else None

    tried = []
    monkeypatch.setattr(module, "_make", make)
    monkeypatch.setitem(SIZES, "quick", TINY)
    run = lambda *names, **more: leaderboard(  # noqa: E731
        "digits", methods=names, size="quick", out=tmp_path, device="cpu", **more
    )
    assert [e.title for e in run("simclr", "byol", "simclr", seeds=2).entries] == tried  # simclr once a seed
    first = {e.title: e.failure for e in run("simclr", "byol", seeds=2).entries}
    assert len(first) == 13 and tried[13:] == ["byol, seed 0", "byol, seed 1"]
    found = run("rotation")
    assert {e.title: e.failure for e in found.entries} == {**first, "rotation, seed 0": None}
    assert len(found.entries) == 14 and tried[15:] == ["rotation, seed 0"]  # failures are tried again if asked for
    stored = json.loads((tmp_path / "leaderboard.json").read_text())["entries"]
    assert len(stored) == 14 and "| rotation |" in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    "file, text, told",
    [
        ("results/simclr-0.json", '{"name": "sim', r"simclr-0.json is no JSON: Unterminated.*Delete it, and"),
        ("results/simclr-0.json", "[1, 2]", r"simclr-0.json holds \[1, 2\]; accepted is one object"),
        ("results/simclr-0.json", '{"name": "simclr"}', r"simclr-0.json: no entry .* no 'kind', no 'backbone'"),
        ("results/byol-3.json", json.dumps({**asdict(entry("byol")), "loss": 1}), "byol-3.json: .*unknown key 'loss'"),
        ("plan.json", "", r"plan.json is no JSON: .*choose another --out"),
        ("notes.json", "{", r"notes.json is no JSON: .*Mend it"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, monkeypatch, file, text, told):
    monkeypatch.setitem(SIZES, "quick", TINY)
    (tmp_path / "results").mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(RunError, match=told):
        leaderboard("digits", methods=["simclr"], size="quick", out=tmp_path, device="cpu")


TRAINING = """
import os, pathlib, sys, time
from attar.train.interrupt import Signals
folder, end = pathlib.Path(sys.argv[1]), time.monotonic() + 60
with Signals() as signals:
    (folder / "new").write_text(str(os.getpid()))
    (folder / "new").rename(folder / "began")
    while not signals.received and time.monotonic() < end:
        time.sleep(0.01)
    (folder / "stopping").touch()
    while not (folder / "sent").exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(1)  # in this time another signal is passed on
    (folder / "saved").touch()
"""
WAITING = f"""
import signal, sys
from attar.leaderboard import _wait_for
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job is told to ignore
try:
    _wait_for([sys.executable, "-c", {TRAINING!r}, sys.argv[1]])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("stop", ["Ctrl-C of a terminal", "SIGTERM"])
def test_a_stop_lets_the_training_save(tmp_path, stop):
    def wait_for(name):
        end = time.monotonic() + 60
        while not (tmp_path / name).exists() and time.monotonic() < end:
            time.sleep(0.01)

    waiting = subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path)])
    wait_for("began")
    if stop == "SIGTERM":
        waiting.terminate()
    else:  # of both; the training is the faster, so that what is passed on to it comes second
        os.kill(int((tmp_path / "began").read_text()), signal.SIGINT)
        wait_for("stopping")
        waiting.send_signal(signal.SIGINT)
    (tmp_path / "sent").touch()
    assert waiting.wait(timeout=60) == 130
    assert (tmp_path / "saved").exists()


def test_a_stored_board_is_read_again_and_names_no_folder(tmp_path):
    near = entry("byol", knn=0.41, conditions={"torch": "2.9"})
    made = board(tmp_path, entry(RANDOM, "control", 0.40), near, notes={"byol": "more epochs"})
    found = Leaderboard.from_json(json.loads(json.dumps(made.to_json())), out=tmp_path)
    assert found == made and found.text() == made.text() and f"in {tmp_path}" in found.text()
    page = Leaderboard.from_json(json.loads(json.dumps(made.to_json())))
    assert "more epochs" in page.text()
    assert not any(place in page.text() for place in (str(tmp_path), "notes.json", "None"))
    assert page.table() == made.table()


def test_the_plot_has_a_row_for_each_line_and_hollow_marks_where_nothing_was_gained(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    masked = entry("mae", "masked", 0.42)
    masked.values["finetune"] = (0.6, 0.59, 0.61)
    random = entry(RANDOM, "control", 0.4)
    random.values["finetune"] = (0.5, 0.49, 0.51)
    for entries in ([entry("simclr")], [entry("simclr"), masked, random]):
        plot(board(tmp_path, *entries), tmp_path / "x.png")
    words = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert words == [["kNN", "linear"], ["kNN", "linear", "fine-tuned", "not above its untrained network"]]
    axes = drawn[1].axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["simclr (resnet8)", "mae (resnet8)", "untrained (resnet8)"]
    points = {
        (
            line.get_marker(),
            round(line.get_xdata()[0]),
            rows[line.get_ydata()[0]].split()[0],
        ): line.get_markerfacecolor()
        for line in axes.lines
        if len(line.get_xdata()) == 1
    }
    hollow = {key for key, face in points.items() if face == "white"}
    assert hollow == {("o", 42, "mae"), ("D", 42, "mae")}
    assert {("o", 50, "simclr"), ("^", 60, "mae"), ("^", 50, "untrained")} <= points.keys() - hollow


def test_a_mark_is_hollow_only_where_its_untrained_network_was_measured_too(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    tuned, random = entry("simclr", knn=0.7), entry(RANDOM, "control", 0.4)
    tuned.values["finetune"] = (0.9, 0.89, 0.91)
    low = entry("simclr", knn=0.3)
    for entries in ([tuned, random], [low, random]):
        plot(board(tmp_path, *entries), tmp_path / "x.png")
    words = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert words == [["kNN", "linear", "fine-tuned"], ["kNN", "linear", "not above its untrained network"]]
    handles = drawn[1].legends[0].legend_handles
    assert [handle.get_markerfacecolor() == "white" for handle in handles] == [False, False, True]


def test_folders_of_earlier_versions_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_make", lambda made, _: None)
    monkeypatch.setitem(SIZES, "quick", TINY)
    ask = {"methods": ["rotation"], "size": "quick", "out": tmp_path, "device": "cpu"}
    leaderboard("digits", **ask)
    with module.np.load(tmp_path / "train.npz") as arrays:
        images, labels, classes = (arrays[name] for name in ("images", "true_labels", "true_classes"))
    assert len(images) == len(labels) == 200 and len(classes) == 10 and set(labels) == set(range(10))
    module.np.savez(tmp_path / "train.npz", images=images)
    old = {key: value for key, value in asdict(entry("rotation")).items() if key != "conditions"}
    (tmp_path / "results" / "rotation-0.json").write_text(json.dumps(old))
    again = leaderboard("digits", **ask)
    assert next(e for e in again.entries if e.name == "rotation").images_per_second == 100.0
    assert (module.np.load(tmp_path / "train.npz")["true_labels"] == labels).all()


@pytest.mark.slow
def test_a_small_one_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "quick", TINY)
    out = tmp_path / "board"
    first = leaderboard("digits", methods=["rotation"], size="quick", out=out, device="cpu", precision="fp32")
    names = {e.name for e in first.entries}
    assert names == {"rotation", "pixels", "hog", RANDOM, "supervised"}
    method = next(e for e in first.entries if e.name == "rotation")
    assert method.failure is None and set(method.values) == {"knn", "linear", "low_label 1 %", "low_label 10 %"}
    assert method.peak_memory > 10**8 and method.images_per_second > 0
    assert method.conditions["precision"] == "fp32" and method.conditions["compile"] is False
    upper = next(e for e in first.entries if e.name == "supervised")
    assert upper.failure is None and set(upper.values) == {"knn", "linear", "classifier"}
    assert (out / "leaderboard.png").stat().st_size > 5000 and "rotation" in (out / "leaderboard.md").read_text()
    weights = (out / "rotation" / "seed0" / "backbone.json").stat().st_mtime_ns
    again = leaderboard("digits", methods=["rotation", "simclr"], size="quick", out=out, device="cpu")
    assert {e.name for e in again.entries} == names | {"simclr"}
    assert (out / "rotation" / "seed0" / "backbone.json").stat().st_mtime_ns == weights
    assert json.loads((out / "leaderboard.json").read_text()) == json.loads(json.dumps(again.to_json()))
    with pytest.raises(RunError, match="epochs: 1 -> 2"):
        leaderboard("digits", methods=["rotation"], size="quick", epochs=2, out=out, device="cpu")


@pytest.mark.slow
def test_the_upper_line_is_one(tmp_path, monkeypatch):
    """With enough passes the classifier it was trained with knows the digits; the untrained network does not."""
    monkeypatch.setitem(SIZES, "quick", replace(TINY, images=1000, test_images=300, epochs=20))
    found = leaderboard("digits", methods=["rotation"], size="quick", out=tmp_path / "board", device="cpu")
    values = {e.name: e.values for e in found.entries}
    assert values["supervised"]["classifier"][0] > 0.85
    assert values["supervised"]["knn"][1] > max(values[RANDOM]["knn"][2], values["rotation"]["knn"][2])
