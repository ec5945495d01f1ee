"""Teachers that should teach nothing: the control arms of distillation."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attar.data.images import Images, ImageSpec
    from attar.models.backbones import Backbone
    from attar.models.teachers import FrozenTeacher


def copy_of(network: str, out: Path, *, image_size: int, channels: int) -> Path:
    """A folder below `out` for what this network teaches, and in it the network as `teacher`: all arms see the same,
    nothing is written where it lies, and another network has another folder. image_size, channels: for names."""
    from attar.models.saved import load_backbone, load_head, save_backbone, save_head

    backbone, image, about = load_backbone(network, image_size=image_size, channels=channels)
    digest = hashlib.sha256(f"{network} {about.get('sha256')} {image}".encode()).hexdigest()
    folder = out / f"taught-by-{digest[:8]}"
    if not (folder / "teacher" / "backbone.json").is_file():
        (folder / "teacher").mkdir(parents=True, exist_ok=True)
        head = load_head(Path(network), "projector")
        if head is not None:
            save_head(folder / "teacher", "projector", head)
        save_backbone(folder / "teacher", backbone, image, provenance={"name": network})
    return folder


def untrained_twin(run: Path, out: Path, images: Images, *, seed: int = 0) -> Path:
    """The network of a run at random initialisation, with its head, as a folder that can be loaded like a run.

    The statistics of batch norm, the head's too, are those of the images: with the initial ones it would be a straw
    man. Made once.
    """
    if (out / "backbone.json").is_file():
        return out
    import torch
    from torch import nn

    from attar.evaluation.controls import calibrate_batchnorm
    from attar.models.backbones import build_backbone
    from attar.models.heads import MLP
    from attar.models.saved import load_backbone, load_head, save_backbone, save_head

    trained, image, _ = load_backbone(run)
    trained_head = load_head(run, "projector")
    torch.manual_seed(seed)
    backbone = build_backbone(**trained.spec.to_json())
    head = MLP.from_spec(trained_head.spec) if trained_head else None
    network = nn.Sequential(backbone, head or nn.Identity())
    calibrate_batchnorm(network, images, image, device="cpu", batch_size=256)
    out.mkdir(parents=True, exist_ok=True)
    if head is not None:
        save_head(out, "projector", head)
    save_backbone(out, backbone, image, provenance={"name": f"{trained.spec.name} at random initialisation"})
    return out


class PermutedTeacher:
    """A teacher that answers for another image of the batch: the targets keep their distribution, not their meaning."""

    def __init__(self, teacher: FrozenTeacher):
        self.teacher = teacher
        self.name = "the teacher's answers, permuted within the batch"
        self.image = teacher.image
        self.num_features_out = teacher.num_features_out
        self.digest = f"permuted {teacher.digest}"

    def __call__(self, images: Tensor, index: Tensor, image: ImageSpec, view: int = 0) -> Tensor:
        return self.teacher(images, index, image, view).roll(1, dims=0)  # the order of a batch is random already

    @property
    def backbone(self) -> Backbone:
        return self.teacher.backbone

    @property
    def head(self) -> nn.Module | None:
        return self.teacher.head

    def features_and_map(self, images: Tensor, image: ImageSpec) -> tuple[Tensor, Tensor]:
        features, feature_map = self.teacher.features_and_map(images, image)
        return features.roll(1, dims=0), feature_map.roll(1, dims=0)
