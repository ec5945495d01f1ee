"""Which stage of a student belongs to which of a teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attar.errors import BackboneError, unknown_name


def paired(method: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Stages of the same name; without two of these, the last ones backwards. The stem is no stage.

    Raises:
        BackboneError: a network without maps (B, C, H, W).
    """
    mine, theirs = ([name for name, m in maps.items() if m.ndim == 4 and name != "stem"] for maps in (student, teacher))
    if not mine or not theirs:
        raise BackboneError(f"{method}: it compares maps of convnets, and one of the two networks shows none.")
    common = [name for name in mine if name in theirs]
    if len(common) == min(len(mine), len(theirs)):
        return [(name, name) for name in common]
    number = min(len(mine), len(theirs))
    return list(zip(mine[-number:], theirs[-number:], strict=True))


def chosen(method: str, maps: Mapping[str, Tensor], name: str | None) -> str:
    """The stage of that name; without a name the middle one, stem included (ResNets: stage2).

    Raises:
        BackboneError: there is no such map.
    """
    found = [n for n, m in maps.items() if m.ndim == 4]
    if not found:
        raise BackboneError(f"{method}: it compares maps of convnets, and one of the two networks shows none.")
    if name is not None and name not in found:
        raise BackboneError(f"{method}: " + unknown_name("stage", name, found))
    return name or found[len(found) // 2]
