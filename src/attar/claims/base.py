"""What a claim found: arms measured over seeds, and their table."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attar.train.run import RunFolder, write_atomically


@dataclass
class ClaimResult:
    """values[arm][metric] is a list, one value a seed; an arm that is trained once has one.

    compute[arm]: what its training took, with that of the run it starts from and without that of its teachers: images
    (thousands that were passed over, however many views of each the method makes) and tflops (10^12 operations, see
    FitResult).
    """

    name: str
    statement: str
    data: str
    conditions: dict[str, Any]
    arms: dict[str, str]  # arm -> what it is
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    compute: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    verdict: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """A Markdown table: mean ± standard deviation over seeds, and the mean compute of each arm's own training."""
        metrics = sorted({m for row in self.values.values() for m in row})
        costs = {"images": "1,000 images seen", "tflops": "TFLOP"} if self.compute else {}
        heads = [*metrics, *costs.values()]
        lines = ["| arm | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
        for arm, what in self.arms.items():
            cells = [spread(self.values.get(arm, {}).get(metric, [])) for metric in metrics]
            for cost in costs:
                took = self.compute.get(arm, {}).get(cost, [])
                cells.append(f"{statistics.mean(took):,.{0 if statistics.mean(took) > 10 else 1}f}" if took else "–")
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def add_compute(self, arm: str, run: Path) -> None:
        """Note what the training of this run took, and of those it starts from."""
        folder: Path | None = run
        images = tflops = 0.0
        while folder is not None:
            run_folder = RunFolder(folder)
            took = run_folder.read_json("fit.json")
            if took is None:  # not trained here
                return
            recipe = run_folder.read_recipe()
            images += took["total_steps"] * recipe["settings"]["batch_size"] / 1000
            tflops += took["total_steps"] * took.get("flops_per_step", 0) / 1e12
            folder = Path(recipe["init"]["name"]) if recipe.get("init") else None
        costs = self.compute.setdefault(arm, {"images": [], "tflops": []})
        costs["images"].append(images)
        costs["tflops"].append(tflops)

    def text(self) -> str:
        conditions = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        return "\n".join(
            [f"Claim: {self.statement}", f"Data: {self.data}; {conditions}", "", self.table(), "", self.verdict]
        )

    def save(self, folder: Path) -> None:
        write_atomically(folder / "claim.json", json.dumps(self.to_json(), indent=1))
        write_atomically(folder / "claim.md", self.text() + "\n")


def spread(values: list[float]) -> str:
    """Mean ± standard deviation in percent, with the number of values."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} (n={len(values)})"
