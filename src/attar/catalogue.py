"""The catalogue in words: a method's idea, its formulas, and every recipe value with its source.

Everything is read from the method's own file, so that no page can say something else than what runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from attar.methods import CATALOGUE, Entry, entry
from attar.methods.base import Recipe, load

ORIGINS = "A value without a source of its own in the table is from the source of its recipe:"


@dataclass(frozen=True)
class Value:
    """One field of the recipes: its source (the comment beside it) and its value in each recipe."""

    name: str
    source: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Description:
    """One page of the catalogue."""

    entry: Entry
    explanation: str  # the module's docstring
    recipes: tuple[str, ...]
    fields: tuple[Value, ...]
    origins: dict[str, str]  # of a recipe, and of its values without a comment: the comment where it is written

    def to_json(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.entry),
            "explanation": self.explanation,
            "recipes": {r: {f.name: f.values[r] for f in self.fields} for r in self.recipes},
            "sources": {f.name: f.source for f in self.fields if f.source},
            "origins": self.origins,
        }

    def text(self) -> str:
        """For the terminal: explanation, then a table of the fields."""
        names = max(len(f.name) for f in self.fields)
        widths = [max(len(r), *(len(_short(f.values[r])) for f in self.fields)) for r in self.recipes]
        head = "  ".join([" " * names, *(r.ljust(w) for r, w in zip(self.recipes, widths))])
        rows = [
            "  ".join(
                [f.name.ljust(names), *(_short(f.values[r]).ljust(w) for r, w in zip(self.recipes, widths)), f.source]
            )
            for f in self.fields
        ]
        title = f"{self.entry.name} ({self.entry.family}): {self.entry.paper}"
        origins = [f"{recipe}: {origin}" for recipe, origin in self.origins.items()]
        table = [head.rstrip(), *(row.rstrip() for row in rows)]
        return "\n".join([title, "", self.explanation, "", *table, *(["", ORIGINS, *origins] if origins else [])])

    def markdown(self) -> str:
        """The page for docs/methods."""
        head = "| field | " + " | ".join(self.recipes) + " | source |"
        rule = "|---|" + "---|" * len(self.recipes) + "---|"
        rows = [
            f"| `{f.name}` | " + " | ".join(f"`{_short(f.values[r])}`" for r in self.recipes) + f" | {f.source} |"
            for f in self.fields
        ]
        title = f"# {self.entry.name}\n\n*{self.entry.paper}* · {self.entry.family} · `{self.entry.module}`"
        body = f"```text\n{self.explanation}\n```"
        origins = [f"- `{recipe}`: {origin}" for recipe, origin in self.origins.items()]
        below = ["", ORIGINS, "", *origins] if origins else []  # a method of a user's own may have none
        return "\n".join([title, "", body, "", "## Recipes", "", head, rule, *rows, *below, ""])


def describe(name: str) -> Description:
    """The page of one method; an unknown name is a RecipeError with the nearest ones."""
    line = entry(name)
    module = load(name)
    recipes: dict[str, Recipe] = module.RECIPES
    comments: dict[str, str] = {}
    kinds = {type(recipe) for recipe in recipes.values()}
    for kind in kinds:
        for parent in reversed(kind.__mro__):
            if dataclasses.is_dataclass(parent):
                comments |= _comments(parent)
    names = [f.name for f in dataclasses.fields(next(iter(recipes.values())))]
    own = [n for n in names if n not in {f.name for f in dataclasses.fields(Recipe)}]
    shared = [n for n in names if n not in own]
    origins, beside = _of_recipes(inspect.getsource(module), tuple(recipes))
    fields = [
        Value(
            n,
            "; ".join(filter(None, [comments.get(n, ""), *beside.get(n, ())])),
            {r: getattr(recipe, n) for r, recipe in recipes.items()},
        )
        for n in own + shared
    ]
    used = tuple(f for f in fields if f.name in own or any(value is not None for value in f.values.values()))
    return Description(line, inspect.cleandoc(module.__doc__ or ""), tuple(recipes), used, origins)


def table() -> str:
    """All methods as a Markdown table, for the README and the docs."""
    rows = [
        f"| [`{e.name}`](docs/methods/{e.name}.md) | {e.family} | {e.year} | {e.paper} |" for e in CATALOGUE.values()
    ]
    return "\n".join(["| method | family | year | paper |", "|---|---|---|---|", *rows])


def _comments(kind: type) -> dict[str, str]:
    """Field name -> the comment beside its definition."""
    fields = ((re.match(r"\s+(\w+)\s*:", code), comment) for code, comment in _commented(inspect.getsource(kind)))
    return {match[1]: comment for match, comment in fields if match and comment}


def _of_recipes(source: str, recipes: tuple[str, ...]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Recipe -> the comment where it begins; field -> "recipe: comment" for the comments beside its values.

    A recipe begins as `"small": …` in a dictionary, or as a constant of its name, `SMALL = …` or `_SMALL = …`.
    """
    origins: dict[str, str] = {}
    beside: dict[str, list[str]] = {}
    current = ""
    for code, comment in _commented(source):
        begins = re.match(r'(?:\s+"(\w+)":|_?([A-Z][A-Z0-9_]*)\b[^=]*=)\s', code)
        if begins:
            current = begins[1] or begins[2].lower()
            if current in recipes and comment:
                origins[current] = comment
        elif re.match(r"(?:def|class|@)", code):
            current = ""
        elif comment and current and (value := re.match(r"\s+(\w+)=", code)):
            beside.setdefault(value[1], []).append(f"{current}: {comment}")
    return {recipe: origins[recipe] for recipe in recipes if recipe in origins}, beside


def _commented(source: str) -> list[tuple[str, str]]:
    """Lines of code, each with its comment; what is said to tools (`type: ignore`) is left out.

    A comment in lines of its own belongs to the code that follows, but right after an open bracket it goes on from the
    comment beside that.
    """
    lines: list[tuple[str, str]] = []
    above = ""
    for text in source.splitlines():
        code, _, comment = f"  {text}".partition("  # ")  # the spaces: one at the margin is a comment too
        comment = re.sub(r"^type: ignore\S*(\s+# )?", "", comment.strip())
        if code.strip() or not comment:
            lines.append((code[2:], " ".join(filter(None, [above, comment]))))
            above = ""
        elif lines and lines[-1][1] and lines[-1][0].endswith(("(", "[", "{")):
            lines[-1] = (lines[-1][0], f"{lines[-1][1]} {comment}")
        else:
            above = f"{above} {comment}".strip()
    return lines


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_short(v) for v in value) + ")"
    return str(value)
