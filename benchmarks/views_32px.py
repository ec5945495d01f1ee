"""Two SimCLR views at 32 px on one core: images per second of attar against lightly's per-image PIL transforms.

    python benchmarks/views_32px.py [--data FILE.npz] [--images 2048] [--rounds 7]

Same pictures, same distribution of views, same normalisation; both end in float32 batches of 512. Rounds alternate
in one process with one thread. lightly runs as documented: SimCLRTransform on PIL images in a DataLoader, here with
0 workers. It is needed for this benchmark only: pip install lightly.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from attar.data.images import IMAGENET_MEAN, IMAGENET_STD, Images, ImageSpec
from attar.data.load import load_images
from attar.views.augmentation import Augmentation
from attar.views.draws import Draws
from attar.views.makers import MakeTwoViews

SIZE, BATCH = 32, 512
RECIPES = {  # name: (strength of the jitter, probability of blur)
    "SimCLR, ImageNet recipe": (1.0, 0.5),
    "SimCLR, CIFAR recipe": (0.5, 0.0),
}


def pictures(data: str | None, number: int) -> Images:
    if data is None:
        print("no --data: random noise stands in for pictures (the work is the same)")
        noise = np.random.default_rng(0).integers(0, 256, (number, SIZE, SIZE, 3), dtype=np.uint8)
        return load_images(noise, image_size=SIZE, progress=False)
    images = load_images(data, image_size=SIZE, progress=False)
    return images.subset(np.arange(min(number, len(images))))


def attar_round(images: Images, strength: float, blur: float, epoch: int) -> float:
    """Seconds for one pass."""
    spec = ImageSpec(size=SIZE, channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    s = strength
    maker = MakeTwoViews(Augmentation(spec, jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), blur=blur))
    order = np.random.default_rng(epoch).permutation(len(images))
    began = time.perf_counter()
    for start in range(0, len(images), BATCH):
        batch = images.batch(order[start : start + BATCH])
        maker(batch, Draws(0, batch.index, epoch=epoch))
    return time.perf_counter() - began


def lightly_round(pixels: np.ndarray, strength: float, blur: float) -> float:
    """Seconds for one pass."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform = SimCLRTransform(input_size=SIZE, cj_strength=strength, gaussian_blur=blur)

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, i: int) -> list[torch.Tensor]:
            return transform(Image.fromarray(pixels[i]))

    loader = DataLoader(Pictures(), BATCH, shuffle=True, num_workers=0)
    began = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = pictures(arguments.data, arguments.images)
    pixels = images.batch(np.arange(len(images))).canvases.permute(0, 2, 3, 1).contiguous().numpy()
    for name, (strength, blur) in RECIPES.items():
        attar_round(images, strength, blur, epoch=0)  # warm up
        ours, theirs = [], []
        for epoch in range(1, arguments.rounds + 1):
            theirs.append(lightly_round(pixels, strength, blur))
            ours.append(attar_round(images, strength, blur, epoch))
        ratios = [slow / fast for slow, fast in zip(theirs, ours)]
        print(
            f"{name}: attar {len(images) / statistics.median(ours):,.0f} images/s, "
            f"lightly {len(images) / statistics.median(theirs):,.0f} images/s; "
            f"ratio median {statistics.median(ratios):.1f} (range {min(ratios):.1f} to {max(ratios):.1f}; target 8)"
        )


if __name__ == "__main__":
    main()
