"""The images of a claim, and of a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attar.errors import RecipeError, unknown_name

if TYPE_CHECKING:
    from attar.data.images import Images

SizeT = TypeVar("SizeT")


def set_up(
    claim: str, sizes: Mapping[str, SizeT], size: str, *, data: str, test: str | None, out: Path | None
) -> tuple[SizeT, Images, Images, Path]:
    """The numbers of a claim's size, its images to train on and to measure on, and the folder of its runs."""
    if size not in sizes:
        raise RecipeError(unknown_name("size", size, sizes))
    plan: Any = sizes[size]
    train, held_out = train_and_test(data, test, plan.image_size, plan.images, plan.test_images)
    return plan, train, held_out, out or Path(f"runs/claims/{claim}-{size}-{train.digest[:8]}")


def train_and_test(
    data: str | Path, test: str | Path | None, image_size: int, num_train: int, num_test: int
) -> tuple[Images, Images]:
    """Images to train on and to measure on, both labelled; fixed subsets, the same for every seed.

    Without `test`, a stratified fifth of `data` is set aside.
    """
    from attar.data.load import load_images
    from attar.data.splits import at_most, stratified_split

    def read(source: str | Path) -> Images:
        images = load_images(source, image_size=image_size, labels="auto")
        if images.labels is None:
            raise RecipeError(f"{source}: labels are needed to measure; give labelled images.")
        return images

    train = read(data)
    if test is not None:
        return at_most(train, num_train), at_most(read(test), num_test)
    assert train.labels is not None
    first, second = stratified_split(train.labels, 0.2, seed=0)
    return at_most(train.subset(first), num_train), at_most(train.subset(second), num_test)
