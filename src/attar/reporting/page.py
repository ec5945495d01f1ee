"""From run folders to one HTML page. Whatever a folder lacks is left out, with a line that says why."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import attar
from attar.errors import RunError
from attar.models.clusters import is_clusters
from attar.reporting.plots import Dot, Line, dot_plot, line_plot, smoothed
from attar.reporting.tradeoff import trade_off
from attar.train.log import read_json_lines
from attar.train.run import RunFolder, write_atomically

NAMES = {
    "model": "this model",
    "teacher": "teacher",
    "random_init": "untrained twin",
    "pixels": "raw pixels",
    "hog": "HOG",
    "pretrained": "ImageNet twin",
}
COLOURS_OF = {"model": 0, "teacher": 1, "pixels": 2, "hog": 3, "pretrained": 4, "random_init": 5}  # in every plot
METRICS = {
    "top1": "top-1 accuracy",
    "roc_auc": "ROC-AUC",
    "balanced_accuracy": "balanced accuracy",
    "nll": "negative log-likelihood, lower is better",
    "ece": "calibration error (ECE), lower is better",
    "agreement": "same class as the teacher",
}
PROTOCOLS = {
    "knn": "k nearest neighbours",
    "linear": "linear probe",
    "mlp": "non-linear probe",
    "finetune": "fine-tuning",
    "low_label": "few labels",
    "few_shot": "few shots",
    "layers": "linear probe of layer",
    "classifier": "its own classifier",
    "exits": "its early exits",
    "retrieval": "retrieval",
}
QUERIES, NEIGHBOURS = 8, 6
MOST_POINTS = 400  # of a curve


@dataclass
class RunContent:
    """What one run folder holds; missing parts are empty."""

    name: str
    path: Path
    recipe: dict[str, Any]
    metrics: list[dict[str, Any]]
    health: list[dict[str, Any]]
    fit: dict[str, Any]
    evaluation: dict[str, Any]
    details: dict[str, Any]
    exports: dict[str, Any]
    broken: list[dict[str, Any]]
    backbone: dict[str, Any]
    parts: dict[str, list[dict[str, Any]]]  # rows of networks kept in it, as RUN/teacher, measured on the same data

    @classmethod
    def read(cls, path: Path) -> RunContent:
        run = RunFolder.open(path)
        details = run.read_json("evaluation_details.json") or {}
        return cls(
            name=path.absolute().name,
            path=path,
            recipe=run.read_recipe(),
            metrics=read_json_lines(run / "metrics.jsonl"),
            health=read_json_lines(run / "health.jsonl"),
            fit=run.read_json("fit.json") or {},
            evaluation=run.read_json("evaluation.json") or {},
            details=details,
            exports=run.read_json("export.json") or {},
            broken=run.read_json("broken.json") or [],
            backbone=run.read_json("backbone.json") or {},
            parts=_parts_of(path, details.get("data")),
        )


def _parts_of(path: Path, data: Any) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for folder in sorted(file.parent for file in path.glob("*/backbone.json")):
        part = RunFolder(folder)
        details, evaluation = part.read_json("evaluation_details.json"), part.read_json("evaluation.json")
        if not (details and evaluation and part.is_part):
            continue
        data = data or details.get("data")  # of a run that was not evaluated: what the first part was measured on
        if details.get("data") == data:
            found[folder.name] = [row for row in evaluation["rows"] if row["subject"] == "model"]
    return found


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """One self-contained page about these runs; its subject is the first that was evaluated. Folders of clusters too.

    Raises:
        RunError: nothing was given, or a folder is neither a run nor clusters.
    """
    import jinja2

    if not runs:
        raise RunError("report: give at least one run folder, or clusters that attar cluster made.")
    folders = [Path(run) for run in runs]
    for folder in folders:
        if is_clusters(folder) and not (folder / "gallery.npz").is_file():
            raise RunError(f"{folder} holds clusters without pictures; attar cluster makes them with pictures.")
    contents = [RunContent.read(folder) for folder in folders if not is_clusters(folder)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("template.html").render(
        **(_about(contents) if contents else {"title": "Clusters", "main": None, "runs": []}),
        clusters=[
            (folder.name, found)
            for folder in folders
            if (found := clusters_of(folder if is_clusters(folder) else folder / "clusters"))
        ],
        version=attar.__version__,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return out


def _about(contents: list[RunContent]) -> dict[str, Any]:
    """What the page says of runs; the first that was evaluated is its subject, else the first."""
    main = next((run for run in contents if run.evaluation), contents[0])
    return {
        "title": f"{main.name}: {main.recipe['method']}, {main.recipe['backbone']['name']}",
        "runs": contents,
        "main": main,
        "verdict": verdict_of(main),
        "figures": key_figures(main),
        "controls": control_plots(main),
        "low_labels": low_label_plot(main),
        "layers": layers_plot(main),
        "exits": exits_plot(main),
        "parts": parts_of(main),
        "trade_off": trade_off_of(contents, main),
        "curves": curve_plots(contents),
        "health": health_of(main),
        "views": image_uri(main.path / "views.png"),
        "attention": image_uri(main.path / "attention.png"),
        "answers": [(run.name, uri) for run in contents if (uri := image_uri(run.path / "answers.png"))],
        "gallery": gallery_of(main.path / "gallery.npz"),
        "confusion": confusion_of(main.details),
        "lineage": [lineage_of(run) for run in contents],
        "loading": loading_of(main),
    }


def verdict_of(run: RunContent) -> dict[str, Any] | None:
    """The words, and the value they rest on."""
    if not run.evaluation:
        return None
    headline, *rest = run.evaluation["verdict"].splitlines()
    word, colon, remainder = headline.partition(":")
    shout = word if colon and word.isupper() else ""
    tone = "" if shout == "ABOVE CHANCE" else "good" if "BETTER" in shout else "bad" if shout else ""
    found = {
        "shout": shout,
        "tone": tone,
        "headline": remainder.strip()[:1].upper() + remainder.strip()[1:] if shout else headline,
        "rest": rest,
    }
    wanted = {"subject": "model", "protocol": run.details.get("protocol"), "metric": run.details.get("metric")}
    for row in run.evaluation["rows"]:
        if wanted.items() <= row.items() and row["settings"].get("variant", "") == run.details.get("variant", ""):
            found |= {"value": row["value"], "low": row["low"], "high": row["high"]}
            found["what"] = _measured(row["metric"], row["protocol"], row["settings"].get("variant", ""))
            break
    return found


def key_figures(run: RunContent) -> list[tuple[str, str, str]]:
    """(value, what it is, detail)."""
    found = []
    onnx = run.exports.get("onnx", {})
    if onnx:
        found.append((f"{onnx['num_parameters'] / 1e6:.2f} M", "parameters", run.recipe["backbone"]["name"]))
        found.append((f"{onnx['bytes'] / 1e6:.1f} MB", "as ONNX", f"parity {max(onnx['parity'].values()):.0e}"))
        latency = onnx["latency_ms"].get("ONNX Runtime", {})
        if latency:
            found.append((f"{latency['1']:.1f} ms", "an image", "ONNX Runtime, one CPU thread"))
    measured_alike = [c for c in run.details.get("comparisons", []) if c.get("metric") == run.details.get("metric")]
    retention = [c for c in measured_alike if c["subject"] == "teacher"]
    same = [
        c
        for c in retention
        if c.get("protocol") == run.details.get("protocol") and c.get("variant") == run.details.get("variant")
    ]
    chance = run.details.get("chance", 0.0)
    for c in same or retention[:1]:
        how = (c.get("protocol"), c.get("variant"))
        untrained = [
            other["value"]
            for other in measured_alike
            if other["subject"] == "random_init" and (other.get("protocol"), other.get("variant")) == how
        ]
        if c["value"] > max([chance, *untrained]):  # a teacher below an untrained network has nothing to keep
            kept = (c["model_value"] - chance) / (c["value"] - chance)
            found.append((f"{100 * kept:.0f} %", "of the teacher", "what it has above chance"))
    data = run.recipe["data"]
    seen = "images, with labels" if data.get("labels_digest") else "images, no labels"
    found.append((f"{data['num_images']:,}", seen, pixels_of(run.recipe)))
    if run.fit:
        found.append(
            (_duration(run.fit["seconds"]), "of training", f"{run.fit['images_per_second']:.0f} images a second")
        )
    return found


def trade_off_of(runs: Sequence[RunContent], main: RunContent) -> dict[str, Any] | None:
    details = main.details
    if len(runs) < 2 or not details:
        return None
    value_name = _measured(details["metric"], details["protocol"], details["variant"])
    return trade_off(runs, main, value_name=value_name)


def control_plots(run: RunContent) -> list[tuple[str, str]]:
    """(title, plot) for each protocol and metric with one value a subject."""
    found = []
    rows = run.evaluation.get("rows", [])
    several = ("low_label", "few_shot", "layers", "exits")
    keys = dict.fromkeys((r["protocol"], r["metric"]) for r in rows if r["protocol"] not in several)
    for protocol, metric in keys:
        dots = [
            Dot(NAMES.get(r["subject"], r["subject"]), r["value"], r["low"], r["high"], _kind(r["subject"]))
            for r in rows
            if (r["protocol"], r["metric"]) == (protocol, metric)
        ]
        measured = METRICS.get(metric, metric)
        found.append((f"{PROTOCOLS.get(protocol, protocol)}, {measured}", dot_plot(dots, x_label=measured)))
    return found


def low_label_plot(run: RunContent) -> str:
    """Value over the share of labels, one line a subject, with intervals over the draws of the labels."""
    rows = [r for r in run.evaluation.get("rows", []) if r["protocol"] == "low_label"]
    if not rows:
        return ""
    metric = "roc_auc" if any(r["metric"] == "roc_auc" for r in rows) else "top1"
    lines = []
    for subject in dict.fromkeys(r["subject"] for r in rows):
        mine = sorted(
            (r for r in rows if r["subject"] == subject and r["metric"] == metric),
            key=lambda r: r["settings"]["fraction"],
        )
        x = [100 * r["settings"]["fraction"] for r in mine]
        bars = [(r["low"], r["high"]) for r in mine]
        lines.append(Line(NAMES[subject], x, [r["value"] for r in mine], bars=bars, kind=COLOURS_OF[subject]))
    return line_plot(lines, x_label="labels used, %", y_label=METRICS[metric], log_x=True)


def layers_plot(run: RunContent) -> str:
    """Value over the depth of the layer, one line a subject; handcrafted features, which have no depth, are level."""
    rows = [r for r in run.evaluation.get("rows", []) if r["protocol"] == "layers"]
    if not rows:
        return ""
    metric = run.details.get("metric") or rows[0]["metric"]
    rows = sorted((r for r in rows if r["metric"] == metric), key=lambda r: r["settings"]["depth"])
    names = [r["settings"]["variant"].split(",")[0] for r in rows if r["subject"] == "model"]
    lines = []
    for subject in dict.fromkeys(["model", *(r["subject"] for r in rows)]):
        mine = [r for r in rows if r["subject"] == subject]
        if subject in ("pixels", "hog"):
            x, y, bars = [1, len(names)], [mine[0]["value"]] * 2, None
        else:
            x, y = [r["settings"]["depth"] for r in mine], [r["value"] for r in mine]
            bars = [(r["low"], r["high"]) for r in mine]
        lines.append(Line(NAMES[subject], x, y, bars=bars, kind=COLOURS_OF[subject]))
    title = f"linear probe of each layer, {METRICS[metric]}"
    return line_plot(lines, x_label="layer, from the input to the output", y_label=title, names=names)


def exits_plot(run: RunContent) -> str:
    """Value over the work an image costs on the mean: one exit for all images, or each at the first that is sure."""
    rows = [r for r in run.evaluation.get("rows", []) if r["protocol"] == "exits"]
    if not rows:
        return ""
    metric = run.details.get("metric") or rows[0]["metric"]
    rows = sorted((r for r in rows if r["metric"] == metric), key=lambda r: r["settings"]["work"])
    lines = []
    for kind, (title, leaving) in enumerate((("the same exit for all images", False), ("the first sure exit", True))):
        mine = [r for r in rows if ("leave" in r["settings"]) == leaving]
        x, y = [100 * r["settings"]["share_of_work"] for r in mine], [r["value"] for r in mine]
        lines.append(Line(title, x, y, bars=[(r["low"], r["high"]) for r in mine], kind=kind))
    return line_plot(lines, x_label="work, % of the whole network", y_label=f"early exits, {METRICS[metric]}")


def parts_of(run: RunContent) -> dict[str, Any] | None:
    """The run's own values beside those of the networks kept in it: a row a measurement, a cell a network."""
    own = [row for row in run.evaluation.get("rows", []) if row["subject"] == "model"]
    networks = {run.name: own} | {f"{run.name}/{name}": rows for name, rows in run.parts.items()}
    table: dict[str, dict[str, str]] = {}
    for name, rows in networks.items():
        for row in rows:
            what = _measured(row["metric"], row["protocol"], row["settings"].get("variant", ""))
            table.setdefault(what, {})[name] = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    rows_of_parts = [
        (what, [cells.get(name, "–") for name in networks]) for what, cells in table.items() if set(cells) != {run.name}
    ]
    return {"names": list(networks), "rows": rows_of_parts} if rows_of_parts else None


def curve_plots(runs: Sequence[RunContent]) -> list[str]:
    """Loss, gradient, learning rate and speed of all runs, over the steps."""
    plots = []
    titles = {
        "loss": "loss",
        "gradient_norm": "norm of the gradient",
        "lr": "learning rate",
        "images_per_second": "images a second",
    }
    for key, title in titles.items():
        lines = []
        for kind, run in enumerate(runs):
            rows = [r for r in run.metrics if isinstance(r.get(key), (int, float))]
            if not rows:
                continue
            rows = rows[:: -(-len(rows) // MOST_POINTS)]
            values = [float(r[key]) for r in rows]
            smooth = smoothed(values, window=max(len(values) // 20, 1))
            lines.append(Line(run.name, [r["step"] for r in rows], smooth, None if key == "lr" else values, kind=kind))
        if lines:
            plots.append(line_plot(lines, x_label="step", y_label=title))
    return plots


def health_of(run: RunContent) -> dict[str, Any] | None:
    """Curves of the gauges and a reading in plain words."""
    rows = run.health
    if not rows:
        return None
    titles = {
        "embedding_std": "spread of the embedding (1 = all directions alike)",
        "rankme": "effective rank",
        "alignment": "distance of positive pairs",
        "uniformity": "uniformity (lower = more even)",
        "gradient_spike": "largest gradient over the median one (near 1 = smooth training)",
        "knn": "neighbours of the same label (kNN)",
    }
    plots = []
    for key, title in titles.items():
        mine = [r for r in rows if isinstance(r.get(key), (int, float))]
        if len(mine) > 1:
            plots.append(
                line_plot([Line(key, [r["step"] for r in mine], [r[key] for r in mine])], x_label="step", y_label=title)
            )
    last = [r for r in rows if "rankme" in r][-1:]
    reading = []
    for row in last:
        if row.get("collapsed"):
            reading.append("Collapsed: nearly all images have the same embedding. Do not use these weights.")
        else:
            reading.append(
                f"No collapse seen: the embedding uses about {row['rankme']:.0f} directions and is "
                f"{100 * row['embedding_std']:.0f} % as spread out as an even cloud."
            )
    knn = [r["knn"] for r in rows if "knn" in r]
    if len(knn) > 1:
        reading.append(
            f"Neighbours share a label in {100 * knn[0]:.0f} % of the cases after the first pass, "
            f"{100 * knn[-1]:.0f} % at the end."
        )
    return {"plots": plots, "reading": " ".join(reading)}


def gallery_of(path: Path) -> dict[str, Any] | None:
    """The sprite of thumbnails, the map's points, and neighbours of a few queries."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    thumbnails, labels = content["thumbnails"], content["labels"]
    classes = [str(c) for c in content["classes"]]
    features = content["features"].astype(np.float32)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    n = len(thumbnails)
    columns = int(np.ceil(np.sqrt(n)))
    similarity = features @ features.T
    np.fill_diagonal(similarity, -2)
    queries = np.linspace(0, n - 1, min(QUERIES, n)).astype(int)
    rows: list[dict[str, Any]] = []
    for q in queries:
        nearest = np.argsort(-similarity[q])[: min(NEIGHBOURS, n - 1)]
        same = [bool(labels[q] >= 0 and labels[q] == labels[j]) for j in nearest]
        rows.append({"query": int(q), "neighbours": [{"i": int(j), "same": s} for j, s in zip(nearest, same)]})
    name = lambda label: classes[label] if 0 <= label < len(classes) else str(label)  # noqa: E731
    labelled = bool((labels >= 0).any())
    agreement = np.mean([s["same"] for r in rows for s in r["neighbours"]]) if labelled and rows else None
    points = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "k": int(k),
            "t": (f"{name(k)} · " if k >= 0 else "") + Path(str(w)).name,
        }
        for (x, y), k, w in zip(content["coordinates"], labels, content["where"])
    ]
    legend = [{"k": int(k), "name": name(int(k))} for k in np.unique(labels) if k >= 0][:20]
    return {
        "sheet": _sheet(thumbnails, columns),
        "columns": columns,
        "rows": -(-n // columns),
        "queries": rows,
        "agreement": None if agreement is None else f"{100 * agreement:.0f} %",
        "labelled": labelled,
        "legend": legend,
        "points": points,
        "names": [p["t"] for p in points],
    }


def clusters_of(folder: Path) -> dict[str, Any] | None:
    """Sizes in words, and the images nearest to some centroids as one picture a cluster."""
    path = folder / "gallery.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
    made = json.loads((folder / "clusters.json").read_text())
    found = json.loads((folder / "labels.json").read_text())
    rows = []
    for i, (number, size, distance) in enumerate(zip(content["number"], content["size"], content["distance"])):
        text = f"{size:,} image{'s' if size > 1 else ''}, mean distance {distance:.2f}"
        if "share" in content:
            text += f"; {100 * content['share'][i]:.0f} % {content['name'][i]}"
        pictures = content["thumbnails"][content["of"] == i]
        rows.append({"number": int(number), "what": text, "picture": _sheet(pictures, len(pictures))})
    numbers, settings = made["numbers"], made["settings"]
    layer = "the features" if settings["layer"] == "features" else f"layer {settings['layer']}"
    words = (
        f"{found['num_clusters']:,} clusters by {layer} of {made['teacher']['name']}. Of {numbers['asked_for']:,} "
        f"asked for, empty: {numbers['empty']}; too small and dissolved: {numbers['dissolved']} "
        f"({numbers['images_of_dissolved']:,} images). Sizes here: {found['smallest']:,} to {found['largest']:,}, "
        f"median {found['median']:g}; as uneven as {found['effective']:g} clusters of one size."
    )
    if found["without_images"]:
        words += f" {found['without_images']:,} clusters have no image of this data set."
    return {"words": words, "rows": rows, "labelled": "share" in content}


def _sheet(thumbnails: np.ndarray, columns: int) -> str:
    """Thumbnails (n, S, S, 3) in rows, as the URI of one picture."""
    from PIL import Image

    n, side = thumbnails.shape[:2]
    sheet = np.zeros((-(-n // columns) * side, columns * side, 3), np.uint8)
    for i, picture in enumerate(thumbnails):
        top, left = i // columns * side, i % columns * side
        sheet[top : top + side, left : left + side] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=70)
    return _uri(buffer.getvalue(), "image/webp")


def confusion_of(details: dict[str, Any]) -> dict[str, Any] | None:
    """Counts and the share of each true class, for a shaded table."""
    counts, classes = details.get("confusion"), details.get("classes")
    if not counts or not classes or len(classes) > 30:
        return None
    rows = []
    for name, row in zip(classes, counts):
        total = max(sum(row), 1)
        rows.append({"name": name, "cells": [{"count": c, "share": round(c / total, 3)} for c in row]})
    return {"classes": classes, "rows": rows, "what": _how(details.get("protocol", ""), details.get("variant", ""))}


def pixels_of(recipe: dict[str, Any]) -> str:
    """The size of the images in training, and the one the finished network looks at where that is another."""
    trained, tested = recipe["image"]["size"], recipe.get("test_size")
    return f"{trained} pixels" + (f", then {tested}" if tested and tested != trained else "")


def lineage_of(run: RunContent) -> dict[str, Any]:
    recipe = run.recipe
    image, data = recipe["image"], recipe["data"]
    taught_with = f", shown images of {recipe['teacher_size']} pixels" if recipe.get("teacher_size") else ""
    facts = {
        "run": run.name,
        "method": f"{recipe['method']}, recipe {recipe['recipe']}",
        "network": f"{recipe['backbone']['name']}, {image['channels']} channels, {pixels_of(recipe)}",
        "data": f"{data['source']}: {data['num_images']:,} images, digest {data['digest'][:12]}",
        "teacher": recipe["teacher"]["name"] + taught_with if recipe.get("teacher") else "none",
        "first weights": recipe["init"]["name"] if recipe.get("init") else "drawn by the seed",
        "weights": run.backbone.get("sha256", "not finished")[:12],
        "seed": recipe["seed"],
        "started": recipe["started"],
        "command": recipe["command"],
        "versions": ", ".join(f"{k} {v}" for k, v in recipe["versions"].items()),
    }
    settings = {"peak_lr": recipe.get("peak_lr"), **recipe["settings"]}
    return {"facts": facts, "settings": {k: v for k, v in settings.items() if v not in (None, [])}}


def loading_of(run: RunContent) -> list[tuple[str, str]]:
    """(title, code)."""
    python = (
        f'import attar\n\nencode = attar.load("{run.path}")    '
        "# float pixels in [0, 1], (B, C, H, W) -> features (B, D)"
    )
    found = [("Python", python)]
    found += [(name.upper(), export["snippet"]) for name, export in run.exports.items() if export.get("snippet")]
    return found


def image_uri(path: Path) -> str | None:
    return _uri(path.read_bytes(), "image/png") if path.is_file() else None


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _how(protocol: str, variant: str) -> str:
    return f"{PROTOCOLS.get(protocol, protocol)} {variant}".strip()


def _measured(metric: str, protocol: str, variant: str) -> str:
    return f"{METRICS.get(metric, metric)}, {_how(protocol, variant)}"


def _kind(subject: str) -> str:
    return subject if subject in ("model", "teacher") else "control"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
