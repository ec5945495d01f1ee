"""What `attar leaderboard` found, for people: a table, what must be said below it, and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from attar.errors import RunError

UNTRAINED = "random initialisation"
CONTROL, UPPER_LINE = "control", "upper line"  # kinds of entries besides the families of methods
COLUMNS = {"knn": "kNN", "linear": "linear", "low_label 1 %": "1 % labels", "low_label 10 %": "10 % labels"}
SOME_HAVE = {"finetune": "fine-tuned", "classifier": "own classifier"}  # columns that are there if an entry has them
# kNN, CIFAR-10, ResNet-18, 200 epochs: docs/source/getting_started/benchmarks.rst of lightly. Its best epoch; at batch
# 512 or 128, whichever did better (BYOL: at 512).
PUBLISHED = {"simclr": 84.8, "moco": 84.7, "byol": 86.8, "swav": 84.2, "barlow_twins": 84.2, "simsiam": 81.9}
PUBLISHED_SIZE = "gpu"  # the size with those images, network and epochs


@dataclass
class Entry:
    """One line: a method, the upper line or a control, trained (or not) with one seed.

    values: top-1 by protocol, each (value, low, high) in [0, 1]. rank: RankMe of the training features. conditions:
    device, torch and attar, of a training also precision and compile; empty in folders of earlier versions.
    """

    name: str
    kind: str  # the family of a method, or CONTROL, or UPPER_LINE
    backbone: str
    seed: int
    values: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    rank: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None  # bytes
    failure: str | None = None
    conditions: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Entry:
        """Raises RunError: keys that this version does not know, or without those that every entry has."""
        optional = [f.name for f in fields(cls) if (f.default, f.default_factory) != (MISSING, MISSING)]
        needed = [f.name for f in fields(cls) if f.name not in optional]
        wrong = [f"unknown key {key!r}" for key in found if key not in (*needed, *optional)]
        wrong += [f"no {key!r}" for key in needed if key not in found]
        if wrong:
            raise RunError(
                f"no entry of a leaderboard: {', '.join(wrong)}; accepted are {', '.join(needed)} and, where "
                f"known, {', '.join(optional)}."
            )
        values = {protocol: tuple(interval) for protocol, interval in found.get("values", {}).items()}
        return cls(**{**found, "values": values})

    @property
    def is_method(self) -> bool:
        return self.kind not in (CONTROL, UPPER_LINE)

    @property
    def title(self) -> str:
        backbone = f" {self.backbone}" if self.name == UNTRAINED else ""
        return f"{self.name}{backbone}, seed {self.seed}"


@dataclass
class Leaderboard:
    """All entries, and where they lie (out; None: nothing is said of it).

    notes: by method, what a person has to say of it (notes.json of the folder).
    """

    size: str
    data: str
    out: Path | None = None
    entries: list[Entry] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        entries = [asdict(entry) for entry in self.entries]
        return {"size": self.size, "data": self.data, "entries": entries, "notes": self.notes}

    @classmethod
    def from_json(cls, found: dict[str, Any], out: Path | None = None) -> Leaderboard:
        """The board of a leaderboard.json, to write its page again."""
        entries = [Entry.from_json(entry) for entry in found["entries"]]
        return cls(found["size"], found["data"], out, entries, found.get("notes", {}))

    def lines(self) -> dict[tuple[str, str], list[Entry]]:
        """(name, backbone) -> its seeds; methods by kNN, best first, then the upper line, then the controls."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault((entry.name, entry.backbone), []).append(entry)
        kinds = (UPPER_LINE, CONTROL)

        def place(entries: list[Entry]) -> tuple[int, bool, float]:
            kind, knn = entries[0].kind, mean_of(entries, "knn")
            return kinds.index(kind) + 1 if kind in kinds else 0, knn == 0, -knn

        return dict(sorted(groups.items(), key=lambda item: place(item[1])))

    def table(self) -> str:
        """Markdown: top-1 in percent, mean and, over several seeds, standard deviation."""
        columns = COLUMNS | {
            key: title for key, title in SOME_HAVE.items() if any(key in e.values for e in self.entries)
        }
        published = ["lightly's kNN"] if self.size == PUBLISHED_SIZE else []
        head = ["", "family", "backbone", *columns.values(), *published]
        head += ["better than untrained", "rank", "images/s", "memory, MB"]
        rows = [head, ["---"] * len(head)]
        for (name, backbone), entries in self.lines().items():
            first = entries[0]
            shown = name if first.is_method else f"*{name}*"
            if all(entry.failure is not None for entry in entries):
                rows.append([shown, first.kind, backbone, "failed, see below", *[""] * (len(head) - 4)])
                continue
            cells = [_spread([100 * e.values[c][0] for e in entries if c in e.values]) for c in columns]
            if published:
                cells.append(str(PUBLISHED.get(name, "–")))
            speed = _spread([e.images_per_second for e in entries if e.images_per_second], digits=0)
            memory = _spread([e.peak_memory / 1e6 for e in entries if e.peak_memory], digits=0)
            rank = _spread([e.rank for e in entries if e.rank is not None])
            rows.append([shown, first.kind, backbone, *cells, self.better(entries), rank, speed, memory])
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def better(self, entries: Sequence[Entry]) -> str:
        """The protocols by which a method's mean is above that of its untrained backbone, see `_is_above`."""
        if not entries[0].is_method:
            return ""
        untrained = self.untrained(entries)
        if not untrained:
            return "?"
        titles = COLUMNS | SOME_HAVE
        above = [titles[p] for p in ("knn", "linear", "finetune") if _is_above(entries, untrained, p)]
        return ", ".join(above) or "no"

    def untrained(self, entries: Sequence[Entry]) -> list[Entry]:
        """What was measured of the untrained networks of a line's backbone."""
        same = [e for e in self.entries if e.name == UNTRAINED and e.backbone == entries[0].backbone]
        return [e for e in same if e.failure is None]

    def text(self) -> str:
        place = [f"in {self.out}"] if self.out else []
        return "\n\n".join([f"Leaderboard, size {self.size}, {self.data}", self.table(), *self._below(), *place])

    def _below(self) -> list[str]:
        """What must be said of the table, as paragraphs."""
        paragraphs = [
            "Better than untrained: the 95 % interval of the difference lies above zero. It holds the draw of the test "
            "images and the spread of networks, untrained ones and seeds of a method; a single training is taken to "
            "vary as the untrained networks do. Where there is one of each, as of most that are fine-tuned, it is the "
            "draw of the images alone."
        ]
        if any(e.kind == UPPER_LINE for e in self.entries):
            paragraphs.append("supervised, the upper line: the same images, epochs and batch, with all labels.")
        paragraphs += self._not_better()
        failed = [f"- {e.title}: {e.failure}" for e in self.entries if e.failure is not None]
        if failed:
            paragraphs.append("Failed, and in no mean:\n" + "\n".join(failed))
        if self.size == PUBLISHED_SIZE:
            paragraphs.append(
                "lightly's kNN: its published table of CIFAR-10, ResNet-18, 200 epochs, the best epoch (ours: the "
                "last), at a batch of 512 or 128, whichever did better. It is no yardstick for other images, or for "
                "another number of epochs."
            )
        return paragraphs + _conditions([e for e in self.entries if e.failure is None])

    def _not_better(self) -> list[str]:
        listed = []
        for (name, _), entries in self.lines().items():
            if self.better(entries) == "no" and any(e.failure is None for e in entries):
                listed.append(f"- {name}: {self.notes.get(name, 'nothing was tried')}")
        if not listed:
            return []
        source = f" (from {self.out / 'notes.json'})" if self.out else ""
        return ["\n".join([f"Not above their untrained network, and what was tried{source}:", *listed])]


def mean_of(entries: Sequence[Entry], protocol: str) -> float:
    values = [e.values[protocol][0] for e in entries if protocol in e.values]
    return statistics.mean(values) if values else 0.0


def _is_above(method: Sequence[Entry], untrained: Sequence[Entry], protocol: str) -> bool:
    """Does the 95 % interval of the difference of the two means lie above zero?

    It holds two doubts: the draw of the test images (as wide as those of the seeds: all are measured on the same ones)
    and, as soon as a side has two networks, that of the networks: Student's t on the standard deviation pooled over
    both sides, so that a side with a single one does not pass for certain.
    """
    from scipy.stats import t

    sides = [
        [e.values[protocol] for e in entries if e.failure is None and protocol in e.values]
        for entries in (method, untrained)
    ]
    if not all(sides):
        return False
    means = [statistics.mean(value for value, _, _ in side) for side in sides]
    freedom = sum(map(len, sides)) - 2
    squares = sum((value - mean) ** 2 for side, mean in zip(sides, means) for value, _, _ in side)
    below = statistics.mean(value - low for value, low, _ in sides[0])
    above = statistics.mean(high - value for value, _, high in sides[1])
    spread = squares * sum(1 / len(side) for side in sides)
    networks = t.ppf(0.975, freedom) * math.sqrt(spread / freedom) if freedom else 0.0
    return bool(means[0] - means[1] > math.hypot(below, above, networks))


def then(before: Any, now: Any) -> Any:
    """A condition of a training that went on under another one: both, in order."""
    old, new = _in_words(before), _in_words(now)
    if before == now or old.endswith(f", then {new}"):
        return before
    return f"{old}, then {new}"


def _conditions(entries: Sequence[Entry]) -> list[str]:
    """On what and with what: once where all agree, by entry where they differ."""
    same, differing = [], []
    for key in dict.fromkeys(key for e in entries for key in e.conditions):
        found: dict[str, list[str]] = {}
        for e in entries:
            if key in e.conditions:
                found.setdefault(_in_words(e.conditions[key]), []).append(e.title)
        if len(found) == 1:
            same.append(f"{key} {next(iter(found))}")
        else:
            most = max(found.values(), key=len)
            many = len(most) > 4 and all(e.conditions for e in entries)
            shown = {v: "all others" if t is most and many else "; ".join(t) for v, t in found.items()}
            differing += [f"- {key} {value}: {titles}" for value, titles in shown.items()]
    paragraphs = [f"Conditions: {'; '.join(same)}."] if same else []
    if differing:
        head = "Conditions differ, so images/s and memory compare only between entries of the same ones:"
        paragraphs.append("\n".join([head, *differing]))
    unknown = [e.title for e in entries if not e.conditions]
    if unknown and len(unknown) < len(entries):
        paragraphs.append(f"Conditions not recorded: {'; '.join(unknown)}.")
    return paragraphs


def _in_words(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def plot(board: Leaderboard, path: Path) -> None:
    """kNN, linear and any fine-tuned top-1 with intervals, methods above, upper line and controls below a rule.

    A hollow mark is a method's that was compared with its untrained network by that protocol and is not above it.
    """
    from matplotlib.figure import Figure

    lines = {key: entries for key, entries in board.lines().items() if any(e.failure is None for e in entries)}
    figure = Figure(figsize=(8, 1.4 + 0.28 * max(len(lines), 6)), layout="constrained")
    axes = figure.add_subplot()
    marks = {"knn": ("o", "#2b6cb0"), "linear": ("D", "#c05621"), "finetune": ("^", "#2f855a")}
    better = [board.better(entries) for entries in lines.values()]
    in_legend: dict[str, Any] = {}
    hollow = "not above its untrained network"
    for protocol, (marker, colour) in marks.items():
        title = (COLUMNS | SOME_HAVE)[protocol]
        for row, entries in enumerate(lines.values()):
            measured = [e.values[protocol] for e in entries if protocol in e.values]
            if not measured:
                continue
            value, low, high = (100 * statistics.mean(numbers) for numbers in zip(*measured))
            if title not in in_legend:
                (in_legend[title],) = axes.plot([], [], marker, color=colour)  # filled, whatever the marks are
            axes.plot([low, high], [row, row], color=colour, linewidth=0.8, alpha=0.6)
            compared = entries[0].is_method and any(protocol in e.values for e in board.untrained(entries))
            is_hollow = compared and title not in better[row].split(", ")
            (point,) = axes.plot([value], [row], marker, color=colour, markerfacecolor="white" if is_hollow else colour)
            if is_hollow:
                in_legend.setdefault(hollow, point)
    num_methods = sum(entries[0].is_method for entries in lines.values())
    axes.axhline(num_methods - 0.5, color="#718096", linewidth=0.8)
    named = [
        f"{'untrained' if name == UNTRAINED else name} ({backbone})".replace(" (–)", "") for name, backbone in lines
    ]
    axes.set_yticks(range(len(lines)), named, fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel("top-1, %, with the 95 % interval of the test images")
    axes.grid(axis="x", color="#e2e8f0", linewidth=0.6)
    axes.set_axisbelow(True)
    if hollow in in_legend:  # at the end
        in_legend[hollow] = in_legend.pop(hollow)
    figure.legend(in_legend.values(), in_legend.keys(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
