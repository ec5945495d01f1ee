"""What each of several runs reaches, over its size and its latency: the curve a person chooses from.

Runs are compared by one measurement, that of the verdict of the page's subject, on the same images. The latency in
PyTorch is measured while the report is written, one network after another on this machine; that of ONNX Runtime is the
exports'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attar.errors import CheckpointError
from attar.reporting.plots import Line, line_plot

if TYPE_CHECKING:
    from attar.reporting.page import RunContent

COLOURS = 6


@dataclass(frozen=True)
class Point:
    """One run. parameters in millions; milliseconds an image on one thread, exported None where it was not."""

    name: str
    value: float
    low: float
    high: float
    parameters: float
    milliseconds: float
    exported: float | None


def trade_off(runs: Sequence[RunContent], main: RunContent, *, value_name: str) -> dict[str, Any] | None:
    """Plots of value over size, over latency, and in words who is not beaten; None for fewer than two runs."""
    rows = {run.path: row for run in runs if (row := _comparable_row(run, main)) is not None}
    points = [_point(run, rows[run.path]) for run in runs if run.path in rows]
    if len(points) < 2:
        return None
    axes: dict[str, list[Any]] = {
        "parameters of the backbone, millions": [p.parameters for p in points],
        "milliseconds an image, PyTorch, one CPU thread": [p.milliseconds for p in points],
        "milliseconds an image, ONNX Runtime, one CPU thread": [p.exported for p in points],
    }
    plots = []
    for label, costs in axes.items():
        shown = [(p, cost) for p, cost in zip(points, costs) if cost is not None]
        if len(shown) > 1:
            plots.append(line_plot(_lines(shown), x_label=label, y_label=value_name, log_x=True))
    best = [p.name for p, _ in not_beaten([(p, p.parameters) for p in points])]
    words = f"By parameters, {', '.join(best)} {'is' if len(best) == 1 else 'are'} not beaten: no other run here is as "
    words += "small and as good. "
    left_out = [run.name for run in runs if run.path not in rows]
    if left_out:
        words += f"Left out: {', '.join(left_out)}, not measured so, or not on the same images."
    return {"plots": plots, "words": words}


def not_beaten(points: Sequence[tuple[Point, float]]) -> list[tuple[Point, float]]:
    """Those for which no other is at least as good at no higher cost, from the cheapest to the dearest."""
    kept: list[tuple[Point, float]] = []
    for point, cost in sorted(points, key=lambda item: (item[1], -item[0].value)):
        if not kept or point.value > kept[-1][0].value:
            kept.append((point, cost))
    return kept


def _lines(points: Sequence[tuple[Point, float]]) -> list[Line]:
    best = not_beaten(points)
    lines = [Line("not beaten", [cost for _, cost in best], [p.value for p, _ in best], kind=COLOURS - 1)]
    for number, (p, cost) in enumerate(points):
        lines.append(Line(p.name, [cost], [p.value], bars=[(p.low, p.high)], kind=number % (COLOURS - 1)))
    return lines


def _comparable_row(run: RunContent, main: RunContent) -> dict[str, Any] | None:
    """The row of this run that measures what the main run's verdict rests on, on the same images."""
    if not main.details or run.details.get("data") != main.details["data"]:
        return None
    wanted = {"protocol": main.details["protocol"], "metric": main.details["metric"], "subject": "model"}
    for row in run.evaluation["rows"]:
        if wanted.items() <= row.items() and row["settings"].get("variant", "") == main.details["variant"]:
            return row
    return None


def _point(run: RunContent, row: dict[str, Any]) -> Point:
    from attar.exporting import forward_latency
    from attar.models.saved import load_backbone

    try:
        backbone, image, _ = load_backbone(run.path)
    except CheckpointError as error:
        raise CheckpointError(f"report: {run.name}: {error}") from None
    exported = run.exports.get("onnx", {}).get("latency_ms", {}).get("ONNX Runtime", {}).get("1")
    return Point(
        name=run.name,
        value=row["value"],
        low=row["low"],
        high=row["high"],
        parameters=round(sum(p.numel() for p in backbone.parameters()) / 1e6, 4),
        milliseconds=forward_latency(backbone, image),
        exported=exported,
    )
