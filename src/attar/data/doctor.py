"""`attar doctor`: what is in a source, what is broken, what would mislead an evaluation, and how to start.

Every file is read and decoded once. Nothing is changed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attar.data.decode import Encoded, Unusable, decode, probe, readable_formats, reasons, to_channels
from attar.data.duplicates import gradient_hash, joined_groups, near_pairs, thumbnail
from attar.data.listing import ArrayItems, Source
from attar.data.progress import Progress
from attar.data.sources import AnySource, describe_ignored, open_source

LOOK = 64  # pixels a side at which pictures are looked at
TINY_SIDE = 32
EXTREME_ASPECT = 4.0
CONSTANT_RANGE = 1  # grey levels within which a picture counts as constant
GREY_DIFFERENCE = 3.0  # mean grey levels between colour channels below which a picture counts as grey
FEW_IMAGES = 1000
# What a training takes by itself, for a process; a person may ask for more.
LARGEST_BATCH = {"cpu": 256, "cuda": 1024}
EXAMPLES = 5


class Facts(NamedTuple):
    """What one image says; reason is set where it cannot be used."""

    reason: str = ""
    format: str = ""
    is_grey: bool = False
    looks_grey: bool = False
    bits: int = 8
    top: int = 0  # largest value of a 16-bit grey image
    width: int = 0
    height: int = 0
    constant: bool = False
    content: bytes = b""  # of the file
    hash: int = 0
    thumbnail: np.ndarray | None = None


@dataclass
class Problem:
    """One kind of finding. items: every image concerned, or groups of images that belong together."""

    kind: str
    number: int
    text: str
    advice: str
    items: list[Any] = field(default_factory=list)

    def line(self) -> str:
        shown = [" = ".join(i) if isinstance(i, (list, tuple)) else i for i in self.items[:EXAMPLES]]
        more = ", …" if len(self.items) > EXAMPLES else ""
        examples = f": {', '.join(shown)}{more}" if shown else ""
        return f"  {self.text}{examples}\n      {self.advice}"


@dataclass
class Suggestion:
    """Settings to start with. command: to paste. why: one line each."""

    settings: dict[str, Any]
    command: str
    why: list[str]


@dataclass
class Findings:
    """What `doctor` returns: to_json() for programs, lines() for people."""

    source: str
    num_files: int
    num_usable: int
    formats: dict[str, int]
    colour: dict[str, int]  # grey, colour
    bits: dict[str, int]
    sides: dict[str, list[int]]  # smallest, median, largest as [width, height]
    classes: dict[str, int]  # images by sub-folder of the first level, or by label
    ignored: dict[str, int]
    problems: list[Problem]
    suggestion: Suggestion | None
    other: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def problem(self, kind: str) -> Problem | None:
        return next((p for p in self.problems if p.kind == kind), None)

    def lines(self) -> list[str]:
        lines = [f"{self.source}: {self.num_files} image files, {self.num_usable} usable"]
        if self.num_usable:
            small, middle, large = (f"{w} x {h}" for w, h in self.sides.values())
            lines.append(f"  size     {small}" if small == large else f"  size     {small} to {large}, median {middle}")
            for name, counts in (("format", self.formats), ("colour", self.colour), ("bits", self.bits)):
                lines.append(f"  {name:<8} {', '.join(f'{k} ({n})' for k, n in counts.items())}")
        if self.classes:
            few, many = min(self.classes.values()), max(self.classes.values())
            lines.append(f"  classes  {len(self.classes)} with {few} to {many} images each")
        if self.ignored:
            lines.append(f"  ignored  {describe_ignored(self.ignored)}")
        lines.append("Problems:" if self.problems else "No problems found.")
        lines += [p.line() for p in self.problems]
        if self.suggestion:
            lines += ["To start:", f"  {self.suggestion.command}", *(f"      {w}" for w in self.suggestion.why)]
        return lines


def doctor(
    folder: AnySource,
    other: AnySource | None = None,
    *,
    image_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Findings:
    """Examine a source, and with `other` look for its images in there (leakage between training and test images).

    Args:
        folder, other: anything that `load_images` takes by name.
        image_size: to suggest settings for; default by the size of the images.
        workers: threads that decode; default one a core.

    Raises:
        DataError: if a source does not exist or lists no image at all.
    """
    source = open_source(folder, "auto")
    facts = _examine(source, workers, progress)
    usable = [i for i, f in enumerate(facts) if not f.reason]
    problems = [*_broken(source, facts), *_pictures(source, facts, usable), *_depths(source, facts, usable)]
    problems += _duplicates(source, facts, usable)
    if other is not None:
        second = open_source(other, "auto")
        problems += _leakage(source, facts, second, _examine(second, workers, progress))
    sides = sorted(((facts[i].width, facts[i].height) for i in usable), key=lambda s: s[0] * s[1])
    return Findings(
        source=source.name,
        num_files=len(source),
        num_usable=len(usable),
        formats=_counted(facts[i].format for i in usable),
        colour=_counted("grey" if facts[i].is_grey else "colour" for i in usable),
        bits=_counted(str(facts[i].bits) for i in usable),
        sides={k: list(sides[at]) for k, at in zip(("smallest", "median", "largest"), (0, len(sides) // 2, -1))}
        if sides
        else {},
        classes={}
        if source.labels is None
        else {name: int((source.labels == i).sum()) for i, name in enumerate(source.classes)},
        ignored=dict(source.ignored),
        problems=[p for p in problems if p.number],
        suggestion=_suggest(source, [facts[i] for i in usable], image_size) if usable else None,
        other=None if other is None else second.name,
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _examine(source: Source, workers: int | None, progress: bool) -> list[Facts]:
    readable_formats()  # PIL registers its formats before threads ask for them
    facts = []
    with (
        Progress(f"examining {source.name}", len(source), shown=progress) as bar,
        ThreadPoolExecutor(workers or os.cpu_count() or 1, "attar-doctor") as pool,
    ):
        for found in pool.map(lambda i: _examine_one(source, i), range(len(source))):
            facts.append(found)
            bar.advance()
    return facts


def _examine_one(source: Source, i: int) -> Facts:
    try:
        with reasons():
            data = source.items.open(i)
            if isinstance(data, (str, os.PathLike)):
                data = Path(data).read_bytes()
            return _facts(data)
    except Unusable as error:
        return Facts(reason=str(error))


def _facts(data: Encoded) -> Facts:
    header = probe(data)
    channels = int(header.mode.split()[0]) if header.mode.endswith(" channels") else 3
    pixels = decode(data, canvas=LOOK, channels=channels)
    # spread over the picture within each channel, not between channels: a plain blue picture is constant
    constant = int(np.ptp(pixels.reshape(-1, channels), axis=0).max()) <= CONSTANT_RANGE
    grey = to_channels(pixels, 1)[..., 0] if channels == 3 else pixels.mean(-1).astype(np.uint8)
    levels = pixels.astype(np.int16)
    content = data if isinstance(data, bytes) else np.asarray(data).tobytes()
    return Facts(
        format=header.format,
        is_grey=header.is_grey,
        looks_grey=channels == 3 and float(np.ptp(levels, axis=-1).mean()) < GREY_DIFFERENCE,
        bits=header.bits,
        top=_largest_value(data) if header.mode.startswith("I;16") else 0,
        width=header.width,
        height=header.height,
        constant=constant,
        content=hashlib.blake2b(content, digest_size=16).digest(),
        hash=gradient_hash(grey),
        thumbnail=thumbnail(grey),
    )


def _largest_value(data: Encoded) -> int:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:  # type: ignore[arg-type]
        return int(np.asarray(image).max())


def _names(source: Source, positions: Iterable[int]) -> list[str]:
    return [source.describe(int(i)) for i in positions]


def _broken(source: Source, facts: Sequence[Facts]) -> Iterator[Problem]:
    broken = [(i, f.reason) for i, f in enumerate(facts) if f.reason]
    cut = [f"{source.describe(i)} ({r})" for i, r in broken if "truncated" in r]
    rest = [f"{source.describe(i)} ({r})" for i, r in broken if "truncated" not in r]
    skipped = "Left out of every run; restore or delete them."
    yield Problem("truncated", len(cut), f"{len(cut)} truncated", "Copied or downloaded in part? " + skipped, cut)
    yield Problem("unreadable", len(rest), f"{len(rest)} unreadable", skipped, rest)
    closed = source.unreadable
    yield Problem(
        "closed_folders", len(closed), f"{len(closed)} folders cannot be opened", "Check the permissions.", closed
    )


def _pictures(source: Source, facts: Sequence[Facts], usable: Sequence[int]) -> Iterator[Problem]:
    def found(kind: str, text: str, advice: str, chosen: list[int]) -> Problem:
        return Problem(kind, len(chosen), f"{len(chosen)} {text}", advice, _names(source, chosen))

    yield found(
        "constant",
        "of one colour throughout",
        "They teach nothing and pull embeddings together; delete them.",
        [i for i in usable if facts[i].constant],
    )
    sides = [(i, facts[i].width, facts[i].height) for i in usable]
    if sides and float(np.median([min(w, h) for _, w, h in sides])) >= TINY_SIDE:  # otherwise all are small by design
        yield found(
            "tiny",
            f"with a side below {TINY_SIDE} pixels",
            "Thumbnails or icons? They are enlarged and blurred; consider deleting them.",
            [i for i, w, h in sides if min(w, h) < TINY_SIDE],
        )
    yield found(
        "extreme_aspect",
        f"more than {EXTREME_ASPECT:g} times as long as wide",
        "Random crops see a small part of them; cut them into tiles.",
        [i for i, w, h in sides if max(w, h) > EXTREME_ASPECT * min(w, h)],
    )


def _depths(source: Source, facts: Sequence[Facts], usable: Sequence[int]) -> Iterator[Problem]:
    deep = [i for i in usable if facts[i].bits > 8]
    if deep and len(deep) < len(usable):
        yield Problem(
            "mixed_bit_depth",
            len(deep),
            f"{len(deep)} images have 16 bits or more, {len(usable) - len(deep)} have 8 or fewer",
            "16 bits are divided by 257; check that both kinds then look equally bright.",
            _names(source, deep),
        )
    top = max((facts[i].top for i in usable), default=0)
    if 0 < top < 65536 // 8:
        number = sum(facts[i].top > 0 for i in usable)
        yield Problem(
            "unused_range",
            number,
            f"{number} 16-bit images use values up to {top} of 65535 only",
            f"Divided by 257 they keep {top // 257 + 1} grey levels; stretch them to the full range first.",
        )
    grey = [i for i in usable if facts[i].is_grey]
    if grey and len(grey) < len(usable):
        rarer = grey if len(grey) <= len(usable) / 2 else [i for i in usable if not facts[i].is_grey]
        yield Problem(
            "mixed_colour",
            len(rarer),
            f"{len(grey)} grey and {len(usable) - len(grey)} colour images",
            "All are read with 3 channels. If colour tells their origin, give --channels 1.",
            _names(source, rarer),
        )
    if usable and not grey and all(facts[i].looks_grey for i in usable):
        yield Problem(
            "grey_as_colour",
            len(usable),
            "all images are stored in colour but look grey",
            "--channels 1 gives the same pictures at a third of the memory.",
        )


def _duplicates(source: Source, facts: Sequence[Facts], usable: Sequence[int]) -> Iterator[Problem]:
    groups = _equal(facts, usable)
    extra = sum(len(g) - 1 for g in groups)
    yield Problem(
        "exact_duplicates",
        extra,
        f"{extra} copies of other files ({len(groups)} pictures occur more than once)",
        "Keep one of each; copies on both sides of a split make results look better than they are.",
        [_names(source, g) for g in groups],
    )
    if source.labels is not None:
        torn = [g for g in groups if len(set(source.labels[g].tolist())) > 1]
        yield Problem(
            "label_conflicts",
            len(torn),
            f"{len(torn)} pictures occur under different labels",
            "At most one of the labels is right; correct them.",
            [_names(source, g) for g in torn],
        )
    near = _near_groups([facts[i] for i in usable])
    extra = sum(len(g) - 1 for g in near)
    yield Problem(
        "near_duplicates",
        extra,
        f"{extra} images nearly equal to others ({len(near)} groups)",
        "Frames of a video, or the same thing again? Keep each group on one side of a split.",
        [_names(source, [usable[i] for i in g]) for g in near],
    )


def _equal(facts: Sequence[Facts], usable: Iterable[int]) -> list[list[int]]:
    by_content = defaultdict(list)
    for i in usable:
        by_content[facts[i].content].append(i)
    return [g for g in by_content.values() if len(g) > 1]


def _near_groups(facts: Sequence[Facts]) -> list[np.ndarray]:
    """Groups of nearly equal pictures, one of each set of equal files, constant ones left out."""
    first: dict[bytes, int] = {}
    for i, f in enumerate(facts):
        if not f.constant:
            first.setdefault(f.content, i)
    kept = np.array(list(first.values()), np.int64)
    if len(kept) < 2:
        return []
    return [kept[g] for g in joined_groups(_pairs([facts[i] for i in kept]), len(kept))]


def _pairs(facts: Sequence[Facts]) -> np.ndarray:
    hashes = np.array([f.hash for f in facts], np.uint64)
    return near_pairs(hashes, np.stack([f.thumbnail for f in facts if f.thumbnail is not None]))


def _leakage(source: Source, facts: list[Facts], other: Source, others: list[Facts]) -> Iterator[Problem]:
    """Images of `source` that are also in `other`."""
    known = {f.content: i for i, f in reversed(list(enumerate(others))) if not f.reason}
    equal = [i for i, f in enumerate(facts) if not f.reason and f.content in known]
    advice = "Results measured on these images say nothing; remove them from one side."
    yield Problem(
        "leaked",
        len(equal),
        f"{len(equal)} files are also in {other.name}",
        advice,
        [[source.describe(i), other.describe(known[facts[i].content])] for i in equal],
    )
    taken = set(equal)
    mine = [i for i, f in enumerate(facts) if not f.reason and not f.constant and i not in taken]
    theirs = [i for i, f in enumerate(others) if not f.reason and not f.constant]
    near = []
    if mine and theirs:
        pairs = _pairs([facts[i] for i in mine] + [others[i] for i in theirs])
        for group in joined_groups(pairs, len(mine) + len(theirs)):
            there = group[group >= len(mine)]
            if len(there):
                match = other.describe(theirs[int(there[0]) - len(mine)])
                near += [[source.describe(mine[i]), match] for i in group[group < len(mine)].tolist()]
    yield Problem(
        "nearly_leaked", len(near), f"{len(near)} images are nearly equal to images in {other.name}", advice, near
    )


def _suggest(source: Source, facts: Sequence[Facts], image_size: int | None) -> Suggestion:
    """Settings by number and size of the images; every choice with its reason."""
    number = len(facts)
    side = int(np.median([min(f.width, f.height) for f in facts]))
    size = image_size or next((s for limit, s in ((40, 32), (80, 64), (112, 96), (176, 128)) if side <= limit), 224)
    grey = all(f.is_grey or f.looks_grey for f in facts)
    backbone = "resnet50" if number >= 200_000 and size >= 128 else "resnet18"
    batch = min(max(2 ** int(np.log2(max(number / 8, 1))), 16), fitting_batch(number), LARGEST_BATCH["cpu"])
    epochs = int(np.clip(round(10_000_000 / number, -1), 100, 800))
    settings: dict[str, Any] = {
        "method": "simclr",
        "backbone": backbone,
        "stem": "small" if size <= 64 else "standard",
        "image_size": size,
        "channels": _suggested_channels(source, grey),
        "batch_size": batch,
        "epochs": epochs,
    }
    why = [
        f"--image-size {size}: the shorter sides have a median of {side} pixels",
        f"--batch-size {batch}, --epochs {epochs}: for {number} images; --minutes instead of --epochs limits the time",
    ]
    if size <= 64:
        why.append("the recipe for small images is chosen by itself; --stem small keeps their detail")
    if settings["channels"] == 1:
        why.append("--channels 1: all images are grey")
    if number < FEW_IMAGES:
        why.append(f"{number} images are few to learn from: start from published weights (--pretrained), or add images")
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    return Suggestion(settings, f"attar pretrain {shlex.quote(source.name)} {options} --out runs/teacher", why)


def fitting_batch(num_images: int) -> int:
    """The largest batch that suits so many images, in training too: a power of two, at most a quarter of them or 2."""
    return 2 ** max((max(num_images, 1) // 4).bit_length() - 1, 1)


def _suggested_channels(source: Source, grey: bool) -> int:
    if isinstance(source.items, ArrayItems):
        return int(source.items.pixels.shape[-1])
    return 1 if grey else 3
