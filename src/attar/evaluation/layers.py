"""Per-layer linear probes: what each map of the network knows, from the input to the output.

Every map is average-pooled to a grid on which about 9,000 values remain, and goes through the probe of linear.py.
Zhang et al. 2016, arXiv:1603.08511 (9,000 to 10,000 values a layer of AlexNet); 2017, arXiv:1611.09842.

Differs: there the probes are trained by SGD on crops of training images; here on the central view, without
augmentation, as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attar.data.images import Images
from attar.data.splits import label_fraction
from attar.errors import AttarError
from attar.evaluation.features import Features, extract_features
from attar.evaluation.linear import linear_probe
from attar.evaluation.subject import Outcome, Protocol, Subject
from attar.models.handcrafted import NAMES as HANDCRAFTED
from attar.models.layers import LayerFeatures

MOST_VALUES = 500_000_000  # training features held at once: 2 GB of float32


@dataclass(frozen=True)
class Layers(Protocol):
    """values: about how many a layer is pooled to. solver: as of `linear`.

    Where the features of all training images would be more than 2 GB for a layer, the probe is fitted on a share of
    each class that is not (`probe_images` in the settings).
    """

    values: int = 9000
    solver: str = "auto"

    name = "layers"
    bare = "values"

    def run(self, subject: Subject) -> list[Outcome]:
        """One outcome a layer, the deepest first: it is what a verdict rests on where nothing else was measured."""
        if self.values < 1:
            raise AttarError(f"layers: values={self.values} is not accepted; give 1 or more, e.g. 9000.")
        every = LayerFeatures(subject.backbone, values=self.values)  # type: ignore[arg-type]
        names, widths = every.layers, every.widths
        if subject.spec.name in HANDCRAFTED:  # a line to compare with: what goes before the last map is half a feature
            names, widths = names[-1:], widths[-1:]
        train = _that_fit(subject, max(widths))
        outcomes = []
        for group in _groups(list(zip(names, widths)), len(train)):
            maps = LayerFeatures(subject.backbone, [name for name, _ in group], values=self.values)  # type: ignore[arg-type]
            fitted, measured = (_features(subject, maps, images) for images in (train, subject.task.test))
            assert fitted.labels is not None
            parts = zip(group, fitted.values.split(maps.widths, dim=1), measured.values.split(maps.widths, dim=1))
            for (layer, width), values, test_values in parts:
                probe = linear_probe(
                    values.to(subject.task.device),
                    fitted.labels.to(subject.task.device),
                    num_classes=subject.task.num_classes,
                    solver=self.solver,
                    seed=subject.task.seed,
                )
                settings = {
                    "depth": names.index(layer) + 1,
                    "width": width,
                    "probe_images": len(train),
                    "solver": probe.solver,
                    "penalty": probe.penalty,
                }
                outcomes.append(Outcome([probe.scores(test_values.to(subject.task.device))], settings, layer))
        return outcomes[::-1]


def _that_fit(subject: Subject, width: int) -> Images:
    """The training images that the probes are fitted on, the same for every layer."""
    task = subject.task
    share = MOST_VALUES / (len(task.train) * width)
    return task.train if share >= 1 else task.train.subset(label_fraction(task.train_labels, share, task.seed))


def _groups(layers: list[tuple[str, int]], num_images: int) -> Iterator[list[tuple[str, int]]]:
    """Consecutive layers that fit into memory together, so that they share a pass over the images."""
    group: list[tuple[str, int]] = []
    for layer in layers:
        if group and (sum(width for _, width in group) + layer[1]) * num_images > MOST_VALUES:
            yield group
            group = []
        group.append(layer)
    yield group


def _features(subject: Subject, maps: LayerFeatures, images: Images) -> Features:
    task = subject.task
    return extract_features(
        maps,
        images,
        subject.image,
        device=task.device,
        batch_size=task.batch_size,
        precision=task.precision,
        progress=task.progress,
        description=f"{', '.join(maps.layers)} of {subject.name}",
    )
