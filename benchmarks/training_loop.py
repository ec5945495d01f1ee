"""Whole training loops, images per second: attar's SimCLR against lightly's, same backbone, batch, data and losses.

    python benchmarks/training_loop.py [--data FILE.npz] [--images 2048] [--size 32] [--rounds 3] [--device cpu]
        [--precision bf16] [--compile]

Both train torchvision's ResNet-18 shape (timm's `resnet18`, small stem) with SimCLR at the same batch and precision
from the same pictures; one epoch each, alternating. lightly runs as its documentation has it: a torchvision-style
transform of PIL images in a DataLoader with as many workers as there are cores. It is needed for this benchmark only:
pip install lightly. --compile adds a row: attar with its backbone compiled by torch.compile, beside both as they were;
compiling itself is done before the clock starts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from attar import stages
from attar.data.load import load_images


def pictures(data: str | None, number: int, size: int) -> np.ndarray:
    """uint8 (N, S, S, 3): real ones from an .npz, or noise (for which decoding and views cost the same)."""
    if data is None:
        print("no --data: random noise stands in for pictures")
        return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)
    images = load_images(data, image_size=size, progress=False)
    return images.batch(np.arange(number)).canvases.permute(0, 2, 3, 1).contiguous().numpy()


def attar_epoch(
    images: np.ndarray, size: int, batch: int, device: str, precision: str, *, compile: bool = False
) -> float:
    """Images per second over the epoch, from the loop's own clock."""
    with tempfile.TemporaryDirectory() as folder:
        run = stages.pretrain(
            images,
            out=Path(folder) / "run",
            method="simclr",
            recipe="small",
            backbone="resnet18",
            stem="small",
            image_size=size,
            epochs=1,
            batch_size=batch,
            device=device,
            precision=precision,
            compile=compile,
            progress=False,
        )
        assert run.fit is not None
        return run.fit.images_per_second


def lightly_epoch(images: np.ndarray, size: int, batch: int, device: str, precision: str) -> float:
    import timm
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform = SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.0)

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> list[torch.Tensor]:
            return transform(Image.fromarray(images[i]))

    backbone = timm.create_model("resnet18", num_classes=0)
    backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    backbone.maxpool = nn.Identity()
    model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128)).to(device)
    loader = DataLoader(Pictures(), batch, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1)
    optimiser = torch.optim.SGD(model.parameters(), 0.06, momentum=0.9, weight_decay=5e-4)
    criterion = NTXentLoss(temperature=0.5)
    began, seen = time.monotonic(), 0
    for first, second in loader:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            z1, z2 = model(first.to(device)), model(second.to(device))
        loss = criterion(z1.float(), z2.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        float(loss.detach())
        seen += len(first)
    return seen / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="also measure attar with a compiled backbone")
    given = parser.parse_args()
    images = pictures(given.data, given.images, given.size)
    epochs: dict[str, Callable[..., float]] = {"attar": attar_epoch}
    if given.compile:
        epochs["attar, compiled"] = partial(attar_epoch, compile=True)
        # the first network compiles; the later ones of the same shape find that code
        epochs["attar, compiled"](images[: 4 * given.batch], given.size, given.batch, given.device, given.precision)
    epochs["lightly"] = lightly_epoch
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(given.rounds):
        for name, epoch in epochs.items():
            rates[name].append(epoch(images, given.size, given.batch, given.device, given.precision))
    for name, values in rates.items():
        print(f"{name:<16} {statistics.median(values):8.1f} images/s  (range {min(values):.1f} to {max(values):.1f})")
    lightly = rates.pop("lightly")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, lightly)]
        print(f"{name} / lightly: {statistics.median(ratios):.2f} x  (range {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
