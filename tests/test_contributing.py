"""The worked example of CONTRIBUTING.md is carried out: an eighth method from the two blocks on the page."""

import importlib
import re
import sys
from pathlib import Path

import torch

import attar.methods
from attar import stages
from attar.methods import Entry
from attar.train.log import read_json_lines

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def block(name: str) -> str:
    return re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]


def test_the_example_method_works(tmp_path, monkeypatch):
    entry = eval(block("entry"), {"Entry": Entry})
    package = importlib.import_module(f"attar.methods.{entry.family}")
    (tmp_path / f"{entry.name}.py").write_text(block("method"))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setitem(attar.methods.CATALOGUE, entry.name, entry)
    monkeypatch.delitem(sys.modules, entry.module, raising=False)

    settings = dict(image_size=8, epochs=1, batch_size=256, lr=0.05, progress=False)
    run = stages.pretrain("digits", method=entry.name, backbone="resnet8x0.5", out=tmp_path / "run", **settings)
    rows = read_json_lines(run.path / "metrics.jsonl")
    assert len(rows) == 7 and {"loss", "alignment", "uniformity"} <= set(rows[0])
    assert rows[-1]["loss"] < rows[0]["loss"]
    features = stages.load(run.path)(torch.rand(2, 1, 8, 8))
    assert features.ndim == 2 and features.isfinite().all()
    del sys.modules[entry.module]
