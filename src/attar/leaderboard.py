"""`attar leaderboard`: every self-supervised method at the same budget, on the same images, by the same yardstick.

Equal for all: images, number of passes over them, batch, backbone (methods of patch tokens take a small ViT and are
compared with that ViT untrained), evaluation, last epoch. Each training is a process of its own, so that its memory is
its own and one that fails leaves the others alone. What is done is not done again.
"""

from __future__ import annotations

import json
import logging
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.claims.images import train_and_test
from attar.errors import RecipeError, RunError, unknown_name
from attar.train.run import check_writable, write_atomically

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


SIZES = {
    # about 2 minutes a method on two cores, for a look; and about 15, to say something
    "quick": Size(
        images=5_000,
        test_images=2_000,
        image_size=32,
        backbone="resnet8",
        vit="vit_micro_p4",
        epochs=30,
        batch_size=128,
    ),
    "cpu": Size(
        images=10_000,
        test_images=2_000,
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
PROTOCOLS = ("knn", "linear", "low_label:0.01,0.1")
FINETUNE = "finetune:0.001,epochs=10"  # of AdamW
FINETUNED = ("masked",)  # families whose features are made to be fine-tuned: kNN and linear do them no justice
COLUMNS = {"knn": "kNN", "linear": "linear", "low_label 1 %": "1 % labels", "low_label 10 %": "10 % labels"}


@dataclass
class Entry:
    """One line: a method or a control, trained (or not) with one seed.

    values: top-1 by protocol, each (value, low, high) in [0, 1]. rank: RankMe of the training features.
    """

    name: str
    kind: str  # the family of a method, or "control"
    backbone: str
    seed: int
    values: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    rank: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None  # bytes
    failure: str | None = None


@dataclass
class Leaderboard:
    """All entries, and where they lie."""

    size: str
    data: str
    out: Path
    entries: list[Entry] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "data": self.data, "entries": [asdict(entry) for entry in self.entries]}

    def lines(self) -> dict[tuple[str, str], list[Entry]]:
        """(name, backbone) -> its seeds; methods by kNN, best first, then the controls."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault((entry.name, entry.backbone), []).append(entry)
        place = lambda item: (item[1][0].kind == "control", _mean(item[1], "knn") == 0, -_mean(item[1], "knn"))  # noqa: E731
        return dict(sorted(groups.items(), key=place))

    def table(self) -> str:
        """Markdown: top-1 in percent, mean and, over several seeds, standard deviation."""
        finetuned = any("finetune" in entry.values for entry in self.entries)
        columns = {**COLUMNS, **({"finetune": "fine-tuned"} if finetuned else {})}
        head = ["", "family", "backbone", *columns.values(), "better than untrained", "rank", "images/s", "memory, MB"]
        rows = [head, ["---"] * len(head)]
        for (name, backbone), entries in self.lines().items():
            first = entries[0]
            if all(entry.failure is not None for entry in entries):
                rows.append([name, first.kind, backbone, f"failed: {first.failure}", *[""] * (len(head) - 4)])
                continue
            cells = [_spread([100 * e.values[c][0] for e in entries if c in e.values]) for c in columns]
            speed = _spread([e.images_per_second for e in entries if e.images_per_second], digits=0)
            memory = _spread([e.peak_memory / 1e6 for e in entries if e.peak_memory], digits=0)
            rank = _spread([e.rank for e in entries if e.rank is not None])
            shown = name if first.kind != "control" else f"*{name}*"
            rows.append([shown, first.kind, backbone, *cells, self.better(entries), rank, speed, memory])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def better(self, entries: Sequence[Entry]) -> str:
        """The protocols by which a method is above its untrained backbone: the intervals do not touch, at any seed."""
        if entries[0].kind == "control":
            return ""
        untrained = next(
            (e for e in self.entries if e.name == "random initialisation" and e.backbone == entries[0].backbone), None
        )
        if untrained is None:
            return "?"
        above = [
            COLUMNS.get(protocol, "fine-tuned")
            for protocol in ("knn", "linear", "finetune")
            if all(
                protocol in e.values and protocol in untrained.values
                and e.values[protocol][1] > untrained.values[protocol][2]
                for e in entries if e.failure is None
            )
        ]  # fmt: skip
        return ", ".join(above) or "no"

    def text(self) -> str:
        return f"Leaderboard, size {self.size}, {self.data}\n\n{self.table()}\n\nin {self.out}"


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
) -> Leaderboard:
    """Train and measure what is missing, then write leaderboard.json, .md and .png into `out`.

    Args:
        data, test: labelled images to train on (labels only measure) and to measure on; without test, a fifth of data.
        methods: names; default: every method that needs no teacher.
        size: of SIZES. epochs: instead of the size's. seeds: trainings a method.
        out: default runs/leaderboard-SIZE-(digest of the data). A folder holds one leaderboard; methods may be added.

    Raises:
        RecipeError: an unknown size or method, a method that needs a teacher, data without labels.
        RunError: `out` holds a leaderboard of other images or of another budget.
    """
    from attar.methods import CATALOGUE

    if size not in SIZES:
        raise RecipeError(unknown_name("size", size, SIZES))
    for option, given in (("seeds", seeds), ("epochs", epochs)):
        if given is not None and given < 1:
            raise RecipeError(f"--{option} {given}: it must be 1 or more.")
    if methods is not None and not methods:
        raise RecipeError("--methods names none; leave it out for all that need no teacher.")
    for name in methods or ():
        if not _self_supervised(name):
            raise RecipeError(f"{name} needs a teacher or labels; the leaderboard compares methods that need neither.")
    chosen = list(methods or filter(_self_supervised, CATALOGUE))
    plan = SIZES[size] if epochs is None else replace(SIZES[size], epochs=epochs)
    train, held_out = train_and_test(data, test, plan.image_size, plan.images, plan.test_images)
    plan = replace(plan, batch_size=min(plan.batch_size, max(len(train) // 4, 2)))
    out = Path(out or f"runs/leaderboard-{size}-{train.digest[:8]}")
    _claim(out, plan, train, held_out)
    board = Leaderboard(size, f"{len(train)} images of {Path(str(data)).name}, {plan.epochs} epochs", out)
    for seed in range(seeds):
        for name in _controls(chosen, plan) if seed == 0 else ():
            make = partial(_control, name, plan, train, held_out, device)
            board.entries.append(_kept(out / "results" / f"{name}.json", make))
        for name in chosen:
            make = partial(_method, name, seed, plan, out, train, held_out, device)
            board.entries.append(_kept(out / "results" / f"{name}-{seed}.json", make))
            _write(board)
    return board


def _self_supervised(name: str) -> bool:
    from attar.methods.base import load

    method = load(name).METHOD
    return not method.needs_teacher and not method.needs_labels


def _claim(out: Path, plan: Size, train: Images, held_out: Images) -> None:
    """Write the images once, for the processes that train, and refuse a folder with another leaderboard."""
    plan_file = check_writable(out / "plan.json")
    wanted = {**asdict(plan), "train": train.digest, "test": held_out.digest}
    if plan_file.is_file() and (found := json.loads(plan_file.read_text())) != wanted:
        changed = [
            f"{key}: {found.get(key)!r} -> {value!r}" for key, value in wanted.items() if found.get(key) != value
        ]
        raise RunError(f"{out} holds another leaderboard ({'; '.join(changed)}); choose another --out.")
    if not plan_file.is_file():
        np.savez(out / "train.npz", images=_squares(train))  # no labels: a training has no use for them
        write_atomically(plan_file, json.dumps(wanted, indent=1))


def _squares(images: Images) -> np.ndarray:
    """The central squares of all images, uint8 (N, H, W, C)."""
    from attar.data.images import ImageSpec
    from attar.views.augmentation import CentreView

    zeros, ones = (0.0,) * images.channels, (1.0,) * images.channels
    view = CentreView(ImageSpec(size=images.canvas_size, channels=images.channels, mean=zeros, std=ones))
    parts = np.array_split(np.arange(len(images)), -(-len(images) // 512))
    squares = [(view(images.batch(part)) * 255).round().byte().permute(0, 2, 3, 1).numpy() for part in parts]
    return np.concatenate(squares)


def _kept(path: Path, make: Callable[[], Entry]) -> Entry:
    """The entry in this file, or a new one; a failure is tried again."""
    if path.is_file():
        entry = Entry(**json.loads(path.read_text()))
        if entry.failure is None:
            return entry
    entry = make()
    write_atomically(check_writable(path), json.dumps(asdict(entry), indent=1))
    return entry


def _method(name: str, seed: int, plan: Size, out: Path, train: Images, held_out: Images, device: str) -> Entry:
    from attar.methods import entry as catalogue_line
    from attar.methods.base import load
    from attar.models.saved import load_backbone

    tokens = load(name).METHOD.needs_tokens
    backbone = plan.backbone_for(name)
    entry = Entry(name, catalogue_line(name).family, load(name).METHOD.backbone_name(backbone), seed)
    logger.info("%s, seed %d", name, seed)
    run = out / name / f"seed{seed}"
    stem = "standard" if tokens else plan.stem
    options = {"method": name, "backbone": backbone, "stem": stem, "image-size": plan.image_size, "seed": seed}
    options |= {"epochs": plan.epochs, "batch-size": plan.batch_size, "device": device, "out": run}
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    command = [sys.executable, "-m", "attar", "pretrain", str(out / "train.npz"), *arguments, "--resume"]
    code, said = _wait_for(command)
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        entry.failure = said if code == 2 else f"ended by signal {-code}" if code < 0 else f"{said} (exit {code})"
        logger.error("%s failed: %s", name, entry.failure)
        return entry
    fit = json.loads((run / "fit.json").read_text())
    entry.images_per_second, entry.seconds = fit["images_per_second"], fit["seconds"]
    entry.peak_memory = fit["peak_memory"]
    model, image, _ = load_backbone(run)
    more = (FINETUNE,) if entry.kind in FINETUNED else ()
    return _measured(entry, model, image, (*PROTOCOLS, *more), train, held_out, device)


def _wait_for(command: list[str]) -> tuple[int, str]:
    """Exit code and last line of stderr. A stop is passed on, and waited for: the training saves before it ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.communicate()[1]
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return process.returncode, last.removeprefix("attar: ")[:300]


def _controls(methods: Sequence[str], plan: Size) -> list[str]:
    """Pixels, HOG, and each backbone that one of the methods trains."""
    from attar.methods.base import load

    backbones = (load(name).METHOD.backbone_name(plan.backbone_for(name)) for name in methods)
    return ["pixels", "hog", *dict.fromkeys(backbones)]


def _control(name: str, plan: Size, train: Images, held_out: Images, device: str) -> Entry:
    """Pixels, HOG, or an untrained backbone; its fine-tuning with all labels is the supervised upper line."""
    from attar.data.statistics import image_spec
    from attar.evaluation.controls import random_init
    from attar.evaluation.evaluation import prepare
    from attar.evaluation.subject import Subject, Task
    from attar.models.backbones import build_backbone
    from attar.train.distributed import choose_device

    image = image_spec(train, plan.image_size)
    stem = "standard" if name.startswith("vit_") else plan.stem
    model = build_backbone(name, channels=image.channels, image_size=image.size, stem=stem)
    if name in ("pixels", "hog"):
        return _measured(Entry(name, "control", "–", 0), model, image, PROTOCOLS, train, held_out, device)
    fitted, measured, classes = prepare(train, held_out, seed=0)
    task = Task(fitted, measured, classes, 0, choose_device(device), "auto", 256, False)
    chosen = random_init(Subject("model", model, image, task))
    entry = Entry("random initialisation", "control", name, 0)
    return _measured(entry, chosen.backbone, image, (*PROTOCOLS, FINETUNE), train, held_out, device)


def _measured(
    entry: Entry,
    model: Any,
    image: Any,
    protocols: Sequence[str],
    train: Images,
    held_out: Images,
    device: str,
) -> Entry:
    from attar.evaluation.evaluation import evaluate

    found = evaluate(model, image, train, held_out, protocols=protocols, controls=(), device=device, progress=False)
    for row in found.rows:
        if row["metric"] == "top1":
            several = row["protocol"] == "low_label"
            key = f"low_label {row['settings']['variant']}" if several else row["protocol"]
            entry.values[key] = (row["value"], row["low"], row["high"])
    entry.rank = found.details["feature_rank"]
    return entry


def _write(board: Leaderboard) -> None:
    write_atomically(board.out / "leaderboard.json", json.dumps(board.to_json(), indent=1))
    write_atomically(board.out / "leaderboard.md", board.text() + "\n")
    _plot(board, board.out / "leaderboard.png")


def _plot(board: Leaderboard, path: Path) -> None:
    """kNN and linear top-1 of every line, the controls as vertical rules."""
    from matplotlib.figure import Figure

    lines = {key: entries for key, entries in board.lines().items() if any(e.failure is None for e in entries)}
    methods = {key: entries for key, entries in lines.items() if entries[0].kind != "control"}
    figure = Figure(figsize=(8, 2.4 + 0.28 * len(methods)), layout="constrained")
    axes = figure.add_subplot()
    heights = range(len(methods), 0, -1)
    for protocol, marker, colour in (("knn", "o", "#2b6cb0"), ("linear", "D", "#c05621")):
        values = [100 * _mean(entries, protocol) for entries in methods.values()]
        axes.plot(values, heights, marker, color=colour, label=COLUMNS[protocol])
    for (name, backbone), entries in lines.items():
        if entries[0].kind == "control":
            value = 100 * _mean(entries, "knn")
            axes.axvline(value, color="#718096", linewidth=0.8, linestyle=":")
            axes.text(
                value, len(methods) + 0.7, f"{name} {backbone}".strip(" –"), rotation=60, fontsize=7, color="#4a5568"
            )
    axes.set_yticks(list(heights), [f"{name} ({backbone})" for name, backbone in methods], fontsize=8)
    axes.set_ylim(0.4, len(methods) + 0.6)
    axes.set_xlabel("top-1, % (dotted: kNN of the controls)")
    axes.legend(loc="lower right", fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def _mean(entries: Sequence[Entry], protocol: str) -> float:
    values = [e.values[protocol][0] for e in entries if protocol in e.values]
    return statistics.mean(values) if values else 0.0


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
