"""The verdict in words: is this better than what you had, by how much, how sure, what to try next. Worst news first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from attar.evaluation.intervals import next_draw_margin
from attar.evaluation.metrics import LOWER_IS_BETTER, NO_SHARES

COLLAPSED_STD = 0.02  # of normalised features, 1 for an isotropic cloud; pooled rectified features lie near 0.3
COLLAPSED_RANK = 1.5
WIDE = 0.05  # half an interval, in units of the metric, above which the test set is called small
WANTED = 0.02  # the half interval to aim at
RETAINED_WELL = 0.97
RETAINED_POORLY = 0.9

NAMES = {
    "random_init": "the same network at random initialisation",
    "pixels": "raw pixels",
    "hog": "HOG",
    "teacher": "the teacher",
    "pretrained": "the ImageNet-pretrained twin",
}
NO_WEIGHTS = "the model has no weights"  # why there is no random_init
NOT_PUBLISHED = "nobody publishes weights of this network"  # why there is no pretrained
_METRIC_NAMES = {
    "top1": "top-1",
    "roc_auc": "ROC-AUC",
    "balanced_accuracy": "balanced accuracy",
    "nll": "NLL (lower is better)",
    "ece": "ECE (lower is better)",
    "agreement": "agreement with the teacher",
}


def metric_name(metric: str) -> str:
    return _METRIC_NAMES.get(metric, metric)


@dataclass(frozen=True)
class Comparison:
    """The model against another subject, on the same test images (or seeds): model minus subject, with interval."""

    protocol: str
    variant: str
    metric: str
    subject: str
    model_value: float
    value: float
    low: float
    high: float
    networks: tuple[float, ...] = ()  # the subject's value by network, where it is the mean over several draws

    @property
    def difference(self) -> float:
        return self.model_value - self.value

    @property
    def outcome(self) -> str:
        """better, worse, or not distinguishable; of the model, at 95 %."""
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) != (self.metric in LOWER_IS_BETTER) else "worse"

    def to_json(self) -> dict[str, Any]:
        said = {**self.__dict__, "networks": list(self.networks)}
        return {**said, "difference": self.difference, "outcome": self.outcome}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All a verdict is made of. value, low, high: the model's, by the main protocol and metric."""

    protocol: str
    metric: str
    value: float
    low: float
    high: float
    chance: float
    num_test: int
    num_seeds: int = 1  # draws of the labelled images; above one, intervals are over these
    comparisons: list[Comparison] = field(default_factory=list)  # of the main protocol and metric only
    others: list[Comparison] = field(default_factory=list)  # with random initialisation, by all else that was measured
    feature_std: float | None = None
    feature_rank: float | None = None
    seen_in_pretraining: str = ""  # the test images: "with labels", "without labels", or not
    label_noise: str = ""  # of the labels that probes learned from
    omitted: dict[str, str] = field(default_factory=dict)

    @property
    def of_own_classifier(self) -> bool:
        """Measured without fitting anything, so that no control can be."""
        return self.protocol.startswith(("classifier", "exits"))

    @property
    def collapsed(self) -> bool:
        flat = self.feature_std is not None and self.feature_std < COLLAPSED_STD
        return flat or (self.feature_rank is not None and self.feature_rank < COLLAPSED_RANK)

    def against(self, subject: str) -> Comparison | None:
        return next((c for c in self.comparisons if c.subject == subject), None)

    @property
    def controls(self) -> list[Comparison]:
        """What the model must beat, the strongest first."""
        named = [c for c in self.comparisons if c.subject in ("random_init", "pixels", "hog")]
        return sorted(named, key=lambda c: -c.value)


def verdict(findings: Findings) -> str:
    """Plain lines: headline, value, comparisons, how sure, what to try next."""
    lines = [_headline(findings), _measured(findings)]
    lines += [_compared(findings, c) for c in findings.controls]
    lines += [line for line in (_of_teacher(findings), _of_pretrained(findings), _by_others(findings)) if line]
    lines.append(_how_sure(findings))
    if findings.omitted:
        lines.append("Not measured: " + "; ".join(f"{name} ({why})" for name, why in findings.omitted.items()) + ".")
    return "\n".join([*lines, *(f"Next: {step}" for step in _next_steps(findings))])


def _headline(f: Findings) -> str:
    random, pixels = f.against("random_init"), f.against("pixels")
    if f.collapsed:
        return "COLLAPSED: the features hardly differ between images. Do not use these weights."
    if random and random.outcome != "better":
        better = _joined(_better_than(f))
        if random.outcome == "worse":
            return f"NO GAIN: training has not helped. The model is worse than {better}."
        also = f", and is worse than {better}" if better else ""
        return f"NO GAIN: the model cannot be told from {NAMES['random_init']}{also}."
    if pixels and pixels.outcome != "better":
        verb = "is worse than" if pixels.outcome == "worse" else "cannot be told from"
        return f"NO GAIN: the model {verb} raw pixels."
    if not f.controls and f.of_own_classifier:
        return _headline_of_classifier(f)
    if not f.controls:
        return "NO CONTROLS: measured without anything to compare with, so nothing follows about whether it helped."
    best = f.controls[0]
    if best.outcome == "better":
        drawn = ", drawn once" if best is random and not best.networks else ""
        return f"BETTER: the model beats the best control, {NAMES[best.subject]}{drawn}, by {_difference(f, best)}."
    if best.outcome == "worse":
        return f"NOT ENOUGH: {NAMES[best.subject]} does better than the model, by {_points(f, -best.difference)}."
    return f"UNDECIDED: the model cannot be told from the best control, {NAMES[best.subject]}."


def _better_than(f: Findings) -> list[str]:
    """The controls that the model is worse than, random initialisation first."""
    worse = [c.subject for c in f.controls if c.outcome == "worse"]
    return [NAMES[subject] for subject in sorted(worse, key=lambda subject: subject != "random_init")]


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _headline_of_classifier(f: Findings) -> str:
    """Its controls have no classifier; it is told from chance alone."""
    if f.low <= f.chance:
        return "NO GAIN: its own classifier cannot be told from naming the most frequent class."
    return "ABOVE CHANCE: its own classifier names more than the most frequent class; linear tells it from controls."


def _measured(f: Findings) -> str:
    measured = (
        f"{f.protocol}, {metric_name(f.metric)}: {_value(f, f.value)} ({_value(f, f.low)} to {_value(f, f.high)})"
    )
    note = {
        "without labels": " Pretraining has seen these images, without labels.",
        "with labels": " It was trained on these images, or some of them, with labels; of others this says little.",
    }.get(f.seen_in_pretraining, "")
    wrong = f" Training labels were made wrong: {f.label_noise}." if f.label_noise else ""
    return f"{measured} on {f.num_test:,} test images; chance is {_value(f, f.chance)}.{note}{wrong}"


def _compared(f: Findings, c: Comparison) -> str:
    drawn = ""
    if c.networks:
        least, most = (_value(f, value) for value in (min(c.networks), max(c.networks)))
        drawn = f" (mean of {len(c.networks)}, {least} to {most})"
    return f"{_upper(NAMES[c.subject])}: {_value(f, c.value)}{drawn}; the model is {c.outcome}, {_difference(f, c)}."


def _of_teacher(f: Findings) -> str:
    teacher = f.against("teacher")
    if teacher is None:
        return ""
    told = _compared(f, teacher)
    kept = _retention(f)
    if _teaches_nothing(f):
        return f"{told} It is not above {NAMES['random_init']} itself, so it had nothing to teach."
    return told if kept is None else f"{told} It keeps {100 * kept:.0f} % of what the teacher gains over chance."


def _retention(f: Findings) -> float | None:
    """Share of the teacher's gain over chance; None where it is not clearly above chance, or has nothing to teach."""
    teacher = f.against("teacher")
    if teacher is None or teacher.value - f.chance < 0.02 or _teaches_nothing(f):
        return None
    return (f.value - f.chance) / (teacher.value - f.chance)


def _teaches_nothing(f: Findings) -> bool:
    """The student's network knows as much before it is taught."""
    teacher, random = f.against("teacher"), f.against("random_init")
    return teacher is not None and random is not None and teacher.value <= random.value


def _of_pretrained(f: Findings) -> str:
    twin = f.against("pretrained")
    return _compared(f, twin) if twin else ""


def _by_others(f: Findings) -> str:
    """Whether the other protocols, and other shares of the labels, say the same; all of this evaluation."""
    if not f.others:
        return ""
    said = "; ".join(f"{c.protocol} {c.variant}".strip() + f" {c.outcome}, {_difference(f, c)}" for c in f.others)
    return f"Against random initialisation, measured otherwise: {said}."


def _how_sure(f: Findings) -> str:
    half = (f.high - f.low) / 2
    random = f.against("random_init")
    if f.num_seeds > 1:
        drawn = f"over {f.num_seeds} draws of the labelled images"
        sure = f"How sure: ± {_points(f, half)} at 95 %, {drawn}; differences are paired by draw."
    else:
        sure = f"How sure: ± {_points(f, half)} at 95 %; differences are paired, on the same test images."
        if half > WIDE:
            needed = _round_up(f.num_test * (half / WANTED) ** 2)
            sure += f" That is wide: for ± {_points(f, WANTED)} about {needed:,} test images are needed."
    if random and random.networks:
        sure += (
            f" The difference to random initialisation allows for what the {len(random.networks)} of them differ by."
        )
    elif random:
        sure += " Only one random initialisation was drawn; how much such networks differ is not known."
    return sure


def _next_steps(f: Findings) -> list[str]:
    if f.collapsed:
        return ["lower the learning rate, or take another method; health.jsonl shows when it happened."]
    random, pixels = f.against("random_init"), f.against("pixels")
    steps = []
    if f.omitted.get("random_init") == NO_WEIGHTS:
        steps.append("these features are not learnt: train a network on your images (attar pretrain), and compare it.")
    elif random and random.outcome != "better":
        step = "train longer and look at views.png: what the network is shown must hold what your labels depend on."
        if _teaches_nothing(f):
            step = "take a better teacher: measure it with attar evaluate before you distil."
        if f.omitted.get("pretrained") != NOT_PUBLISHED:
            step += " If the images are few, start from published weights (--pretrained)."
        steps.append(step)
    elif pixels and pixels.outcome != "better":
        steps.append(
            "the augmentations may remove what the labels depend on (colour, position, scale): weaken them, "
            "e.g. larger crops, or less jitter where there is any."
        )
    elif f.controls and f.controls[0].outcome == "worse":
        steps.append("train longer, or with larger images.")
    steps += _more_images(f)
    kept, teacher, twin = _retention(f), f.against("teacher"), f.against("pretrained")
    if twin and twin.outcome == "worse":
        steps.append("the pretrained twin is better: start from it (--pretrained), or distil from it as the teacher.")
    if kept is not None and teacher and teacher.outcome == "worse" and kept < RETAINED_POORLY:
        steps.append("distil longer, or take a larger student: much of the teacher is not yet transferred.")
    elif kept is not None and kept >= RETAINED_WELL and not steps:
        steps.append("little is left to gain from this teacher; a still smaller student may do, or a better teacher.")
    if not steps and not f.controls:
        steps.append(
            "measure its features too (--protocol linear), for which there are controls."
            if f.of_own_classifier
            else "measure again with the controls."
        )
    return steps or ["fine-tune on your labels (--protocol finetune) to see what is left, then attar export."]


def _more_images(f: Findings) -> list[str]:
    """How many test images would settle what is undecided, if the difference stays what it is."""
    if not f.controls or f.controls[0].outcome != "not distinguishable":
        return []
    best = f.controls[0]
    apart = max(best.networks) - min(best.networks) if best.networks else 0.0
    if apart > 0 and next_draw_margin(best.networks) >= abs(best.difference):
        luck = _points(f, apart)
        return [f"untrained networks alone lie {luck} apart: train with other seeds too, to tell the gain from luck."]
    if f.num_seeds > 1:
        return [f"more draws (num_seeds) would tell whether it differs from {NAMES[best.subject]}."]
    half = (best.high - best.low) / 2
    if abs(best.difference) <= half / 10:
        return [f"only a much larger, or harder, test set could tell the model from {NAMES[best.subject]}."]
    needed = _round_up(f.num_test * (half / abs(best.difference)) ** 2)
    return [f"about {needed:,} test images would settle whether it differs from {NAMES[best.subject]}."]


def _round_up(number: float) -> int:
    """To two significant digits."""
    unit = 10 ** max(math.floor(math.log10(max(number, 1))) - 1, 0)
    return math.ceil(round(number / unit, 6)) * unit


def _value(f: Findings, value: float) -> str:
    return f"{value:.3f}" if f.metric in NO_SHARES else f"{100 * value:.1f} %"


def _points(f: Findings, value: float) -> str:
    return f"{value:.3f}" if f.metric in NO_SHARES else f"{100 * value:.1f} points"


def _signed(f: Findings, value: float) -> str:
    return f"{value:+.3f}" if f.metric in NO_SHARES else f"{100 * value:+.1f}"


def _difference(f: Findings, c: Comparison) -> str:
    f = replace(f, metric=c.metric)
    unit = "" if f.metric in NO_SHARES else " points"
    return f"{_signed(f, c.difference)}{unit} ({_signed(f, c.low)} to {_signed(f, c.high)})"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
