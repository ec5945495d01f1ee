"""Imports point down only, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import attar
import attar.methods

ROWS = [
    {
        "cli",
        "__main__",
        "__init__",
        "stages",
        "training",
        "pipeline",
        "demo",
        "claims",
        "leaderboard",
        "leaderboard_table",
        "request",
        "planning",
        "catalogue",
        "reporting",
        "exporting",
        "exporting_exits",
    },
    {"train", "evaluation"},
    {"methods"},
    {"views", "losses", "models"},
    {"data", "errors"},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
SOURCE = Path(attar.__file__).parent


def upward_imports(root: Path) -> list[str]:
    """'file imports module' for every import of attar that points to a higher row, wherever it stands in the file."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "attar" else [f"attar.{a.name}" for a in node.names]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            for name in names:
                target = name.split(".")
                if target[0] != "attar" or len(target) < 2 or target[1] not in ROW_OF:
                    continue
                if ROW_OF[target[1]] < ROW_OF[parts[0]]:
                    found.append(f"{'/'.join(parts)} imports {name}")
    return found


def test_every_package_has_its_row():
    names = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())}
    assert names <= set(ROW_OF), f"give these a row: {names - set(ROW_OF)}"


def test_imports_point_down_only():
    assert upward_imports(SOURCE) == []


def test_the_arrow_test_can_fail(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "bad.py").write_text("def f():\n    from attar.methods.base import Method\n")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "good.py").write_text("from attar.methods.base import Method\nimport attar.data\n")
    assert upward_imports(tmp_path) == ["losses/bad imports attar.methods.base"]


def test_the_loop_names_no_method():
    names = set(attar.methods.CATALOGUE)
    for path in (SOURCE / "train").glob("*.py"):
        words = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not names & {w for w in words if isinstance(w, str)}, path


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_help_and_catalogue_import_nothing_heavy():
    loaded = loaded_by("import attar.cli, attar.methods")
    assert not loaded & {"torch", "numpy", "torchvision", "timm", "sklearn", "matplotlib", "pydantic"}


def test_losses_need_nothing_above_them():
    loaded = loaded_by("import attar.losses")
    assert not {
        name for name in loaded if name.startswith(("attar.train", "attar.methods", "attar.views", "attar.stages"))
    }
