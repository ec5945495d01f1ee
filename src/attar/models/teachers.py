"""Teachers that do not learn: frozen, or looked up in a table computed once.

All are called alike, `teacher(images, index, image, view=epoch)`: a frozen teacher looks at the images, a cached one
at the ids and the number of the view.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.data.images import Images, ImageSpec
from attar.data.progress import Progress
from attar.errors import CheckpointError, RecipeError, ShapeError
from attar.models.backbones import Backbone, patch_map
from attar.models.other_size import check_other_size
from attar.models.saved import classes_of, head_digest, load_backbone, load_head
from attar.models.weights_file import absolute

logger = logging.getLogger("attar")


class Teacher(Protocol):
    """What distillers see. num_features_out: width E of the answers. digest: of weights, output and
    the images it takes."""

    num_features_out: int
    digest: str

    def __call__(self, images: Tensor, index: Tensor, image: ImageSpec, view: int = 0) -> Tensor:
        """Answers (B, E) in fp32, without gradient.

        images: (B, C, H, W), normalised as `image` says (the student's normalisation). index: (B,) stable ids.
        view: number of the view, the epoch; a cached teacher has the answers for view modulo its number of views.
        """
        ...


def _exactly(answer: Callable[..., Any]) -> Callable[..., Any]:
    """A method that takes no gradient and computes in fp32 whatever the student does: a small temperature makes much
    of a rounding of cosines, and an answer that is kept must be what would be given live."""

    @functools.wraps(answer)
    def asked(self: FrozenTeacher, given: Tensor, *rest: Any, **named: Any) -> Any:
        with torch.no_grad(), torch.autocast(given.device.type, enabled=False):
            return answer(self, given.float(), *rest, **named)

    return asked


class FrozenTeacher:
    """A trained network that answers in eval mode, in its own normalisation and image size, without gradient.

    Deliberately no nn.Module: it is no part of the method that asks it, so it is neither trained, nor saved, nor
    exported, nor switched to train mode.

    head: gives the answers. classes: names of the classes whose logits these are, where they are known. projector: a
    second head of the same features, for distillers that learn from both. settings: of the recipe that trained it.
    seed: of its initial weights, where it is a run's.
    """

    def __init__(
        self,
        backbone: Backbone,
        image: ImageSpec,
        head: nn.Module | None = None,
        *,
        projector: nn.Module | None = None,
        classes: Sequence[str] = (),
        digest: str = "",
        name: str = "a network given in Python",
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ):
        self.backbone = backbone
        self.head = head
        self.projector = projector
        self.network = backbone if head is None else nn.Sequential(backbone, head)
        for part in (self.network, projector):
            if part is not None:
                part.eval().requires_grad_(False)
        self.image = image
        self.classes = tuple(classes)
        self.num_features_out = backbone.num_features if head is None else int(head.num_features_out)  # type: ignore[arg-type]
        self.digest = digest
        self.name = name
        self.settings = dict(settings or {})
        self.seed = seed

    @_exactly
    def __call__(self, images: Tensor, index: Tensor, image: ImageSpec, view: int = 0) -> Tensor:
        return self.network(self._seen(images, image)).float()

    @_exactly
    def stages(self, images: Tensor, image: ImageSpec) -> dict[str, Tensor]:
        """Its intermediate maps by name, (B, D', H', W') or tokens (B, N, D'), for distillers of maps."""
        return self.backbone.stages(self._seen(images, image))

    @_exactly
    def features(self, images: Tensor, image: ImageSpec) -> Tensor:
        """(B, D), before any head."""
        return self.backbone(self._seen(images, image))

    @_exactly
    def answer(self, features: Tensor) -> Tensor:
        """What it says of these features of its own, (B, E) in fp32: the head's output."""
        return (features if self.head is None else self.head(features)).float()

    @_exactly
    def embedding(self, features: Tensor) -> Tensor:
        """What its projector makes of these features of its own, (B, E) in fp32."""
        if self.projector is None:
            raise CheckpointError(f"the teacher {self.name} has kept no projector.")
        return self.projector(features).float()

    @_exactly
    def features_and_stages(self, images: Tensor, image: ImageSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """Its features and its intermediate maps by name, in one pass."""
        return self.backbone.features_and_stages(self._seen(images, image))

    @_exactly
    def features_and_map(self, images: Tensor, image: ImageSpec) -> tuple[Tensor, Tensor]:
        """Its features and what they are pooled from, in one pass; see `Backbone.features_and_map`."""
        return self.backbone.features_and_map(self._seen(images, image))

    def _seen(self, images: Tensor, image: ImageSpec) -> Tensor:
        """The images as it was trained to see them; it moves to where they are."""
        self.network.to(images.device)
        if self.projector is not None:
            self.projector.to(images.device)
        return renormalised(images, image, self.image)


class JointTeacher:
    """Several frozen teachers as one: their normalised answers side by side, divided to unit length.

    The cosine of two answers is then the mean of the teachers' cosines, so all have the same say, and every distiller
    takes several teachers without knowing. Maps are joined alike, resized to the first teacher's grid.
    """

    def __init__(self, teachers: Sequence[FrozenTeacher]):
        self.teachers = tuple(teachers)
        self.image = self.teachers[0].image
        self.num_features_out = sum(teacher.num_features_out for teacher in self.teachers)
        self.head = next((teacher.head for teacher in self.teachers if teacher.head is not None), None)
        self.digest = hashlib.sha256(" ".join(teacher.digest for teacher in self.teachers).encode()).hexdigest()

    def __call__(self, images: Tensor, index: Tensor, image: ImageSpec, view: int = 0) -> Tensor:
        return self._joined([teacher(images, index, image, view) for teacher in self.teachers])

    def features_and_map(self, images: Tensor, image: ImageSpec) -> tuple[Tensor, Tensor]:
        """Joined features and the joined map (B, D', H', W') of all."""
        features, maps = zip(*(teacher.features_and_map(images, image) for teacher in self.teachers))
        grids = [patch_map(teacher.backbone, own) for teacher, own in zip(self.teachers, maps)]
        size = grids[0].shape[2:]
        resized = [F.interpolate(g.float(), size=size, mode="bilinear", align_corners=False) for g in grids]
        return self._joined(list(features)), self._joined(resized)

    def _joined(self, answers: list[Tensor]) -> Tensor:
        units = [F.normalize(answer.float(), dim=1) for answer in answers]
        return torch.cat(units, dim=1) / len(units) ** 0.5


def renormalised(images: Tensor, given: ImageSpec, wanted: ImageSpec) -> Tensor:
    """Images normalised as `given`, as `wanted` has them; resized (antialiased) where the sizes differ.

    A view of another size than `given.size` (a local crop) keeps its share of the size.
    """
    if given.channels != wanted.channels:
        raise ShapeError(
            f"the teacher takes {wanted.channels} channels, the student's images have {given.channels}; "
            f"use --channels {wanted.channels}."
        )
    if (given.mean, given.std) != (wanted.mean, wanted.std):
        column = lambda values: torch.tensor(values, device=images.device).view(1, -1, 1, 1)  # noqa: E731
        pixels = images * column(given.std) + column(given.mean)
        images = (pixels - column(wanted.mean)) / column(wanted.std)
    if given.size != wanted.size:
        size = round(images.shape[-1] * wanted.size / given.size)
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return images


class CachedTeacher:
    """A frozen teacher's answers, computed once for every image and kept in a file keyed by stable id.

    Views are a pure function of (seed, epoch, id), so view k of the cache is exactly the picture the student sees in
    every epoch with epoch % num_views == k, provided that the student's views are drawn for epoch % num_views: a
    distillation epoch then costs about a student's epoch.

    Args:
        answers: (num_views, num_ids, E), float16 or float32; rows of ids without an image are NaN.
    """

    def __init__(self, answers: np.ndarray, *, digest: str, classes: Sequence[str] = ()):
        self.answers = answers
        self.classes = tuple(classes)
        self.num_views, self.num_ids, self.num_features_out = answers.shape
        self.digest = digest

    def __call__(self, images: Tensor, index: Tensor, image: ImageSpec, view: int = 0) -> Tensor:
        ids = index.cpu().numpy()
        if ids.max(initial=0) >= self.num_ids:
            raise ShapeError(f"the teacher's cache holds {self.num_ids} ids, but image {ids.max()} was asked for.")
        rows = np.asarray(self.answers[view % self.num_views][ids], dtype=np.float32)
        if np.isnan(rows[:, 0]).any():
            missing = ids[np.isnan(rows[:, 0])]
            raise ShapeError(
                f"the teacher's cache has no answer for image {missing[0]} ({len(missing)} in this batch)."
            )
        return torch.from_numpy(rows).to(index.device, non_blocking=True)


def cache_answers(
    teacher: FrozenTeacher,
    images: Images,
    image: ImageSpec,
    view_of: ViewOf,
    *,
    num_views: int,
    folder: Path,
    key: str,
    device: torch.device,
    batch_size: int = 256,
    show_progress: bool = True,
    smaller: str = "",
) -> CachedTeacher:
    """Compute (or find) the answers of a teacher for `num_views` views of every image.

    A pass that was stopped goes on where it noted last how far it was, about a minute before.

    Args:
        view_of: (canvas batch, view number) -> normalised images, what the student will see.
        folder: where teacher-KEY.npy is kept; written as teacher-KEY.partial.npy and renamed, so a file that is there
            is complete.
        key: what the views depend on (their numbers and the seed); joined with the teacher's and the images' digests.
        smaller: what else a person can do where the table does not fit on the disk.

    Raises:
        CheckpointError: the table does not fit on the disk.
    """
    digest = hashlib.sha256(json.dumps([teacher.digest, images.digest, image.to_json(), num_views, key]).encode())
    path = folder / f"teacher-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):  # two runs may ask for the same table
            if not path.is_file():
                N, shape = len(images), (num_views, images.num_ids, teacher.num_features_out)
                growing = _GrowingTable(path, shape, smaller)
                with Progress("teacher", num_views * N, shown=show_progress, done=growing.done) as progress:
                    while growing.done < num_views * N:
                        view, first = divmod(growing.done, N)
                        positions = np.arange(first, min(first + batch_size, N))
                        batch = images.batch(positions).to(device)
                        answers = teacher(view_of(batch, view), batch.index, image)
                        growing.write(view, images.index[positions], answers)
                        progress.advance(len(positions))
                growing.finish()
    return CachedTeacher(np.load(path, mmap_mode="r"), digest=teacher.digest, classes=getattr(teacher, "classes", ()))


class _GrowingTable:
    """A table of answers while it is written, view after view, beside a note of how many are there (`done`)."""

    SECONDS_BETWEEN_NOTES = 60.0  # each waits for the disk

    def __init__(self, path: Path, shape: tuple[int, ...], smaller: str):
        self.path, self._partial, self._note = path, path.with_suffix(".partial.npy"), path.with_suffix(".done")
        begun = self._partial.is_file() and self._note.is_file()
        self.done = int(self._note.read_text() or 0) if begun else 0
        self._noted = time.monotonic()
        if self.done:
            logger.info("Asking the teacher goes on: %d answers are there.", self.done)
            self._table = np.lib.format.open_memmap(self._partial, mode="r+")
        else:
            logger.info("Asking the teacher once; its answers take %.0f MB.", 2e-6 * np.prod(shape))
            for left in (self._note, self._partial):  # of a pass that was stopped before it noted anything
                left.unlink(missing_ok=True)
            self._table = _reserved(self._partial, shape, smaller)

    def write(self, view: int, ids: np.ndarray, answers: Tensor) -> None:
        self._table[view, ids] = answers.cpu().numpy().astype(np.float16)
        self.done += len(ids)
        if time.monotonic() - self._noted >= self.SECONDS_BETWEEN_NOTES:
            self._table.flush()  # first: what the note says must be there after a loss of power, too
            beside = self._note.with_suffix(".note")
            beside.write_text(str(self.done))
            os.replace(beside, self._note)
            self._noted = time.monotonic()

    def finish(self) -> None:
        self._table.flush()
        del self._table
        os.replace(self._partial, self.path)
        self._note.unlink(missing_ok=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock is the system's, so it is gone with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory lock
        yield
        return
    with open(lock, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is asking the teacher the same; waiting for it.")
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:  # a network's file system without locks
            logger.warning("%s cannot be locked (%s); do not ask the same twice at a time.", lock.parent, error)
        yield
        lock.unlink(missing_ok=True)  # not where the pass failed: who waits for it must still be alone


def _reserved(path: Path, shape: tuple[int, ...], smaller: str) -> np.memmap:
    """A new table of NaN on the disk. Its room is reserved first: a map into a full disk ends in a bus error."""
    needed = 2 * int(np.prod(shape))
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise CheckpointError(
            f"the teacher's answers need {needed / 1e6:.0f} MB in {path.parent}, where {free / 1e6:.0f} MB are free. "
            f"Free some space, or give --cache a folder on another disk{smaller and ', or '}{smaller}."
        )
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    table[:] = np.nan
    return table


class ViewOf(Protocol):
    """(canvas batch, view number) -> normalised images (B, C, H, W)."""

    def __call__(self, batch: object, view: int) -> Tensor: ...


def load_teacher(
    spec: str | Path,
    *,
    output: str = "auto",
    image_size: int | None = None,
    channels: int | None = None,
    teacher_size: int | None = None,
) -> FrozenTeacher:
    """A frozen teacher from a run folder, a timm name, a network with the weights of a file (NAME@FILE), "hog" or
    "pixels".

    Args:
        output: "features" (of the backbone), "embedding" (of the projector the run kept), "logits" (of the
            classifier the run kept), or "auto": the embedding where there is a projector, otherwise features.
        image_size, channels: of a network by name. teacher_size: pixels it sees images with, instead of its own or
            of image_size.

    Raises:
        CheckpointError: an output of a head that the teacher did not keep; anything load_backbone raises.
        BackboneError: a run's weights belong to images of its own size.
    """
    backbone, image, provenance = load_backbone(spec, image_size=teacher_size or image_size, channels=channels)
    if teacher_size is not None and teacher_size != image.size:  # a run's network has a size of its own
        check_other_size(backbone.spec, teacher_size, option="--teacher-size")
        backbone.spec = replace(backbone.spec, image_size=teacher_size)
        image = replace(image, size=teacher_size)
    folder = Path(spec)
    kept = {"embedding": "projector", "auto": "projector", "logits": "classifier"}.get(output)
    head = load_head(folder, kept) if folder.is_dir() and kept else None
    logits = head is not None and output == "logits"
    if head is None and output in _WITHOUT_HEAD:
        raise CheckpointError(f"teacher_output={output}: {spec} has kept no {kept}; {_WITHOUT_HEAD[output]}.")
    if provenance.get("collapsed"):
        logger.warning("The teacher %s ended collapsed: it says nearly the same of all images.", spec)
    state = provenance.get("sha256") or str(spec)
    if "file" in provenance:  # another name may mean another normalisation of the images
        state = f"{provenance['name']} {state}"
    answered = "features" if head is None else "embedding"
    if logits:  # a run with a classifier may be taught again: other heads on the same backbone
        answered = "logits " + " ".join(head_digest(folder, name) for name in ("classifier", "projector"))
    return FrozenTeacher(
        backbone,
        image,
        head,
        projector=load_head(folder, "projector") if logits else None,
        classes=classes_of(folder) if logits else (),
        digest=hashlib.sha256(f"{state} {answered} {json.dumps(image.to_json())}".encode()).hexdigest(),
        name=absolute(spec),
        settings=provenance.get("settings"),
        seed=provenance.get("seed"),
    )


def check_classes(where: str, teacher: Teacher, images: Images) -> None:
    """The classes whose logits a teacher gives must be those of the images, in number, name and order.

    Raises:
        RecipeError: they are not.
    """
    taught: tuple[str, ...] = getattr(teacher, "classes", ())
    if teacher.num_features_out != images.num_classes:
        raise RecipeError(
            f"{where}: the teacher tells {teacher.num_features_out} classes apart, and {images.name} has "
            f"{images.num_classes}. Train the teacher on the same classes (--method supervised)."
        )
    if taught and images.classes and taught != tuple(images.classes):
        first = next(n for n, (a, b) in enumerate(zip(taught, images.classes)) if a != b)
        raise RecipeError(
            f"{where}: the teacher's classes are not those of {images.name}: number {first} is {taught[first]!r} "
            f"there and {images.classes[first]!r} here. Names and order must be the same; train the teacher on the "
            "same labels (--method supervised)."
        )


_WITHOUT_HEAD = {
    "embedding": "use teacher_output=features, or a teacher trained by a method with one (simclr, moco, byol)",
    "logits": "its teacher must have been trained with labels (attar pretrain SOURCE --method supervised, or kd)",
}
