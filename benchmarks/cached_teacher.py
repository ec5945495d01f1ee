"""A distillation step with a cached teacher against the student's own supervised step, alternating in one run.

    python benchmarks/cached_teacher.py [--student resnet20] [--teacher resnet18] [--size 32] [--batch 128]

Supervised: one view, backbone, linear classifier, cross-entropy. Distillation: SEED (recipe "small", queue 4,096) on
the same view; the teacher's answers come from a table, or live for comparison. Random pictures: they cost what real
ones do.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attar.data.load import load_images
from attar.data.statistics import image_spec
from attar.methods.base import Method, Progress, Setup, StepOutput, load, resolve_recipe
from attar.models.backbones import build_backbone
from attar.models.teachers import CachedTeacher, FrozenTeacher
from attar.train.distributed import choose_device
from attar.train.loop import choose_precision, views_of
from attar.train.optimisers import build_optimiser


class Supervised(Method):
    """Cross-entropy of a linear classifier: what a step of the student alone costs."""

    def __init__(self, recipe, backbone, setup):  # type: ignore[no-untyped-def]
        super().__init__(recipe)
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, 100)

    def step(self, batch, progress):  # type: ignore[no-untyped-def]
        return StepOutput(F.cross_entropy(self.head(self.backbone(batch.images)).float(), batch.index % 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    pixels = np.random.default_rng(0).integers(0, 256, (1024, given.size, given.size, 3), np.uint8)
    images = load_images(pixels, image_size=given.size)
    image = image_spec(images, given.size)
    frozen = FrozenTeacher(build_backbone(given.teacher, image_size=given.size, stem="small"), image)
    table = np.random.default_rng(0).normal(size=(1, 1024, frozen.num_features_out)).astype(np.float16)
    module = load("seed")
    recipe = resolve_recipe("seed", "small", {"batch_size": given.batch})
    make_views = module.views(recipe, image)

    def build(kind, teacher):  # type: ignore[no-untyped-def]
        backbone = build_backbone(given.student, image_size=given.size)
        method = kind(recipe, backbone, Setup(image=image, images=images, teacher=teacher)).to(device).train()
        return method, build_optimiser(method, recipe)

    arms = {
        "supervised": build(Supervised, None),
        "cached teacher": build(module.METHOD, CachedTeacher(table, digest="")),
        "live teacher": build(module.METHOD, frozen),
    }
    half = choose_precision("auto", device) == torch.bfloat16
    times: dict[str, list[float]] = {name: [] for name in arms}
    progress = Progress(step=0, total_steps=100, epoch=0, total_epochs=1)
    for i in range(given.rounds + 2):
        canvases = images.batch((np.arange(given.batch) + i * given.batch) % 1024)
        for name, (method, optimiser) in arms.items():
            began = time.perf_counter()
            batch = views_of(canvases.to(device), make_views, 0, 0)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                output = method(batch, progress)
            output.loss.backward()
            optimiser.step()
            method.after_step(progress)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i >= 2:
                times[name].append(time.perf_counter() - began)
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times["supervised"])]
        print(
            f"{name:<15} {1000 * statistics.median(values):8.1f} ms a step   "
            f"{statistics.median(ratios):.2f} x the supervised step ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
