"""Two SimCLR views at 224 px from a JPEG folder, second epoch on: images per second of attar against lightly.

    python benchmarks/views_224px.py [--data FILE.parquet] [--images 384] [--rounds 5] [--workers 2]

A temporary folder of 500 x 375 JPEG files (quality 90) is written: enlarged pictures of --data, or smoothed noise.
attar packs it once (its first epoch, timed apart) into canvases of 280 px, then makes the views in this process with
as many threads as lightly has workers. lightly runs as documented, decoding every file in every epoch: LightlyDataset,
SimCLRTransform and a DataLoader whose workers persist. Epochs alternate; each one ends in float32 batches of 64.
lightly is needed for this benchmark only: pip install lightly.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attar.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSpec
from attar.data.load import load_images
from attar.views.augmentation import Augmentation
from attar.views.draws import Draws
from attar.views.makers import MakeTwoViews

SIZE, BATCH, FILE_SIZE = 224, 64, (500, 375)


def write_folder(folder: Path, data: str | None, number: int) -> None:
    if data is None:
        print("no --data: smoothed noise stands in for pictures")
        small: Iterable[np.ndarray] = np.random.default_rng(0).integers(0, 256, (number, 48, 64, 3), dtype=np.uint8)
    else:
        images = load_images(data, image_size=128, progress=False)
        small = images.batch(np.arange(min(number, len(images)))).canvases.permute(0, 2, 3, 1).numpy()
    for i, pixels in enumerate(small):
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(FILE_SIZE, Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:05}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform
    from torch.utils.data import DataLoader

    torch.set_num_threads(arguments.workers)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        folder.mkdir()
        write_folder(folder, arguments.data, arguments.images)
        began = time.perf_counter()
        images = load_images(folder, image_size=SIZE, cache=Path(place) / "cache", progress=False)
        print(f"packing {len(images)} files once: {time.perf_counter() - began:.1f} s (canvas {images.canvas_size} px)")
        spec = ImageSpec(size=SIZE, channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        maker = MakeTwoViews(Augmentation(spec))  # the numbers of SimCLRTransform's defaults
        loader = DataLoader(
            LightlyDataset(str(folder), transform=SimCLRTransform(input_size=SIZE)),
            BATCH,
            shuffle=True,
            num_workers=arguments.workers,
            persistent_workers=arguments.workers > 0,
        )

        def attar_epoch(epoch: int) -> float:
            order = np.random.default_rng(epoch).permutation(len(images))
            began = time.perf_counter()
            for start in range(0, len(images), BATCH):
                batch = images.batch(order[start : start + BATCH])
                maker(batch, Draws(0, batch.index, epoch=epoch))
            return time.perf_counter() - began

        def lightly_epoch() -> float:
            began = time.perf_counter()
            for _ in loader:
                pass
            return time.perf_counter() - began

        attar_epoch(0), lightly_epoch()  # the first epoch: start of the workers, cold caches
        ours, theirs = [], []
        for epoch in range(1, arguments.rounds + 1):
            theirs.append(lightly_epoch())
            ours.append(attar_epoch(epoch))
    ratios = [slow / fast for slow, fast in zip(theirs, ours)]
    print(
        f"attar {len(images) / statistics.median(ours):,.1f} images/s, "
        f"lightly {len(images) / statistics.median(theirs):,.1f} images/s; "
        f"ratio median {statistics.median(ratios):.2f} (range {min(ratios):.2f} to {max(ratios):.2f}; target 2)"
    )


if __name__ == "__main__":
    main()
