"""`attar leaderboard`: every self-supervised method at the same budget, on the same images, by the same yardstick.

Equal for all: images, number of passes over them, batch, backbone (methods of patch tokens take a small ViT and are
compared with that ViT untrained), evaluation, last epoch. Beside them stand pixels, HOG, five untrained networks of
each kind and, as the upper line, the same network trained with all labels. Each training is a process of its own, so
that its memory is its own; one that fails, there or when it is measured, leaves the others alone. What is done is not
done again.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.claims.images import train_and_test
from attar.errors import RecipeError, RunError, unknown_name
from attar.leaderboard_table import CONTROL, UNTRAINED, UPPER_LINE, Entry, Leaderboard, plot, then
from attar.train.run import RunFolder, check_writable, write_atomically

if TYPE_CHECKING:
    from attar.data.images import Images

logger = logging.getLogger("attar")


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of a leaderboard. images, test_images: at most so many are used, chosen once for all."""

    images: int
    test_images: int
    image_size: int
    backbone: str
    vit: str
    stem: str = "standard"
    epochs: int
    batch_size: int

    def backbone_for(self, method: str) -> str:
        """The convnet, or for methods that mask patches the ViT with the tokens they need."""
        from attar.methods.base import load

        tokens = load(method).METHOD.needs_tokens
        return {"": self.backbone, "mean": f"{self.vit}_gap"}.get(tokens, self.vit)

    def network_of(self, method: str) -> str:
        """What the method makes of this backbone."""
        from attar.methods.base import load

        return load(method).METHOD.backbone_name(self.backbone_for(method))

    def stem_for(self, network: str) -> str:
        """Of convnets; ViTs, pixels and HOG have none to choose."""
        return "standard" if network in (*HANDCRAFTED, self.vit, f"{self.vit}_gap") else self.stem


SIZES = {
    "quick": Size(
        images=5_000,
        test_images=10_000,
        image_size=32,
        backbone="resnet8",
        vit="vit_micro_p4",
        epochs=30,
        batch_size=128,
    ),
    "cpu": Size(
        images=10_000,
        test_images=10_000,
        image_size=32,
        backbone="resnet20",
        vit="vit_micro_p4",
        epochs=40,
        batch_size=256,
    ),
    "gpu": Size(
        images=50_000,
        test_images=10_000,
        image_size=32,
        backbone="resnet18",
        vit="vit_tiny_p4",
        stem="small",
        epochs=200,
        batch_size=512,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Roughly, the minutes of one entry's parts on two cores: for a look, to say something."""

    training: float  # at the size's own number of epochs
    masked: float  # the same of methods that mask patches, which train a ViT
    measuring: float
    finetuning: float  # of a ViT

    def of(self, entry: Entry, share: float, *, finetunes: bool) -> float:
        """Minutes. share: the epochs over the size's own; measuring and fine-tuning do not change with it."""
        training = {CONTROL: 0.0, "masked": self.masked}.get(entry.kind, self.training)
        return training * share + self.measuring + (self.finetuning if finetunes else 0)


COSTS = {
    "quick": Cost(training=3, masked=19, measuring=0.2, finetuning=2.5),
    "cpu": Cost(training=15, masked=45, measuring=0.4, finetuning=5),
}  # of gpu nothing is known before its first training
PROTOCOLS = ("knn", "linear", "low_label:0.01,0.1")
FINETUNE = "finetune:0.001,epochs=10"  # of AdamW
FINETUNED = ("masked",)  # families whose features are made to be fine-tuned: kNN and linear do them no justice
HANDCRAFTED = ("pixels", "hog")
UPPER_METHOD = "supervised"
UPPER_PROTOCOLS = ("knn", "linear", "classifier")  # it saw all labels, so what few of them give says nothing
LABELS = "true_labels"  # the array of train.npz that only the upper line is trained with


def leaderboard(
    data: str | Path = "digits",
    *,
    test: str | Path | None = None,
    methods: Sequence[str] | None = None,
    size: str = "cpu",
    seeds: int = 1,
    epochs: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
) -> Leaderboard:
    """Train and measure what is missing, then write leaderboard.json, .md and .png into `out`.

    Args:
        data, test: labelled images to train on (labels only measure, and train the upper line) and to measure on;
            without test, a fifth of data.
        methods: names; default: every method that needs no teacher.
        size: of SIZES. epochs: instead of the size's. seeds: trainings a method.
        out: default runs/leaderboard-SIZE-(digest of the data), with the epochs where they are not the size's own. A
            folder holds one leaderboard; a later call may name further methods or seeds only, and the table holds all
            that the folder does. A file notes.json in it, {method: text}, says under the table what was tried with a
            method that did not beat its untrained network.
        device, precision, compile: of the trainings, as in `pretrain`. Methods that mask patches are never compiled.
            They are no part of the budget: entries made under others are kept, and the table says so.

    Raises:
        RecipeError: an unknown size or method, a method that needs a teacher, data without labels.
        RunError: `out` holds a leaderboard of other images or of another budget, or a file that cannot be read.
    """
    from attar.methods import CATALOGUE

    if size not in SIZES:
        raise RecipeError(unknown_name("size", size, SIZES))
    for option, given in (("seeds", seeds), ("epochs", epochs)):
        if given is not None and given < 1:
            raise RecipeError(f"--{option} {given}: it must be 1 or more.")
    _check_methods(methods)
    conditions = conditions_of(device, precision, compile=compile)
    chosen = list(dict.fromkeys(methods or filter(_self_supervised, CATALOGUE)))
    plan = SIZES[size] if epochs is None else replace(SIZES[size], epochs=epochs)
    train, held_out = train_and_test(data, test, plan.image_size, plan.images, plan.test_images)
    plan = replace(plan, batch_size=min(plan.batch_size, max(len(train) // 4, 2)))
    trial = "" if plan.epochs == SIZES[size].epochs else f"-epochs{plan.epochs}"
    out = Path(out or f"runs/leaderboard-{size}{trial}-{train.digest[:8]}")
    notes = _notes(out / "notes.json")
    _claim(out, plan, train, held_out)
    bench = _Bench(plan, out, train, held_out, device, precision, compile, conditions)
    kept: list[Entry] = []
    missing: list[Entry] = []
    planned = _entries(chosen, plan, seeds)
    for entry in planned:
        path = _file(out, entry)
        found = _stored(path) if path.is_file() else None
        if found is None or found.failure is not None:  # failures are tried again
            missing.append(entry)
        else:
            kept.append(found)
    about = (
        f"{len(train)} images of {Path(str(data)).name} at {plan.image_size} pixels, {plan.epochs} epochs, batch "
        f"{plan.batch_size}, measured on {len(held_out)} test images"
    )
    board = Leaderboard(size, about, out, [*_others(out, planned), *kept], notes)
    clock = _Clock(size, bench, missing)
    clock.announce(kept)
    for entry in missing:
        began = time.monotonic()
        _make(entry, bench)
        write_atomically(check_writable(_file(out, entry)), json.dumps(asdict(entry), indent=1))
        board.entries.append(entry)
        _write(board, out)
        clock.finished(entry, time.monotonic() - began)
    _write(board, out)
    return board


def conditions_of(device: str, precision: str, *, compile: bool) -> dict[str, Any]:
    """What a training's speed and memory depend on besides the plan; refuses an unknown device or precision."""
    import torch

    import attar
    from attar.exporting import hardware
    from attar.train.distributed import choose_device
    from attar.train.loop import choose_precision

    chosen = choose_device(device)
    is_gpu = chosen.type == "cuda"
    name = torch.cuda.get_device_name(chosen) if is_gpu else f"{hardware()}, {torch.get_num_threads()} threads"
    computed = "bf16" if choose_precision(precision, chosen) == torch.bfloat16 else "fp32"
    own = {"device": name, "torch": str(torch.__version__), "attar": attar.__version__}
    return {**own, "precision": computed, "compile": compile}


def _check_methods(methods: Sequence[str] | None) -> None:
    if methods is not None and not methods:
        raise RecipeError("--methods names none; leave it out for all that need no teacher.")
    for name in methods or ():
        if name == UPPER_METHOD:
            raise RecipeError(f"--methods {name}: it is trained in any case, as the upper line; leave it out.")
        if not _self_supervised(name):
            raise RecipeError(f"{name} needs a teacher or labels; the leaderboard compares methods that need neither.")


def _self_supervised(name: str) -> bool:
    from attar.methods.base import load

    method = load(name).METHOD
    return not method.needs_teacher and not method.needs_labels


def _object(path: Path, advice: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is no JSON: {error}. {advice}") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} holds {found!r:.40}; accepted is one object. {advice}")
    return found


def _notes(path: Path) -> dict[str, str]:
    """What a person wrote about methods."""
    if not path.is_file():
        return {}
    notes = _object(path, "Mend it, or delete it.")
    if not all(isinstance(text, str) for text in notes.values()):
        raise RunError(f'{path}: accepted is one object of texts by method, {{"simsiam": "what was tried"}}.')
    return notes


def _claim(out: Path, plan: Size, train: Images, held_out: Images) -> None:
    """Write the images once, for the processes that train, and refuse a folder with another leaderboard."""
    plan_file = check_writable(out / "plan.json")
    wanted = {**asdict(plan), "train": train.digest, "test": held_out.digest}
    advice = "Delete it if the folder was made of these images with this budget; else choose another --out."
    if plan_file.is_file() and (found := _object(plan_file, advice)) != wanted:
        changed = [
            f"{key}: {found.get(key)!r} -> {value!r}" for key, value in wanted.items() if found.get(key) != value
        ]
        raise RunError(f"{out} holds another leaderboard ({'; '.join(changed)}); choose another --out.")
    images = out / "train.npz"
    if not images.is_file() or LABELS not in np.load(images).files:  # folders of earlier versions have no labels
        _write_images(images, train, held_out)
    write_atomically(plan_file, json.dumps(wanted, indent=1))


def _write_images(path: Path, train: Images, held_out: Images) -> None:
    """Labels under a name that nothing reads unasked: they must not reach the trainings without labels."""
    from attar.evaluation.evaluation import prepare

    labelled, _, classes = prepare(train, held_out, seed=0)
    assert train.labels is not None and labelled.labels is not None
    labels = np.full(len(train), -1, dtype=np.int64)
    labels[train.labels >= 0] = labelled.labels
    temporary = path.with_name(f".{path.name}")
    arrays = {"images": _squares(train), LABELS: labels, LABELS.replace("labels", "classes"): np.array(classes)}
    np.savez(temporary, **arrays)  # type: ignore[arg-type]  # its stubs take arrays by name for other options
    os.replace(temporary, path)


def _squares(images: Images) -> np.ndarray:
    """The central squares of all images, uint8 (N, H, W, C)."""
    from attar.data.images import ImageSpec
    from attar.views.augmentation import CentreView

    zeros, ones = (0.0,) * images.channels, (1.0,) * images.channels
    view = CentreView(ImageSpec(size=images.canvas_size, channels=images.channels, mean=zeros, std=ones))
    parts = np.array_split(np.arange(len(images)), -(-len(images) // 512))
    squares = [(view(images.batch(part)) * 255).round().byte().permute(0, 2, 3, 1).numpy() for part in parts]
    return np.concatenate(squares)


def _entries(methods: Sequence[str], plan: Size, seeds: int) -> list[Entry]:
    """All entries in the order in which they are made, still empty; pixels and HOG know no seed.

    Of untrained networks there are as many as `attar evaluate` takes at least: they are cheap, and they differ.
    """
    from attar.evaluation.controls import NUM_UNTRAINED
    from attar.methods import entry as catalogue_line

    networks = list(dict.fromkeys(map(plan.network_of, methods)))
    entries = [Entry(name, CONTROL, "–", 0) for name in HANDCRAFTED]
    for seed in range(max(seeds, NUM_UNTRAINED)):
        entries += [Entry(UNTRAINED, CONTROL, network, seed) for network in networks]
    for seed in range(seeds):
        entries += [Entry(name, catalogue_line(name).family, plan.network_of(name), seed) for name in methods]
        entries.append(Entry(UPPER_METHOD, UPPER_LINE, plan.network_of(UPPER_METHOD), seed))
    return entries


def _file(out: Path, entry: Entry) -> Path:
    if entry.kind != CONTROL:
        return out / "results" / f"{entry.name}-{entry.seed}.json"
    name = entry.backbone if entry.name == UNTRAINED else entry.name
    return out / "results" / (f"{name}-{entry.seed}.json" if entry.seed else f"{name}.json")


def _stored(path: Path) -> Entry:
    """The entry in this file."""
    advice = "Delete it, and the entry is measured again; if a newer attar wrote it, update instead."
    values = _object(path, advice)
    try:
        return Entry.from_json(values)
    except RunError as error:
        raise RunError(f"{path}: {error} {advice}") from None


def _others(out: Path, planned: Sequence[Entry]) -> list[Entry]:
    """What earlier calls made of methods and seeds that this one does not name, failures too."""
    named = {_file(out, entry) for entry in planned}
    return [_stored(path) for path in sorted((out / "results").glob("*.json")) if path not in named]


@dataclass
class _Clock:
    """Says what is to do and how long it takes: a guess by the size, corrected by how long trainings so far took."""

    size: str
    bench: _Bench
    missing: list[Entry]
    _guessed: float = 0.0  # minutes of the trainings that are done
    _taken: float = 0.0

    def _guess(self, entry: Entry) -> float:
        cost = COSTS.get(self.size, COSTS["cpu"])  # of gpu only the proportions count
        share = self.bench.plan.epochs / SIZES[self.size].epochs
        return cost.of(entry, share, finetunes=self.bench.finetunes(entry))

    @property
    def _trainings(self) -> int:
        return sum(entry.kind != CONTROL for entry in self.missing)

    @property
    def _left(self) -> str:
        """The time that all missing entries take, in words; "" where nothing is known of it."""
        if not self._guessed and self.size not in COSTS:
            return ""
        pace = self._taken / self._guessed if self._guessed else 1.0
        minutes = pace * sum(map(self._guess, self.missing))
        return "less than 2 minutes" if minutes < 1.5 else f"about {minutes:.0f} minutes"

    def announce(self, kept: Sequence[Entry]) -> None:
        done, to_do = sum(entry.kind != CONTROL for entry in kept), self._trainings
        duration = f"{self._left} on two cores" if self._left else "how long they take is known after the first"
        guess = f"; with measuring and controls {duration}" if self.missing else ""
        logger.info("%d trainings: %d done, %d to do%s.", done + to_do, done, to_do, guess)
        asked = self.bench.conditions
        others = [e.title for e in kept if any(asked.get(key) != value for key, value in e.conditions.items())]
        if others:
            logger.warning(
                "Made under other conditions than now asked for, and kept: %s. The table says which; to make one "
                "again delete its file in results and the folder of its run.",
                "; ".join(others),
            )

    def finished(self, entry: Entry, seconds: float) -> None:
        self.missing = self.missing[1:]
        if entry.kind != CONTROL and entry.failure is None:
            self._guessed += self._guess(entry)
            self._taken += seconds / 60
        left = ""
        if self.missing:
            left = f"; trainings left: {self._trainings}" + (f", {self._left}" if self._left else "")
        values = ", ".join(
            f"{name} {100 * entry.values[name][0]:.1f}" for name in ("knn", "linear") if name in entry.values
        )
        logger.log(
            logging.ERROR if entry.failure else logging.INFO,
            "%s: %s; %.1f minutes%s.",
            entry.title,
            f"failed: {entry.failure}" if entry.failure else values,
            seconds / 60,
            left,
        )


@dataclass(frozen=True)
class _Bench:
    """What all entries share."""

    plan: Size
    out: Path
    train: Images
    held_out: Images
    device: str
    precision: str
    compile: bool
    conditions: dict[str, Any]

    @cached_property
    def _finetuned(self) -> set[str]:
        """The networks whose fine-tuning is measured, trained and untrained."""
        from attar.methods import CATALOGUE

        return {self.plan.network_of(name) for name, line in CATALOGUE.items() if line.family in FINETUNED}

    def finetunes(self, entry: Entry) -> bool:
        """Masked methods, and one of the untrained networks of their kind: it takes minutes."""
        untrained = entry.name == UNTRAINED and entry.seed == 0 and entry.backbone in self._finetuned
        return untrained or entry.kind in FINETUNED


def _make(entry: Entry, bench: _Bench) -> None:
    """Fill the entry. What training or measuring says against it (weights that diverged, no memory) is its failure."""
    try:
        (_control if entry.kind == CONTROL else _trained)(entry, bench)
    except (ValueError, RuntimeError) as error:  # AttarError is a ValueError; LAPACK's and CUDA's are either
        entry.failure = " ".join(str(error).split())[:300] or type(error).__name__


def _trained(entry: Entry, bench: _Bench) -> None:
    from attar.evaluation.subject import Classifier
    from attar.methods.base import load
    from attar.models.saved import classes_of, load_backbone, load_head
    from attar.train.checkpoint import has_checkpoint

    plan, name, is_upper = bench.plan, entry.name, entry.kind == UPPER_LINE
    run = bench.out / name / f"seed{entry.seed}"
    backbone = plan.backbone_for(name)
    options = {"method": name, "backbone": backbone, "stem": plan.stem_for(backbone), "image-size": plan.image_size}
    options |= {"seed": entry.seed, "epochs": plan.epochs, "batch-size": plan.batch_size, "out": run}
    options |= {"device": bench.device, "precision": bench.precision}
    options |= {"labels": LABELS, "recipe": "small"} if is_upper else {}
    compiled = bench.compile and not load(name).METHOD.needs_tokens
    flags = ["--resume", *(["--compile"] if compiled else [])]
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    beside = run.with_suffix(".json")  # what it is trained on is not known from the run, when only measuring is left
    folder = RunFolder(run)
    if not folder.is_complete:
        conditions = {**bench.conditions, "compile": compiled}
        if has_checkpoint(folder.checkpoint):  # what goes on has the conditions of both
            before = _object(beside, "Delete it.") if beside.is_file() else {}
            conditions = {key: then(before.get(key, "not recorded"), value) for key, value in conditions.items()}
        write_atomically(check_writable(beside), json.dumps(conditions))
    code, said = _wait_for(
        [sys.executable, "-m", "attar", "pretrain", str(bench.out / "train.npz"), *arguments, *flags]
    )
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        entry.failure = said if code == 2 else f"ended by signal {-code}" if code < 0 else f"{said} (exit {code})"
        return
    fit = json.loads((run / "fit.json").read_text())
    entry.images_per_second, entry.seconds = fit["images_per_second"], fit["seconds"]
    entry.peak_memory = fit["peak_memory"]
    entry.conditions = json.loads(beside.read_text()) if beside.is_file() else {}
    model, image, _ = load_backbone(run)
    head = load_head(run, "classifier") if is_upper else None
    more = (FINETUNE,) if bench.finetunes(entry) else ()
    protocols = UPPER_PROTOCOLS if is_upper else (*PROTOCOLS, *more)
    _measure(entry, model, image, protocols, bench, classifier=head and Classifier(head, classes_of(run)))


def _wait_for(command: list[str]) -> tuple[int, str]:
    """Exit code and last line of stderr. A stop is passed on, and waited for: the training saves before it ends.

    As SIGTERM: of a terminal's Ctrl-C the training has its SIGINT already, and a second one tells it not to save.
    """
    with (
        _sigterm_interrupts(),
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            said = process.communicate()[1]
        except KeyboardInterrupt:
            process.terminate()
            process.communicate()
            raise
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return process.returncode, last.removeprefix("attar: ")[:300]


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt; by itself it would end this process at once and leave its training running."""
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set there
        yield
        return
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _control(entry: Entry, bench: _Bench) -> None:
    """Pixels, HOG, or an untrained backbone: the networks that `attar evaluate` takes, the seed is their number."""
    from attar.data.statistics import image_spec
    from attar.evaluation.controls import random_init
    from attar.evaluation.evaluation import prepare
    from attar.evaluation.subject import Subject, Task
    from attar.models.backbones import build_backbone
    from attar.train.distributed import choose_device

    plan = bench.plan
    name = entry.backbone if entry.name == UNTRAINED else entry.name
    image = image_spec(bench.train, plan.image_size)
    model = build_backbone(name, channels=image.channels, image_size=image.size, stem=plan.stem_for(name))
    entry.conditions = {key: bench.conditions[key] for key in ("device", "torch", "attar")}
    if entry.name != UNTRAINED:
        return _measure(entry, model, image, PROTOCOLS, bench)
    fitted, measured, classes = prepare(bench.train, bench.held_out, seed=0)
    task = Task(fitted, measured, classes, 0, choose_device(bench.device), "auto", 256, False)
    *_, chosen = random_init(Subject("model", model, image, task), entry.seed + 1)  # all by one choice for batch norm
    more = (FINETUNE,) if bench.finetunes(entry) else ()
    return _measure(entry, chosen.backbone, image, (*PROTOCOLS, *more), bench)


def _measure(
    entry: Entry, model: Any, image: Any, protocols: Sequence[str], bench: _Bench, *, classifier: Any = None
) -> None:
    from attar.evaluation.evaluation import evaluate

    found = evaluate(
        model,
        image,
        bench.train,
        bench.held_out,
        protocols=protocols,
        controls=(),
        classifier=classifier,
        device=bench.device,
        progress=False,
    )
    for row in found.rows:
        if row["metric"] == "top1":
            several = row["protocol"] == "low_label"
            key = f"low_label {row['settings']['variant']}" if several else row["protocol"]
            entry.values[key] = (row["value"], row["low"], row["high"])
    entry.rank = found.details["feature_rank"]


def _write(board: Leaderboard, out: Path) -> None:
    write_atomically(out / "leaderboard.json", json.dumps(board.to_json(), indent=1))
    write_atomically(out / "leaderboard.md", board.text() + "\n")
    plot(board, out / "leaderboard.png")
