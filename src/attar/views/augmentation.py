"""One view of every image of a batch: Augmentation for training, CentreView for evaluation, RandomCropPad for both
rotation prediction on small images and fine-tuning.

First all random parameters of the batch are drawn, then the pictures are computed; on a CPU in blocks that fit the
cache. There is no loop over samples, and on an accelerator no wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, fields

import torch
from torch import Tensor

from attar.data.images import CanvasBatch, ImageSpec
from attar.errors import RecipeError
from attar.views.blur import gaussian_blur
from attar.views.boxes import box_matrices, central_boxes, random_resized_boxes
from attar.views.colour import HUE, colour_jitter_, solarise, to_grey
from attar.views.draws import Draws
from attar.views.resample import Interpolation, crop_and_resize


@dataclass
class ViewParameters:
    """What was drawn for each sample; every field has B rows."""

    boxes: Tensor  # (B, 4) top, left, height, width in canvas pixels
    flip: Tensor  # (B,) bool
    jittered: Tensor  # (B,) bool
    factors: Tensor  # (B, 4) brightness, contrast, saturation, hue
    order: Tensor  # (B, 4) permutation of the columns of factors
    grey: Tensor  # (B,) bool
    blurred: Tensor  # (B,) bool
    sigma: Tensor  # (B,) pixels
    solarised: Tensor  # (B,) bool

    def rows(self, rows: slice) -> ViewParameters:
        return ViewParameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, mirror, colour jitter, grey, blur, solarise, normalise: in this order, per sample.

    Called with a CanvasBatch and Draws, gives normalised images (B, C, size, size), float32, also under autocast.

    size: of the view in pixels; None takes the image's. scale, ratio: area share and width / height of the crop.
    flip, jitter_probability, grey, blur, solarise: the probability of each operation.
    jitter: strengths of brightness, contrast, saturation (factors in 1 +- strength, not below 0) and hue (shift in
    +-strength of a turn, at most 0.5), applied in random order; None leaves colours alone. Hue is a notion of RGB:
    images of another number of channels keep theirs.
    grey_before_jitter: swaps these two, as MoCo v1 and InstDisc do.
    blur_sigma: range of the Gaussian's width in pixels. blur_kernel: its odd size; None takes a tenth of the view.
    interpolation: "bilinear", or "bicubic" as the papers whose code was TensorFlow and DINO.
    """

    image: ImageSpec
    _: KW_ONLY
    size: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] | None = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: float = 0.8
    grey: float = 0.2
    grey_before_jitter: bool = False
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int | None = None
    solarise: float = 0.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_probability", "grey", "blur", "solarise"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a probability in [0, 1]")
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _require(0 < low <= high, name, (low, high), "a range with 0 < low <= high")
        _require(self.scale[1] <= 1, "scale", self.scale, "a share of the image's area, at most 1")
        _require(self.view_size >= 1, "size", self.size, "a positive number of pixels")
        if self.jitter is not None:
            fine = len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[HUE] <= 0.5
            _require(fine, "jitter", self.jitter, "four strengths >= 0, the last (hue) at most 0.5")
        if self.blur > 0:
            fine = self.kernel_size % 2 == 1 and self.kernel_size // 2 < self.view_size
            _require(fine, "blur_kernel", self.kernel_size, f"an odd size below {2 * self.view_size}")
        known = self.interpolation in ("bilinear", "bicubic")
        _require(known, "interpolation", self.interpolation, "'bilinear' or 'bicubic'")

    @property
    def view_size(self) -> int:
        return self.image.size if self.size is None else self.size

    @property
    def kernel_size(self) -> int:
        """A tenth of the view, odd, as SimCLR's code has it (23 at 224 px); at least 3."""
        return max(3, self.view_size // 10 // 2 * 2 + 1) if self.blur_kernel is None else self.blur_kernel

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Tensor:
        return self.apply(batch.canvases, self.draw(batch, draws))

    def with_geometry(self, batch: CanvasBatch, draws: Draws) -> tuple[Tensor, Tensor]:
        """The view and, for each sample, the matrix from its pixels to canvas pixels (see `box_matrices`)."""
        parameters = self.draw(batch, draws)
        matrices = box_matrices(parameters.boxes, self.view_size, parameters.flip)
        return self.apply(batch.canvases, parameters), matrices

    def draw(self, batch: CanvasBatch, draws: Draws) -> ViewParameters:
        """Every random number of this view. The crop comes first, so colour settings do not move it."""
        boxes = random_resized_boxes(batch.rectangles, draws, scale=self.scale, ratio=self.ratio)
        flip = draws.bernoulli(self.flip)
        brightness, contrast, saturation, hue = self.jitter or (0.0, 0.0, 0.0, 0.0)
        factors = [draws.uniform(max(0.0, 1 - s), 1 + s) for s in (brightness, contrast, saturation)]
        return ViewParameters(
            boxes=boxes,
            flip=flip,
            factors=torch.stack([*factors, draws.uniform(-hue, hue)], dim=1),
            order=draws.permutation(4),
            jittered=draws.bernoulli(self.jitter_probability),
            grey=draws.bernoulli(self.grey),
            blurred=draws.bernoulli(self.blur),
            sigma=draws.uniform(*self.blur_sigma),
            solarised=draws.bernoulli(self.solarise),
        )

    def apply(self, canvases: Tensor, parameters: ViewParameters) -> Tensor:
        """The view that these parameters describe."""
        return _normalised(
            self.image, canvases, self.view_size, lambda rows: self._pixels(canvases[rows], parameters.rows(rows))
        )

    def _pixels(self, canvases: Tensor, p: ViewParameters) -> Tensor:
        """In [0, 1], not yet normalised."""
        images = crop_and_resize(canvases, p.boxes, self.view_size, flip=p.flip, interpolation=self.interpolation)
        if self.grey > 0 and self.grey_before_jitter:
            images = _where(p.grey, to_grey, images)
        if self.jitter is not None and self.jitter_probability > 0:
            with_hue = self.jitter[HUE] > 0 and self.image.channels == 3
            jitter = lambda x, factors, order: colour_jitter_(x, factors, order, with_hue=with_hue)  # noqa: E731
            images = _where(p.jittered, jitter, images, p.factors, p.order)
        if self.grey > 0 and not self.grey_before_jitter:
            images = _where(p.grey, to_grey, images)
        if self.blur > 0:
            blur = lambda x, sigma: gaussian_blur(x, sigma, kernel_size=self.kernel_size)  # noqa: E731
            images = _where(p.blurred, blur, images, p.sigma)
        if self.solarise > 0:
            images = _where(p.solarised, solarise, images)
        return images


@dataclass(frozen=True)
class CentreView:
    """The central square, resized and normalised: what evaluation, export and embedding see. Nothing is random.

    The square's side is image.crop_fraction of the shorter side of the picture.
    """

    image: ImageSpec
    _: KW_ONLY
    interpolation: Interpolation = "bilinear"

    def __call__(self, batch: CanvasBatch, draws: Draws | None = None) -> Tensor:
        size = self.image.size
        boxes = central_boxes(batch.rectangles, fraction=self.image.crop_fraction)
        cut = lambda rows: crop_and_resize(batch.canvases[rows], boxes[rows], size, interpolation=self.interpolation)  # noqa: E731
        return _normalised(self.image, batch.canvases, size, cut)


@dataclass(frozen=True)
class RandomCropPad:
    """The central square resized, black border, random crop of the original size, mirror: CIFAR's classic.

    pad: width of the border in pixels of the view; 4 belongs to 32 px.
    """

    image: ImageSpec
    _: KW_ONLY
    pad: int = 4
    flip: float = 0.5

    def __post_init__(self) -> None:
        _require(self.pad >= 0, "pad", self.pad, "a number of pixels >= 0")
        _require(0 <= self.flip <= 1, "flip", self.flip, "a probability in [0, 1]")

    def __call__(self, batch: CanvasBatch, draws: Draws) -> Tensor:
        boxes = central_boxes(batch.rectangles)
        shift = draws.integers(2 * self.pad + 1, shape=(2,)) - self.pad
        flip = draws.bernoulli(self.flip)
        size = self.image.size
        cut = lambda rows: crop_and_resize(  # noqa: E731
            batch.canvases[rows], boxes[rows], size, flip=flip[rows], shift=shift[rows]
        )
        return _normalised(self.image, batch.canvases, size, cut)


def _require(fine: bool, name: str, given: object, accepted: str) -> None:
    if not fine:
        raise RecipeError(f"augmentation: {name}={given} is not accepted; give {accepted}.")


def _where(chosen: Tensor, operation: Callable[..., Tensor], images: Tensor, *per_sample: Tensor) -> Tensor:
    """The operation on chosen samples, the others as they are. images may be overwritten, by the operation too.

    A CPU computes the chosen ones only. An accelerator would have to wait to learn which they are, so it computes all.
    """
    if images.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], operation(images.clone(), *per_sample), images)
    rows = chosen.nonzero().squeeze(1)
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, *per_sample)
    return images.index_copy_(
        0, rows, operation(images.index_select(0, rows), *(values[rows] for values in per_sample))
    )


@torch.no_grad()
def _normalised(image: ImageSpec, canvases: Tensor, size: int, pixels: Callable[[slice], Tensor]) -> Tensor:
    """(pixels - mean) / std for the whole batch, block by block."""
    views = torch.empty(len(canvases), canvases.shape[1], size, size, device=canvases.device)
    mean = torch.tensor(image.mean, device=canvases.device).view(-1, 1, 1)
    std = torch.tensor(image.std, device=canvases.device).view(-1, 1, 1)
    for rows in _blocks(canvases, size):
        torch.sub(pixels(rows), mean, out=views[rows]).div_(std)
    return views


_BLOCK_VALUES = 1_000_000  # 4 MB of float32: a few of these fit the caches of current CPUs


def _blocks(canvases: Tensor, size: int) -> Iterator[slice]:
    """The rows to compute together: all on an accelerator, a cacheful on a CPU."""
    if canvases.device.type != "cpu":
        yield slice(0, len(canvases))
        return
    # glibc hands freed blocks back to the system, and pays for every page again, unless a larger one was freed
    # before: one freed block of just under its limit of 32 MB keeps the work space of all blocks in the process.
    torch.empty(31 << 20, dtype=torch.uint8)
    block = max(1, _BLOCK_VALUES // (canvases.shape[1] * max(size, canvases.shape[-1]) ** 2))
    for start in range(0, len(canvases), block):
        yield slice(start, start + block)
