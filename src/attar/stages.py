"""The stages of the road from images to a small model, as functions: pretrain, cluster, distill, evaluate, embed, load,
report.

Each mirrors the command of the same name, keyword for keyword. A stage reads from and writes into a run folder, so
that stages are joined by files on disk and each can be resumed or repeated alone.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import DataError, RecipeError, RunChanged, RunError
from attar.request import Request, check_outside, describe
from attar.train.run import RunFolder, check_writable
from attar.training import Run, train

if TYPE_CHECKING:
    import numpy as np

    from attar.data.images import Images, ImageSpec
    from attar.evaluation.evaluation import Evaluation
    from attar.evaluation.subject import Classifier
    from attar.exporting import ExportResult
    from attar.models.backbones import Backbone
    from attar.models.encoder import Encoder
    from attar.models.teachers import Teacher

logger = logging.getLogger("attar")


def pretrain(
    source: str | Path | np.ndarray | Images,
    *,
    out: str | Path,
    method: str = "simclr",
    backbone: str = "resnet18",
    recipe: str | None = None,
    settings: dict[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    test_size: int | None = None,
    channels: int | str = "auto",
    stem: str = "standard",
    pretrained: bool = False,
    init: str | Path | None = None,
    lr: float | None = None,
    labels: str | None = None,
    label_fraction: float | None = None,
    label_noise: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    compile: bool = False,
    checkpoint_activations: bool = False,
    shard: bool = False,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a backbone on unlabelled images by a method of self-supervised learning.

    Args:
        source: a folder, a .csv, .parquet or .npz file, "torchvision:NAME", "digits", "elpv", "hf:NAME",
            "shards:PATTERN", or an array of images uint8 (N, H, W[, C]).
        out: the run folder; must be new, unless resume.
        method, recipe: as listed by `attar methods`. Without a recipe: the method's one for images of this size
            ("small" up to 64 pixels) and this kind of network, otherwise its first.
        settings: fields of the recipe to replace, e.g. {"temperature": 0.2}.
        epochs, minutes: length of training; minutes measures the speed first, then fixes the number of epochs.
        batch_size: images per optimiser step over all processes. lr: peak learning rate, instead of the recipe's
            base_lr scaled by the batch.
        image_size: pixels a side; default 224, or the size of the images where they are smaller. test_size: of what the
            finished network looks at, for convnets; default: image_size. Crops show objects larger than whole images
            do, so that somewhat more suits it (Touvron et al. 2019, arXiv:1906.06423), and training is cheaper. Crops
            are cut from images of the larger of the two.
        init: a finished run whose backbone's weights are the first ones; its network may have another name if all
            parameters fit (bnn_resnet20_real starts bnn_resnet20).
        channels: 1, 3, … or "auto". stem: "small" gives networks made for 224 pixels a stem for small images.
        labels: "folder" or a column name. Methods with labels (attar methods says which) are trained on them;
            for all others they are only for the online kNN.
        label_fraction, label_noise: for methods with labels: train on this share of every class only; make a share of
            the training labels wrong, "symmetric:0.4" (any other class) or "asymmetric:0.4" (the next class).
        accumulate: forward passes per optimiser step. checkpoint_activations: compute them again in the backward
            pass instead of keeping them; for networks that do not fit otherwise. shard: spread weights, gradients and
            moments over the processes of torchrun (FSDP2); for networks that still do not fit.

    Returns:
        The run; its weights lie in out/backbone.safetensors.

    Raises:
        AttarError: for anything a user can cause, before training starts where possible.
    """
    return train(Request(**locals()))


def distill(
    source: str | Path | np.ndarray | Images,
    *,
    teacher: str | Path | Teacher | Sequence[str | Path | Teacher],
    out: str | Path,
    method: str = "seed",
    backbone: str = "resnet18",
    recipe: str | None = None,
    settings: dict[str, Any] | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    test_size: int | None = None,
    teacher_size: int | None = None,
    channels: int | str = "auto",
    stem: str = "standard",
    pretrained: bool = False,
    init: str | Path | None = None,
    lr: float | None = None,
    labels: str | None = None,
    label_fraction: float | None = None,
    label_noise: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    compile: bool = False,
    checkpoint_activations: bool = False,
    shard: bool = False,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a small student on what a frozen teacher says about unlabelled images.

    Args:
        teacher: a run folder, a timm model whose weights are at hand, NAME@FILE (a network with the weights of a file,
            "resnet50@weights/resnet50.pth"), "hog", or a folder made by `cluster`. Several, in
            a list or joined by commas, answer side by side, each with the same say.
        teacher_size: pixels a side to which the student's images are enlarged or reduced for the teacher; of runs, for
            convnets. Default: a run's own size (its test_size where it has one), the student's for a name.
        Everything else as in `pretrain`; image_size and channels default to the teacher's.
    """
    return train(Request(**locals()))


def cluster(
    run: str | Path,
    source: str | Path | np.ndarray | Images,
    *,
    out: str | Path,
    num_clusters: int | None = None,
    layer: str | None = None,
    grid: int | None = None,
    pca_dim: int | None = None,
    normalise: bool | None = None,
    kmeans_iterations: int | None = None,
    images_per_cluster: int | None = None,
    min_cluster_size: int | None = None,
    image_size: int | None = None,
    labels: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Cluster images by the features of a network; or, with clusters that are made, name those of other images.

    Args:
        run: a run folder, a timm name, NAME@FILE, "hog" or "pixels"; or a folder made by this function, whose centroids
            are then kept: the settings of clusters are refused.
        out: the folder: clusters.npz and clusters.json, the network, pictures, and labels.parquet with a row an image
            (index, path, cluster, distance to the centroid). It is a teacher for `cluster_transfer`; labels.parquet
            is a source with labels="cluster".
        num_clusters: default: one for 50 images. layer, grid, pca_dim, normalise, kmeans_iterations,
            images_per_cluster, min_cluster_size: as in the recipe of cluster_transfer, whose defaults they have.
        labels: as in `pretrain`; only to say what is in a cluster.

    Returns:
        num_clusters, their sizes and what was dissolved, in numbers.
    """
    from attar.data.cache import cache_folder
    from attar.data.load import load_images
    from attar.models.clusters import ClusterSettings, find_clusters, is_clusters, load_clusters
    from attar.models.teachers import load_teacher
    from attar.reporting.gallery import collect_cluster_gallery
    from attar.train.distributed import choose_device

    given = {name: value for name, value in locals().items() if name in _OF_CLUSTERS and value is not None}
    out = Path(out)
    check_outside(out, source)
    if (out / "backbone.json").exists():
        raise RunChanged(f"{out} already holds clusters, or a run.", "Choose another --out; nothing was changed.")
    made = load_clusters(run) if is_clusters(run) else None
    if made is not None:
        check_not_about_made(run, given)
    reading: dict[str, Any] = {"labels": labels, "cache": cache, "workers": workers, "progress": progress}
    image_size = image_size or _size_for(run, source, **reading)
    teacher = made.teacher if made else load_teacher(run, output="features", image_size=image_size)
    if image_size is not None and image_size != teacher.image.size:
        raise RecipeError(
            f"--image-size {image_size} would be ignored: {run} takes images of {teacher.image.size} pixels. Leave it "
            "out."
        )
    images = load_images(
        source,
        image_size=teacher.image.size,
        channels=teacher.image.channels,
        **reading,
    )
    where: dict[str, Any] = {
        "folder": Path(cache).expanduser() if cache else cache_folder(),
        "device": choose_device(device),
        "show_progress": progress,
    }
    if made is None:
        given.setdefault("num_clusters", max(len(images) // 50, 2))
        made = find_clusters(teacher, images, ClusterSettings(**given, seed=seed), **where)
    named = made.assign(images, **where)
    out.mkdir(parents=True, exist_ok=True)
    _write_labels(out / "labels.parquet", source, images, named.cluster, named.distance)
    collect_cluster_gallery(images, named.cluster, named.distance, out=out / "gallery.npz")
    numbers = {**made.numbers, **named.numbers()}
    (out / "labels.json").write_text(json.dumps(numbers, indent=1))
    made.save(out)  # last: its presence means complete
    return numbers


def check_not_about_made(run: Any, given: Iterable[str]) -> None:
    """Raises RecipeError for arguments of `cluster` that clusters which are made already would ignore."""
    if ignored := [name for name in _OF_CLUSTERS if name in given]:
        raise RecipeError(
            f"{', '.join(ignored)}: it would be ignored, because the clusters of {run} are made already. Leave it out."
        )


def check_clustering(arguments: dict[str, Any]) -> None:
    """What the arguments of `cluster` alone show to be wrong, before there are images."""
    from attar.models.clusters import ClusterSettings
    from attar.train.distributed import choose_device

    given = {name: value for name, value in arguments.items() if name in _OF_CLUSTERS and value is not None}
    ClusterSettings(**{"num_clusters": 2, **given}).check(sys.maxsize)
    choose_device(arguments.get("device", "auto"))


_OF_CLUSTERS = (
    "num_clusters",
    "layer",
    "grid",
    "pca_dim",
    "normalise",
    "kmeans_iterations",
    "images_per_cluster",
    "min_cluster_size",
)


def _write_labels(out: Path, source: Any, images: Images, cluster: np.ndarray, distance: np.ndarray) -> None:
    """A row an image; paths that lead somewhere are absolute, so that the table can be trained from."""
    import pyarrow as pa
    import pyarrow.parquet

    where = [str(w) for w in images.where] if len(images.where) else [""] * len(images)
    if isinstance(source, (str, Path)) and Path(source).exists():
        root = Path(source) if Path(source).is_dir() else Path(source).parent
        where = [str(path) if (path := root.absolute() / w).is_file() else w for w in where]
    columns = {"index": images.index, "path": where, "cluster": cluster, "distance": distance}
    pyarrow.parquet.write_table(pa.table(columns), out)


def evaluate(
    run: str | Path,
    labelled: str | Path | Images,
    *,
    test: str | Path | Images | None = None,
    protocols: Sequence[str] = ("knn", "linear"),
    teacher: str | Path | None = None,
    controls: bool | Sequence[str] = True,
    labels: str | None = None,
    label_noise: str | None = None,
    num_untrained: int | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """Measure a backbone on labelled images beside its controls, and say whether it worked.

    Args:
        run: a run folder or a network kept in one, as RUN/teacher (evaluation.json is written there), a timm name,
            NAME@FILE, "hog" or "pixels".
        labelled: images with labels; they train the probes. test: images to measure on; without it, a stratified
            20 % of `labelled`, fixed by the seed, also for protocols that learn nothing (classifier, exits,
            retrieval), so that all rows are about the same images.
        protocols: knn, linear, mlp, finetune, low_label, few_shot, layers (a linear probe on every map), classifier
            (the run's own, with its calibration and its agreement with the teacher), exits (the run's early exits:
            accuracy against work, at each exit and for thresholds), retrieval (recall@k); settings after a colon, e.g.
            "low_label:0.01,0.1".
        controls: True for all of random_init, pixels, hog and pretrained; False; or some of these.
        teacher: also measured; default: the teacher the run was distilled from, if there are any controls.
        labels: "folder" or a column; default: what the source has.
        label_noise: "symmetric:0.4", "asymmetric:0.4": make a share of the labels that probes learn from wrong.
        num_untrained: networks of random_init (default 5), each measured like the run; 1 is faster, and does not know
            how much they differ.

    Returns:
        rows {protocol, metric, value, low, high, settings, subject} and a verdict in words.
    """
    from attar.evaluation.controls import named_controls
    from attar.evaluation.evaluation import evaluate as measure
    from attar.evaluation.protocols import parse_protocol
    from attar.models.saved import load_backbone

    folder = RunFolder(Path(run))
    check_evaluation(protocols, device, precision, label_noise, controls, num_untrained)
    size = _size_for(run, labelled, labels=labels or "auto", cache=cache, workers=workers, progress=progress)
    backbone, image, provenance = load_backbone(run, image_size=size)
    classifier = _classifier_of(run)
    if classifier is None and any(parse_protocol(p).name == "classifier" for p in protocols):
        raise RecipeError(
            f"classifier: {run} kept no classifier. This protocol measures runs that were trained with one (methods "
            "with labels, see attar methods); for all others take linear or finetune."
        )
    exits = _exits_of(Path(run)) if any(parse_protocol(p).name == "exits" for p in protocols) else {}
    train = _labelled(labelled, image, labels, cache, workers, progress)
    held_out = None if test is None else _labelled(test, image, labels, cache, workers, progress)
    taught_by, omitted = _teacher_of(provenance, teacher, image) if teacher or controls else (None, {})
    data = provenance.get("data") or {}
    result = measure(
        backbone,
        image,
        train,
        held_out,
        protocols=tuple(protocols),
        controls=named_controls(controls),
        teacher=taught_by and taught_by[:2],
        classifier=classifier,
        teacher_classifier=taught_by and taught_by[2],
        exits=exits,
        seed=seed,
        device=device,
        precision=precision,
        label_noise=label_noise,
        num_untrained=num_untrained,
        trained_on=data.get("source_digest") or data.get("digest"),
        trained_with_labels=data.get("labels_digest") is not None,
        omitted=omitted,
        progress=progress,
    )
    if folder.is_part or (folder / "recipe.yaml").is_file():
        if os.access(folder.path, os.W_OK):
            _keep(folder, result)
        else:
            logger.warning("%s is not writable, so this evaluation is not kept there.", folder.path)
    return result


def check_evaluation(
    protocols: Sequence[str],
    device: str,
    precision: str,
    label_noise: str | None = None,
    controls: bool | Sequence[str] = True,
    num_untrained: int | None = None,
) -> None:
    """What the request of an evaluation alone shows to be wrong, before images are decoded."""
    from attar.evaluation.controls import check_controls, named_controls
    from attar.evaluation.protocols import check_label_noise, parse_protocol
    from attar.train.distributed import choose_device
    from attar.train.loop import choose_precision

    check_controls(named_controls(controls), num_untrained)
    check_label_noise([parse_protocol(protocol) for protocol in protocols], label_noise)
    choose_precision(precision, choose_device(device))


def _size_for(run: str | Path, source: Any, **reading: Any) -> int | None:
    """HOG, pixels and files of weights that nobody published do not say what size they are for: that of the images, 224
    at most. None for all others."""
    from attar.data.load import load_images
    from attar.models.handcrafted import NAMES
    from attar.models.weights_file import has_no_size

    if str(run) not in NAMES and not has_no_size(run):
        return None
    return min(load_images(source, image_size=224, **reading).canvas_size, 224)


def _classifier_of(run: str | Path) -> Classifier | None:
    """The classifier a run kept, with the names of its classes; numbers where these had none."""
    from attar.evaluation.subject import Classifier
    from attar.models.saved import classes_of, load_head

    head = load_head(Path(run), "classifier")
    if head is None:
        return None
    return Classifier(head, classes_of(Path(run)) or tuple(map(str, range(head.num_features_out))))


def _exits_of(run: Path, asked: str = "exits") -> dict[str, tuple[Backbone, Classifier]]:
    """The early exits that a run kept, from the shallowest. asked: what wants them, for the error."""
    from attar.models.saved import load_backbone

    found = {}
    for folder in sorted(run.glob("exit[1-9]")):
        classifier = _classifier_of(folder)
        if classifier is not None:
            found[folder.name] = (load_backbone(folder)[0], classifier)
    if not found:
        raise RecipeError(f"{asked}: {run} kept no early exits; train it by a method that does (byot).")
    return found


def _teacher_of(
    provenance: dict[str, Any], given: str | Path | None, image: ImageSpec
) -> tuple[tuple[Any, ImageSpec, Classifier | None] | None, dict[str, str]]:
    """The teacher to measure: the one given, or the one the run was distilled from; or why it is left out.

    A network by name is built for the size it taught with, and one given here for the run's.
    """
    from attar.models.saved import load_backbone
    from attar.models.weights_file import is_there

    own = (provenance.get("teacher") or {}).get("name")
    name = given or own
    if name is None:
        return None, {}
    if given is None and "," in str(name) and not is_there(name):
        return None, {"teacher": f"they were several, {name} (--teacher names one to measure)"}
    if given is None and not (name in ("hog", "pixels") or is_there(name)):
        return None, {"teacher": f"it was {name}, which is not there any more (--teacher names another)"}
    size = (provenance.get("teacher_size") if given is None else None) or image.size
    backbone, expected, _ = load_backbone(name, image_size=size, channels=image.channels)
    return (backbone, expected, _classifier_of(name)), {}


def _keep(folder: RunFolder, result: Evaluation) -> None:
    """Write evaluation.json: joined with what was measured on the same data before, beside what was on others."""
    from attar.evaluation.evaluation import Evaluation

    saved, details = folder.read_json("evaluation.json"), folder.read_json("evaluation_details.json")
    if saved is not None and details is not None:
        if details.get("data") == result.details["data"]:
            result = result.joined(Evaluation(saved["rows"], saved["verdict"], details))
        else:
            number = next(i for i in itertools.count(1) if not (folder / f"evaluation-{i}.json").exists())
            logger.info("The evaluation on other images or labels is kept as evaluation-%d.json.", number)
            folder.write_json(f"evaluation-{number}.json", saved)
    folder.write_json("evaluation.json", result.to_json())
    folder.write_json("evaluation_details.json", result.details)


def _labelled(
    source: Any, image: ImageSpec, labels: str | None, cache: Any, workers: int | None, progress: bool
) -> Images:
    from attar.data.load import load_images

    found = load_images(
        source,
        image_size=image.size,
        channels=image.channels,
        labels=labels or "auto",
        cache=cache,
        workers=workers,
        progress=progress,
    )
    if found.labels is None:
        raise DataError(
            f"{describe(source)} has no labels, or all its images lie in one class folder; at least two classes are "
            "needed. Give one sub-folder a class, or a table and --labels COLUMN."
        )
    return found


def embed(
    run: str | Path,
    source: str | Path | Images,
    *,
    out: str | Path,
    labels: str | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> tuple[int, int]:
    """Write one row an image (index, path, label and class where known, embedding) into a .parquet, .csv or .npz file.

    Returns:
        Number of rows and of features.
    """
    from attar.data.load import load_images
    from attar.evaluation.features import extract_features
    from attar.models.saved import load_backbone
    from attar.train.distributed import choose_device

    if Path(out).suffix not in (".parquet", ".csv", ".npz"):
        raise DataError(f"--out {out}: accepted are .parquet, .csv and .npz.")
    out = check_writable(out)
    reading: dict[str, Any] = {"labels": labels, "cache": cache, "workers": workers, "progress": progress}
    backbone, image, _ = load_backbone(run, image_size=_size_for(run, source, **reading))
    images = load_images(source, image_size=image.size, channels=image.channels, **reading)
    features = extract_features(backbone, images, image, device=choose_device(device), precision=precision)
    _write_table(out, images, features.values.cpu().numpy())
    return features.values.shape[0], features.values.shape[1]


def _write_table(out: Path, images: Images, values: np.ndarray) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    where = [str(w) for w in images.where] if len(images.where) else [""] * len(images)
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {"index": images.index, "path": np.array(where), "embedding": values}
        if images.labels is not None:
            arrays |= {"label": images.labels, "classes": np.array(images.classes)}
        np.savez(out, **arrays)
        return
    columns: dict[str, Any] = {"index": images.index, "path": where}
    if images.labels is not None:
        columns["label"] = images.labels
        if images.classes:
            columns["class"] = [images.classes[n] if n >= 0 else None for n in images.labels]
    if out.suffix == ".csv":
        columns |= {f"feature_{i}": values[:, i] for i in range(values.shape[1])}
        pyarrow.csv.write_csv(pa.table(columns), out)
        return
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    classes = {b"classes": json.dumps(list(images.classes)).encode()}
    pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(classes), out)


def load(run: str | Path) -> Encoder:
    """The trained backbone of a run, a packed file, NAME@FILE or a timm name, as a module in eval mode: float pixels in
    [0, 1] -> features."""
    from attar.models.encoder import Encoder
    from attar.models.saved import load_backbone

    backbone, image, _ = load_backbone(run)
    return Encoder(backbone, image).eval()


def export(
    run: str | Path,
    *,
    format: str = "onnx",
    classifier: bool = False,
    exits: bool = False,
    out: str | Path | None = None,
    calibration: str | Path | Images | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> ExportResult:
    """Write a run's backbone in a format to deploy, checked against the original.

    Args:
        format: onnx, safetensors, timm, int8 (ONNX, statically quantised), or packed (networks of binary weights:
            one bit a weight, loaded by `attar.load`).
        classifier: the class scores of the run's classifier beside the features: `logits` of the ONNX graph, or a
            second file.
        exits: one ONNX graph with all early exits of the run and the whole network; an image leaves at the first
            whose largest class probability reaches a threshold, and the rest is not computed.
        out: file to write; default: inside the run folder.
        calibration: images for int8.

    Returns:
        Size, parity, latency and a snippet that loads it; also written to export.json in the run folder.
    """
    from attar.data.load import load_images
    from attar.exporting import FORMATS, export_backbone
    from attar.exporting_exits import export_exits
    from attar.models.saved import load_backbone

    check_export(format=format, classifier=classifier, exits=exits, calibration=calibration)
    backbone, image, provenance = load_backbone(run)
    own = _classifier_of(run)
    if classifier and own is None:
        raise RecipeError(
            f"--classifier: {run} kept no classifier. Runs that were trained with one have it (methods with labels, "
            "see attar methods; NAME@FILE drops the file's); train one by method finetune (--init), or export the "
            "features alone."
        )
    images = calibration
    if calibration is not None:
        images = load_images(
            calibration, image_size=image.size, channels=image.channels, cache=cache, progress=progress
        )
    if out is None and not Path(run).is_dir():
        raise RunError(f"{run} is no run folder that the export could be written into; name a file with --out.")
    name = "exits.onnx" if exits else f"backbone{FORMATS.get(format, '')}"
    target = check_writable(out if out is not None else Path(run) / name)
    if format == "safetensors" and out is None:
        target = Path(run) / "export" / "backbone.safetensors"  # the run's own file of that name stays what it is
    if exits:
        early = _exits_of(Path(run), "--exits")
        assert own is not None
        result = export_exits(backbone, image, early, own, out=target)
    else:
        result = export_backbone(
            backbone,
            image,
            format=format,
            out=target,
            calibration=images,  # type: ignore[arg-type]
            provenance=provenance,
            classifier=own if classifier else None,
        )
        if own is not None and not classifier:
            result = replace(result, left_out=_left_out(Path(run), own))
    if (Path(run) / "recipe.yaml").is_file():
        folder = RunFolder.open(run)
        exports = folder.read_json("export.json") or {}
        folder.write_json("export.json", {**exports, "exits" if exits else format: result.to_json()})
    return result


def check_export(
    *, format: str = "onnx", classifier: bool = False, exits: bool = False, calibration: Any = None, **_: Any
) -> None:
    """What the request of an export alone shows to be wrong."""
    if not exits:
        return
    if format != "onnx":
        raise RecipeError(f"--exits is one ONNX graph; it cannot be {format}. Leave out --format {format}, or --exits.")
    for given, option, why in (
        (classifier, "--classifier", "the exits and the whole network give class scores in any case"),
        (calibration is not None, "--calibration", "it belongs to int8, and --exits to onnx"),
    ):
        if given:
            raise RecipeError(f"{option} would be ignored beside --exits: {why}. Leave one of them out.")


def _left_out(run: Path, classifier: Classifier) -> str:
    """What an export of features alone leaves out, in a line."""
    text = f"left out: the run's classifier, {len(classifier.classes)} classes; --classifier exports it, too"
    number = len(list(run.glob("exit[1-9]")))
    return text + (f". Its {number} early exits in one graph: --exits" if number else "")


def report(runs: Sequence[str | Path], *, out: str | Path = "report.html") -> Path:
    """Write one self-contained HTML page about runs and clusters; its subject is the first run that was evaluated.

    Returns the path of the page.
    """
    from attar.reporting.page import write_report

    return write_report([Path(run) for run in runs], check_writable(out))
