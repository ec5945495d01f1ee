"""The protocols by the name a person types, with their settings: `knn`, `knn:200`, `low_label:0.01,0.1,num_seeds=3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from attar.errors import RecipeError, unknown_name
from attar.evaluation.classifier import OwnClassifier
from attar.evaluation.exits import Exits
from attar.evaluation.finetune import Finetune
from attar.evaluation.knn import Knn
from attar.evaluation.layers import Layers
from attar.evaluation.linear import Linear
from attar.evaluation.low_label import FewShot, LowLabel
from attar.evaluation.mlp import Mlp
from attar.evaluation.retrieval import Retrieval
from attar.evaluation.subject import Protocol

_ALL = (Knn, Linear, Mlp, Finetune, LowLabel, FewShot, Layers, OwnClassifier, Exits, Retrieval)
PROTOCOLS: dict[str, type[Protocol]] = {p.name: p for p in _ALL}


def parse_protocol(text: str | Protocol) -> Protocol:
    """The protocol that `name` or `name:value,value,field=value` describes; a Protocol is returned as it is.

    >>> parse_protocol("knn:200,temperature=0.1")
    Knn(k=200, temperature=0.1)
    >>> parse_protocol("low_label:0.01,0.1").fractions
    (0.01, 0.1)
    """
    if isinstance(text, Protocol):
        return text
    name, _, rest = text.partition(":")
    if name not in PROTOCOLS:
        raise RecipeError("evaluate: " + unknown_name("protocol", name, PROTOCOLS))
    kind = PROTOCOLS[name]
    known = [f.name for f in fields(kind)]
    given: dict[str, list[str]] = {}
    current = kind.bare
    for item in filter(None, (part.strip() for part in rest.split(","))):
        before, equals, after = item.partition("=")
        if equals:
            current = before.strip()
            if current not in known:
                raise RecipeError(f"{name}: " + unknown_name("setting", current, known))
        given.setdefault(current, []).append((after if equals else item).strip())
    return _typed(kind, given)


def check_label_noise(protocols: Sequence[Protocol], label_noise: str | None) -> None:
    """An error where wrong labels would make no difference."""
    if label_noise is not None and not any(protocol.learns for protocol in protocols):
        names = ", ".join(protocol.name for protocol in protocols)
        raise RecipeError(f"--label-noise would be ignored: {names} learns from no labels; take it with linear or knn.")


def _typed(kind: type[Protocol], given: dict[str, list[str]]) -> Protocol:
    from pydantic import TypeAdapter, ValidationError

    several = {f.name for f in fields(kind) if "tuple" in str(f.type)}
    values: dict[str, Any] = {}
    for name, items in given.items():
        if name not in several and len(items) > 1:
            raise RecipeError(f"{kind.name}: {name} takes one value, not {len(items)}: {', '.join(items)}.")
        values[name] = items if name in several else items[0]
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{kind.name}: {where}={first['input']!r} is not accepted: {first['msg']}.") from None
