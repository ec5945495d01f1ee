"""attar: from unlabelled images to a small vision model that works.

    import attar
    teacher = attar.pretrain("photos/", method="simclr", backbone="resnet18", out="runs/teacher")
    student = attar.distill("photos/", teacher="runs/teacher", backbone="mobilenetv3_small_100", out="runs/student")
    print(attar.evaluate("runs/student", "labelled/").verdict)
    encode = attar.load("runs/student")          # nn.Module: pixels in [0, 1] -> features

Every function mirrors the command of the same name, keyword for keyword. Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "pretrain": "attar.stages",
    "distill": "attar.stages",
    "cluster": "attar.stages",
    "evaluate": "attar.stages",
    "embed": "attar.stages",
    "load": "attar.stages",
    "run": "attar.pipeline",
    "export": "attar.stages",
    "report": "attar.stages",
    "doctor": "attar.data.doctor",
    "load_images": "attar.data.load",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attar' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
