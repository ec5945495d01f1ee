"""`attar demo`: the whole road on 2,624 real images of solar cells (package elpv-dataset), in a few minutes.

Self-supervised teacher -> distilled small student -> evaluation with 1, 5, 10 and 100 % of the labels beside its
controls -> ONNX -> report. The question: does a cell have a defect? The trainings see no label and no test image.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar import stages
from attar.errors import MissingDependency

logger = logging.getLogger("attar")

# Pixels a side, of crops in training and of whole images afterwards. Crops show a cell's parts larger than whole images
# do, so both networks do better with larger images than they were trained with; and small crops are cheap.
TEACHER_CROPS, TEACHER_SIZE = 48, 112
STUDENT_CROPS, STUDENT_SIZE = 64, 80
# Read at all stages, by the largest value of each channel: cracks are small and dark areas local. On splits of the
# training cells that is worth 0.02 of ROC-AUC over the mean of the last map.
TEACHER = "stages_resnet18"
STUDENT = "stages_resnet8"
FRACTIONS = (0.01, 0.05, 0.1, 1.0)
TEACHER_SHARE = 0.65  # of the training time: on slow machines a student of 5 epochs lacks more than a teacher of 14
# For about 2,000 grey cells and some minutes: AdamW and small batches (more updates), larger crops and less jitter than
# for photographs, because dark areas and cracks are what matters. Chosen on a quarter of the training cells.
SETTINGS: dict[str, Any] = {
    "batch_size": 64,
    "optimiser": "adamw",
    "base_lr": 1e-3,
    "lr_scaling": "none",
    "weight_decay": 1e-4,
    "warmup_fraction": 0.1,
    "crop_scale": (0.3, 1.0),
}
TEACHER_SETTINGS = {**SETTINGS, "temperature": 0.2, "colour_strength": 0.25}
STUDENT_SETTINGS = {
    **SETTINGS,
    "base_lr": 6e-3,
    "colour_strength": 0.5,  # of jitter that is half as strong to begin with
}


@dataclass(frozen=True)
class DemoResult:
    """The verdict, the rows it rests on, and where everything lies."""

    verdict: str
    rows: list[dict[str, Any]]
    export: dict[str, Any]
    report: Path

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "rows": self.rows, "export": self.export, "report": str(self.report)}

    def text(self) -> str:
        return f"{low_label_table(self.rows)}\n\n{self.verdict}\n\nReport: {self.report.absolute()}"


def demo(out: str | Path = "runs/demo", *, minutes: float = 6.0, seed: int = 0, device: str = "auto") -> DemoResult:
    """Run all stages below `out` (resuming what was stopped) within about `minutes` of training.

    Raises:
        MissingDependency: without the packages of the `demo` extra.
    """
    for package in ("elpv_dataset", "onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"attar demo needs {package}; install it with: pip install 'attar[demo]'")
    from attar.data.load import load_images
    from attar.data.splits import stratified_split

    out = Path(out)
    cells = load_images("elpv", image_size=TEACHER_SIZE)
    assert cells.labels is not None
    train, test = (cells.subset(part) for part in stratified_split(cells.labels, 0.25, seed=seed))
    common: dict[str, Any] = {"seed": seed, "device": device, "resume": True}
    logger.info("1 of 5: a teacher (%s) by SimCLR, from %d images without labels", TEACHER, len(train))
    stages.pretrain(
        train,
        out=out / "teacher",
        method="simclr",
        backbone=TEACHER,
        image_size=TEACHER_CROPS,
        test_size=TEACHER_SIZE,
        settings=TEACHER_SETTINGS,
        minutes=minutes * TEACHER_SHARE,
        **common,
    ).or_stop()
    logger.info("2 of 5: a small student (%s) by SEED, from what the teacher says", STUDENT)
    stages.distill(
        train,
        teacher=out / "teacher",
        out=out / "student",
        method="seed",
        backbone=STUDENT,
        image_size=STUDENT_CROPS,
        test_size=STUDENT_SIZE,
        teacher_size=STUDENT_CROPS,  # as they come, which is cheaper than enlarged to its own size, and does as well
        settings={**STUDENT_SETTINGS, "queue_length": len(train) // 2},  # longer, cells meet their own earlier keys
        minutes=minutes * (1 - TEACHER_SHARE),
        **common,
    ).or_stop()
    logger.info("3 of 5: evaluation with %s of the labels", ", ".join(f"{100 * f:g} %" for f in FRACTIONS))
    protocol = "low_label:" + ",".join(f"{f:g}" for f in FRACTIONS)
    result = stages.evaluate(
        out / "student", train, test=test, protocols=(protocol, "knn", "linear"), seed=seed, device=device
    )
    logger.info("4 of 5: export")
    exported = stages.export(out / "student", format="onnx")
    logger.info("5 of 5: report")
    report = stages.report([out / "student", out / "teacher"], out=out / "report.html")
    return DemoResult(result.verdict, result.rows, exported.to_json(), report)


def low_label_table(rows: list[dict[str, Any]]) -> str:
    """ROC-AUC by share of the labels, one line a subject."""
    names = {
        "model": "student",
        "teacher": "teacher",
        "random_init": "random initialisation",
        "pixels": "raw pixels",
        "hog": "HOG",
    }
    head = f"{'ROC-AUC (95 % interval)':<24}" + "".join(f"{f'{100 * f:g} % labels':>22}" for f in FRACTIONS)
    lines = [head]
    for subject, name in names.items():
        cells = []
        for fraction in FRACTIONS:
            found = [
                r
                for r in rows
                if r["subject"] == subject
                and r["protocol"] == "low_label"
                and r["metric"] == "roc_auc"
                and r["settings"].get("fraction") == fraction
            ]
            cells.append(
                f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" if (r := next(iter(found), None)) else "–"
            )
        lines.append(f"{name:<24}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)
