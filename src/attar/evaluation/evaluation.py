"""`evaluate`: a backbone and labelled images in, rows with intervals, controls and a verdict out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from attar.data.images import Images, ImageSpec
from attar.data.label_noise import with_label_noise
from attar.data.splits import stratified_split
from attar.errors import DataError, RecipeError
from attar.evaluation.controls import Omitted, build_control, check_controls
from attar.evaluation.intervals import (
    at_least,
    bootstrap_interval,
    next_draw_margin,
    paired_interval,
    resampled,
    resampled_mean,
    resamples,
    seeds_interval,
)
from attar.evaluation.metrics import (
    FEW_CLASSES,
    LOWER_IS_BETTER,
    METRICS,
    NO_SHARES,
    chance,
    confusion,
    metrics_for,
)
from attar.evaluation.protocols import PROTOCOLS, check_label_noise, parse_protocol
from attar.evaluation.subject import Classifier, Outcome, Protocol, Subject, Task
from attar.evaluation.verdict import Comparison, Findings, metric_name, verdict

if TYPE_CHECKING:
    from rich.table import Table

TEST_FRACTION = 0.2
TELLING = (
    "linear",
    "finetune",
    "mlp",
    "knn",
    "low_label",
    "few_shot",
    "classifier",
    "exits",
    "layers",
    "retrieval",
)  # the first of these that was run gives the verdict
_ONE_GROUP = ("layers", "exits")  # of the table, with all their variants
HEALTH_ROWS = 1024


@dataclass
class Evaluation:
    """rows and verdict as in evaluation.json.

    details: what a report draws from, ready for JSON. The arrays are the model's by the protocol the verdict rests
    on: confusion (true class down, predicted across), and for each test image its id, label, predicted class and
    that class' probability; with at most 10 classes all probabilities (scores).
    Also `data`, what it was measured on: rows of the same data belong into one table.
    """

    rows: list[dict[str, Any]]
    verdict: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "verdict": self.verdict}

    def joined(self, earlier: Evaluation) -> Evaluation:
        """This table with the rows of an earlier one that it does not measure anew; of the same data.

        The verdict is that of the more telling protocol.
        """
        key = lambda row: (row["protocol"], row["settings"]["variant"], row["metric"], row["subject"])  # noqa: E731
        own = {key(row) for row in self.rows}
        kept = [row for row in earlier.rows if key(row) not in own]
        if not kept:
            return self
        verdict = min(self, earlier, key=lambda e: _telling(e.details["protocol"]))
        return Evaluation(kept + self.rows, verdict.verdict, verdict.details)

    def value(self, protocol: str, metric: str = "top1", subject: str = "model") -> float:
        """The first such value of the table."""
        wanted = {"protocol": protocol, "metric": metric, "subject": subject}
        for row in self.rows:
            if wanted.items() <= row.items():
                return float(row["value"])
        raise RecipeError(f"this evaluation has no row with protocol={protocol}, metric={metric}, subject={subject}.")

    def table(self) -> Table:
        """One line a subject, best first within each protocol and metric; for a terminal of 80 columns.

        The layers of all subjects are one group: which one, and whose, is best? So are exits, each with its
        share of the whole network's work.
        """
        from rich.table import Table

        table = Table("protocol", "metric", "subject", "value", "95 % interval", title=None)
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.rows:
            variant = "" if row["protocol"] in _ONE_GROUP else row["settings"]["variant"]
            label = f"{row['protocol']} {variant}".strip()
            groups.setdefault((label, row["metric"]), []).append(row)
        for (label, metric), rows in groups.items():
            best_first = 1 if metric in LOWER_IS_BETTER else -1
            for i, row in enumerate(sorted(rows, key=lambda r: best_first * r["value"])):
                first = (label, metric_name(metric)) if i == 0 else ("", "")
                style = "bold" if row["subject"] == "model" else None
                layer = row["settings"]["variant"] if row["protocol"] in _ONE_GROUP else ""
                share = row["settings"].get("share_of_work")
                name = f"{row['subject']} {layer}{'' if share is None else f', {100 * share:.0f} %'}".strip()
                table.add_row(*first, name, *_cell(row), style=style, end_section=i == len(rows) - 1)
        return table


def evaluate(
    backbone: nn.Module,
    image_spec: ImageSpec,
    train: Images,
    test: Images | None = None,
    *,
    protocols: Sequence[str | Protocol] = ("knn", "linear"),
    controls: Sequence[str] = ("random_init", "pixels", "hog", "pretrained"),
    teacher: tuple[nn.Module, ImageSpec] | None = None,
    classifier: Classifier | None = None,
    teacher_classifier: Classifier | None = None,
    exits: Mapping[str, tuple[nn.Module, Classifier]] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 256,
    num_resamples: int = 1000,
    num_untrained: int | None = None,
    label_noise: str | None = None,
    trained_on: str | None = None,
    trained_with_labels: bool = False,
    omitted: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measure a backbone beside its controls.

    Args:
        backbone: images (B, C, H, W), normalised as image_spec says, to features (B, D).
        train: labelled images; probes are fitted on them. Without `test`, a stratified fifth is set aside for testing.
        protocols: names with settings, e.g. "knn", "knn:200", "low_label:0.01,0.1", or Protocol objects.
        controls: of random_init, pixels, hog, pretrained. The last is left out where its weights are not at hand.
        teacher: another backbone with its own image_spec, measured alike.
        classifier, teacher_classifier: what these were trained with, for the protocol of that name.
        exits: early exits of the model by name, from the shallowest, for the protocol of that name.
        seed: of the split, the subsets, random_init and the resamples.
        num_untrained: networks of random_init (default 5); their values are averaged, and intervals are at least
            as wide as they differ. With 1 that is not known.
        label_noise: "symmetric:0.4", "asymmetric:0.4": what probes learn from is wrong for such a share of each class;
            what is measured on is never touched.
        omitted: what the caller could not bring, and why; the verdict names it.
        trained_on: digest of the images the backbone was trained on; if they are these, the table says so, and how:
            trained_with_labels or without.

    Raises:
        DataError: labels missing, a single class, a class in test that train lacks, too few images.
        RecipeError: an unknown protocol, setting or control.
    """
    from attar.train.distributed import choose_device

    chosen = [parse_protocol(p) for p in protocols]
    if not chosen:
        raise RecipeError(f"evaluate: no protocol was given; accepted: {', '.join(PROTOCOLS)}.")
    networks = check_controls(controls, num_untrained)
    check_label_noise(chosen, label_noise)
    seen = trained_on == (train if test is None else test).digest  # the images that are measured on
    train, test, classes = prepare(train, test, seed=seed)
    if label_noise is not None:
        train = with_label_noise(train, label_noise, seed=seed)
    task = Task(train, test, classes, seed, choose_device(device), precision, batch_size, progress)
    measured = _Measured(task, resamples(len(test), num_resamples=num_resamples, seed=seed))
    measured.omitted |= omitted or {}
    model = Subject("model", backbone, image_spec, task, classifier=classifier)
    model.exits = {
        name: Subject(name, network, image_spec, task, classifier=head)
        for name, (network, head) in (exits or {}).items()
    }
    if teacher is not None:
        model.teacher = Subject("teacher", *teacher, task, classifier=teacher_classifier)
    measured.add([model], chosen)
    health = _health(model)
    for control in controls:
        try:
            measured.add(build_control(control, model, num_untrained=networks), chosen)
        except Omitted as reason:
            measured.omitted[control] = str(reason)
    if model.teacher is not None:
        measured.add([model.teacher], chosen)
    how = "with labels" if trained_with_labels else "without labels"
    return _conclude(measured, health, how if seen else "", label_noise or "")


def prepare(train: Images, test: Images | None, *, seed: int) -> tuple[Images, Images, tuple[str, ...]]:
    """Labelled images only, split if need be, with labels 0 .. N-1 that mean the same class in both."""
    train = _labelled(train)
    if test is not None:
        test = _labelled(test)
    names = _names_of_labels(train)
    if len(names) < 2:
        raise DataError(f"evaluate: {train.name} holds a single class, {next(iter(names.values()))!r}; two are needed.")
    order = {name: number for number, name in enumerate(names.values())}
    train = _relabelled(train, order)
    if test is not None:
        return train, _relabelled(test, order, of=train.name), tuple(order)
    assert train.labels is not None
    counts = np.bincount(train.labels)
    if counts.min() < 2:
        rare = [name for name, count in zip(order, counts) if count < 2]
        raise DataError(
            f"evaluate: {train.name} holds a single image of {_listed(rare)}; to set a fifth aside for testing each "
            "class needs 2 or more. Leave these classes out, add images, or give test images of their own (--test)."
        )
    fitted, held_out = stratified_split(train.labels, TEST_FRACTION, seed)
    return train.subset(fitted), train.subset(held_out), tuple(order)


def _labelled(images: Images) -> Images:
    """Without the images whose label is unknown."""
    known = np.flatnonzero(images.labels >= 0) if images.labels is not None else np.empty(0, dtype=np.int64)
    if len(known) == 0:
        raise DataError(
            f'evaluate: {images.name} has no labels. Give labels="folder" if sub-folders are classes (--labels '
            "folder), or the name of a table's label column."
        )
    return images if len(known) == len(images) else images.subset(known)


def _names_of_labels(images: Images) -> dict[int, str]:
    """The labels that occur, and their names; the number itself where there is none."""
    assert images.labels is not None
    return {int(n): images.classes[n] if n < len(images.classes) else str(n) for n in np.unique(images.labels)}


def _relabelled(images: Images, order: dict[str, int], *, of: str = "") -> Images:
    assert images.labels is not None
    names = _names_of_labels(images)
    unseen = [name for name in names.values() if name not in order]
    if unseen:
        raise DataError(
            f"evaluate: {images.name} holds classes that {of} lacks: {_listed(unseen)}. {of} has {_listed(order)}. "
            "Name them alike, or leave them out of the test images."
        )
    table = np.full(max(names) + 1, -1, dtype=np.int64)
    for label, name in names.items():
        table[label] = order[name]
    return replace(images, labels=table[images.labels], classes=tuple(order))


def _listed(names: Sequence[str] | dict[str, int]) -> str:
    listed = [repr(name) for name in names]
    return ", ".join(listed[:10]) + (f", … ({len(listed)} in all)" if len(listed) > 10 else "")


@dataclass
class _Measured:
    """The growing table: rows, the model's resampled values to pair the controls with, and what was left out."""

    task: Task
    counts: np.ndarray
    rows: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    omitted: dict[str, str] = field(default_factory=dict)
    model_scores: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    telling_metric: dict[tuple[str, str], str] = field(default_factory=dict)
    _model: dict[tuple[str, str, str], _Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics, self.undefined = metrics_for(self.task.test_labels, self.task.num_classes)

    def add(self, subjects: Iterable[Subject], protocols: Sequence[Protocol]) -> None:
        """Measure one line of the table: a network, or several draws of it."""
        found: dict[tuple[int, str], dict[str, list[_Value]]] = {}
        for subject in subjects:
            for number, protocol in enumerate(protocols):
                reason = protocol.reason_to_skip(subject)
                if reason is not None:
                    if reason:
                        self.omitted[f"{protocol.name} of {subject.name}"] = reason
                    continue
                for outcome in protocol.run(subject):
                    given = protocol.given(without=protocol.bare if outcome.variant else "")
                    variant = ", ".join(filter(None, (outcome.variant, given)))
                    metrics = [*protocol.metrics(self.metrics), *outcome.by_image]
                    self.telling_metric.setdefault((protocol.name, variant), metrics[0])
                    if subject.name == "model":
                        self.model_scores[protocol.name, variant] = outcome.scores[0]
                    drawn = found.setdefault((number, variant), {})
                    for metric in metrics:
                        drawn.setdefault(metric, []).append(self._value(subject, outcome, metric))
        for (number, variant), by_metric in found.items():
            for metric, networks in by_metric.items():
                self._add_row(subject.name, (protocols[number].name, variant, metric), networks)

    def _value(self, subject: Subject, outcome: Outcome, metric: str) -> _Value:
        labels, settings = self.task.test_labels, outcome.settings | subject.settings
        if metric in outcome.by_image:
            values = outcome.by_image[metric]
            return _Value(np.array([values.mean()]), resampled_mean(values, self.counts), settings)
        seeds = np.array([METRICS[metric](scores, labels) for scores in outcome.scores])
        drawn = resampled(metric, outcome.scores[0], labels, self.counts) if len(seeds) == 1 else None
        return _Value(seeds, drawn, settings)

    def _add_row(self, subject: str, key: tuple[str, str, str], networks: list[_Value]) -> None:
        """The mean over networks; with several, at least as unsure as the next one would be."""
        protocol, variant, metric = key
        num_test = len(self.task.test)
        mean = _mean(networks)
        by_network = [float(network.seeds.mean()) for network in networks]
        value = float(np.mean(by_network))
        if mean.drawn is not None:
            interval = f"bootstrap, {self.counts.shape[1]} resamples"
            low, high = bootstrap_interval(mean.drawn, num_test=num_test)
        else:
            interval = f"t, {len(mean.seeds)} seeds"
            low, high = seeds_interval(mean.seeds)
        settings = mean.settings
        if len(networks) > 1:
            settings = settings | {"networks": by_network}
            interval += f"; at least that of t, {len(networks)} networks"
            low, high = at_least(value, low, high, next_draw_margin(by_network))
        settings = {
            "variant": variant,
            **settings,
            "seed": self.task.seed,
            "num_train": len(self.task.train),
            "num_test": num_test,
            "num_classes": self.task.num_classes,
            "interval": interval,
        }
        row = {"protocol": protocol, "metric": metric, "value": value}
        row |= {
            "low": max(low, 0.0),
            "high": high if metric == "nll" else min(high, 1.0),
            "settings": settings,
            "subject": subject,
        }
        self.rows.append(row)
        if subject == "model":
            self._model[key] = mean
        elif key in self._model:
            self._compare(subject, key, mean, by_network)

    def _compare(self, subject: str, key: tuple[str, str, str], theirs: _Value, by_network: list[float]) -> None:
        """theirs: the mean of the networks, whose own values are by_network."""
        own = self._model[key]
        if own.drawn is not None and theirs.drawn is not None:
            low, high = paired_interval(own.drawn, theirs.drawn, num_test=len(self.task.test))
        else:
            low, high = seeds_interval(own.seeds - theirs.seeds)
        ours, value = float(own.seeds.mean()), float(np.mean(by_network))
        networks: tuple[float, ...] = ()
        if len(by_network) > 1:
            networks = tuple(by_network)
            low, high = at_least(ours - value, low, high, next_draw_margin(by_network))
        self.comparisons.append(Comparison(*key, subject, ours, value, low, high, networks))


@dataclass(frozen=True)
class _Value:
    """A metric of one network, or the mean of several: by seed (S,), and with one seed on every resample (R,)."""

    seeds: np.ndarray
    drawn: np.ndarray | None
    settings: dict[str, Any]


def _mean(networks: Sequence[_Value]) -> _Value:
    """settings: those that all share."""
    first = networks[0]
    shared = {k: v for k, v in first.settings.items() if all(n.settings.get(k) == v for n in networks)}
    resampled_values = [n.drawn for n in networks if n.drawn is not None]
    drawn = np.mean(resampled_values, axis=0) if resampled_values else None
    return _Value(np.mean([n.seeds for n in networks], axis=0), drawn, shared)


def _telling(protocol: str) -> int:
    return TELLING.index(protocol) if protocol in TELLING else len(TELLING)


def _conclude(measured: _Measured, health: dict[str, float], seen: str, label_noise: str) -> Evaluation:
    task = measured.task
    keys = sorted(measured.model_scores, key=lambda k: _telling(k[0]))
    protocol, variant = keys[0]
    metric = measured.telling_metric[protocol, variant]
    own = next(
        row
        for row in measured.rows
        if row["subject"] == "model"
        and (row["protocol"], row["settings"]["variant"], row["metric"]) == (protocol, variant, metric)
    )
    for row in measured.rows:
        if seen and row["subject"] == "model":
            row["settings"]["seen_in_pretraining"] = seen
        if label_noise and PROTOCOLS[row["protocol"]].learns:
            row["settings"]["label_noise"] = label_noise
    comparisons = [c for c in measured.comparisons if (c.protocol, c.variant, c.metric) == (protocol, variant, metric)]
    said = {("low_label", c.difference, c.low, c.high) for c in comparisons}  # all labels: those of linear once more
    others = [
        c
        for c in measured.comparisons
        if c.subject == "random_init" and c.metric == measured.telling_metric[c.protocol, c.variant]
        if (c.protocol, c.variant) != (protocol, variant) and (c.protocol, c.difference, c.low, c.high) not in said
    ]
    findings = Findings(
        protocol=f"{protocol} {variant}".strip(),
        metric=metric,
        value=own["value"],
        low=own["low"],
        high=own["high"],
        chance=chance(metric, task.test_labels, task.num_classes),
        num_test=len(task.test),
        num_seeds=own["settings"].get("num_seeds", 1),
        comparisons=comparisons,
        others=others,
        seen_in_pretraining=seen,
        label_noise=label_noise if PROTOCOLS[protocol].learns else "",
        omitted=measured.omitted | measured.undefined,
        **health,
    )
    scores = measured.model_scores[protocol, variant]
    details = {
        "data": {
            "train": _digest(task.train, task.classes),
            "test": _digest(task.test, task.classes),
            "seed": task.seed,
        },
        "protocol": protocol,
        "variant": variant,
        "metric": metric,
        "chance": findings.chance,
        "classes": list(task.classes),
        "comparisons": [c.to_json() for c in measured.comparisons],
        "omitted": findings.omitted,
        **health,
        "confusion": confusion(scores, task.test_labels).tolist(),
        "test_index": task.test.index.tolist(),
        "test_labels": task.test_labels.tolist(),
        "predicted": scores.argmax(axis=1).tolist(),
        "probability": scores.max(axis=1).round(4).tolist(),
    }
    if task.num_classes <= FEW_CLASSES:
        details["scores"] = scores.round(6).tolist()
    return Evaluation(measured.rows, verdict(findings), details)


def _digest(images: Images, classes: Sequence[str]) -> str:
    """Of the images and what they are said to show."""
    assert images.labels is not None
    text = f"{images.digest} {list(classes)}".encode()
    return hashlib.sha256(text + images.labels.astype("<i8").tobytes()).hexdigest()


def _health(model: Subject) -> dict[str, float]:
    from attar.train.health import embedding_std, rankme

    values = model.train.values
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(values))[:HEALTH_ROWS]).to(values.device)
    return {"feature_std": embedding_std(values[rows]), "feature_rank": rankme(values[rows])}


def _cell(row: dict[str, Any]) -> tuple[str, str]:
    """Value and interval, in percent where the metric is an accuracy."""
    if row["metric"] in NO_SHARES:
        return f"{row['value']:.3f}", f"{row['low']:.3f}–{row['high']:.3f}"
    return f"{100 * row['value']:.1f}", f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"
