"""The command line. Each command mirrors the function of the same name; nothing heavy is imported before it is needed.

stdout carries results only; progress and logs go to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from attar.claims import CLAIMS
from attar.errors import AttarError, RecipeError

app = typer.Typer(
    name="attar",
    help="From unlabelled images to a small vision model: pretrain, distil, evaluate, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Source = Annotated[
    str, typer.Argument(help="Folder, .csv/.parquet/.npz, torchvision:NAME, digits, elpv, hf:NAME, shards:PATTERN.")
]
Out = Annotated[Path, typer.Option("--out", help="Run folder to write; must be new, unless --resume.")]
Backbone = Annotated[
    str, typer.Option("--backbone", help="Any timm name, or a small net such as resnet20, resnet20x2, wrn_16_2.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="A named recipe of the method; see attar methods NAME.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="NAME=VALUE", help="Replace a field of the recipe; may be repeated."),
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")]
Minutes = Annotated[
    float | None, typer.Option("--minutes", help="Train about this long: measures the speed, then fixes the epochs.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per optimiser step, over all processes.")]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", help="Pixels a side. Default: 224, or smaller where the images are.")
]
TestSize = Annotated[
    int | None,
    typer.Option("--test-size", help="Pixels a side that the finished network looks at; default: as in training."),
]
TeacherSize = Annotated[
    int | None,
    typer.Option(
        "--teacher-size",
        help="Pixels a side that the teacher sees images with; default: a run's own, the student's for a name.",
    ),
]
Channels = Annotated[str, typer.Option("--channels", help="auto, 1, 3, …")]
Stem = Annotated[
    str, typer.Option("--stem", help="standard, or small: for small images in networks made for 224 pixels.")
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Start from the backbone's published weights.")]
Init = Annotated[
    Path | None, typer.Option("--init", help="Start from this run's backbone, or NAME@FILE; all must fit.")
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate; default: the recipe's, scaled by the batch.")
]
Labels = Annotated[str | None, typer.Option("--labels", help="folder, or the name of a column.")]
LabelFraction = Annotated[
    float | None, typer.Option("--label-fraction", help="Train with labels on this share of every class only.")
]
LabelNoise = Annotated[
    str | None, typer.Option("--label-noise", help="Make training labels wrong: symmetric:0.4, asymmetric:0.4.")
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Where decoded images are kept; default: the user's cache folder.")
]
Workers = Annotated[int | None, typer.Option("--workers", help="Threads that decode images.")]
Seed = Annotated[int, typer.Option("--seed")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Accumulate = Annotated[int, typer.Option("--accumulate", help="Forward passes per optimiser step.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the backbone with torch.compile.")]
CheckpointActivations = Annotated[
    bool,
    typer.Option("--checkpoint-activations", help="Less memory, a third more time: recompute in the backward pass."),
]
Shard = Annotated[
    bool, typer.Option("--shard", help="Under torchrun: spread weights and moments over the processes (FSDP2).")
]
CheckpointSteps = Annotated[
    int | None, typer.Option("--checkpoint-steps", help="Save every so many steps; default: every 5 minutes.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out where it was stopped.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]


@app.command()
def pretrain(
    source: Source,
    out: Out,
    method: Annotated[str, typer.Option("--method", help="See attar methods.")] = "simclr",
    backbone: Backbone = "resnet18",
    recipe: RecipeName = None,
    setting: Setting = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    test_size: TestSize = None,
    channels: Channels = "auto",
    stem: Stem = "standard",
    pretrained: Pretrained = False,
    init: Init = None,
    lr: LearningRate = None,
    labels: Labels = None,
    label_fraction: LabelFraction = None,
    label_noise: LabelNoise = None,
    cache: Cache = None,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    accumulate: Accumulate = 1,
    compile: Compile = False,
    checkpoint_activations: CheckpointActivations = False,
    shard: Shard = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    json_output: Json = False,
) -> None:
    """Train a backbone on unlabelled images."""
    from attar import stages

    run = stages.pretrain(
        source,
        out=out,
        method=method,
        backbone=backbone,
        recipe=recipe,
        settings=_settings(setting),
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        image_size=image_size,
        test_size=test_size,
        channels=_channels(channels),
        stem=stem,
        pretrained=pretrained,
        init=init,
        lr=lr,
        labels=labels,
        label_fraction=label_fraction,
        label_noise=label_noise,
        cache=cache,
        workers=workers,
        seed=seed,
        device=device,
        precision=precision,
        accumulate=accumulate,
        compile=compile,
        checkpoint_activations=checkpoint_activations,
        shard=shard,
        checkpoint_steps=checkpoint_steps,
        resume=resume,
    )
    _end_of_training(run, json_output)


@app.command()
def distill(
    source: Source,
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher", help="A run folder, a timm name, NAME@FILE with weights of your own, or hog; several: A,B."
        ),
    ],
    out: Out,
    method: Annotated[str, typer.Option("--method", help="See attar methods.")] = "seed",
    backbone: Backbone = "resnet18",
    recipe: RecipeName = None,
    setting: Setting = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    test_size: TestSize = None,
    teacher_size: TeacherSize = None,
    channels: Channels = "auto",
    stem: Stem = "standard",
    pretrained: Pretrained = False,
    init: Init = None,
    lr: LearningRate = None,
    labels: Labels = None,
    label_fraction: LabelFraction = None,
    label_noise: LabelNoise = None,
    cache: Cache = None,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    accumulate: Accumulate = 1,
    compile: Compile = False,
    checkpoint_activations: CheckpointActivations = False,
    shard: Shard = False,
    checkpoint_steps: CheckpointSteps = None,
    resume: Resume = False,
    json_output: Json = False,
) -> None:
    """Train a small student on what a frozen teacher says about unlabelled images."""
    from attar import stages

    run = stages.distill(
        source,
        teacher=teacher,
        out=out,
        method=method,
        backbone=backbone,
        recipe=recipe,
        settings=_settings(setting),
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        image_size=image_size,
        test_size=test_size,
        teacher_size=teacher_size,
        channels=_channels(channels),
        stem=stem,
        pretrained=pretrained,
        init=init,
        lr=lr,
        labels=labels,
        label_fraction=label_fraction,
        label_noise=label_noise,
        cache=cache,
        workers=workers,
        seed=seed,
        device=device,
        precision=precision,
        accumulate=accumulate,
        compile=compile,
        checkpoint_activations=checkpoint_activations,
        shard=shard,
        checkpoint_steps=checkpoint_steps,
        resume=resume,
    )
    _end_of_training(run, json_output)


@app.command()
def cluster(
    run: Annotated[
        str,
        typer.Argument(help="A run folder, a timm name, NAME@FILE, hog or pixels; or clusters that are made."),
    ],
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="Folder to write: centroids, labels.parquet, pictures.")],
    num_clusters: Annotated[int | None, typer.Option("--num-clusters", help="Default: one for 50 images.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="features, or a map of the network by name.")] = None,
    grid: Annotated[int | None, typer.Option("--grid", help="Average the map over so many cells a side.")] = None,
    pca_dim: Annotated[
        int | None, typer.Option("--pca-dim", help="Principal components to keep; default: all.")
    ] = None,
    normalise: Annotated[bool | None, typer.Option("--normalise/--as-it-is", help="To unit length first.")] = None,
    kmeans_iterations: Annotated[int | None, typer.Option("--kmeans-iterations")] = None,
    images_per_cluster: Annotated[
        int | None, typer.Option("--images-per-cluster", help="k-means sees at most so many times the clusters.")
    ] = None,
    min_cluster_size: Annotated[
        int | None, typer.Option("--min-cluster-size", help="Smaller clusters are dissolved.")
    ] = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    cache: Cache = None,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = "auto",
    json_output: Json = False,
) -> None:
    """Cluster images by the features of a network; or name the clusters of other images by clusters that are made."""
    from attar import stages

    numbers = stages.cluster(
        run,
        source,
        out=out,
        num_clusters=num_clusters,
        layer=layer,
        grid=grid,
        pca_dim=pca_dim,
        normalise=normalise,
        kmeans_iterations=kmeans_iterations,
        images_per_cluster=images_per_cluster,
        min_cluster_size=min_cluster_size,
        image_size=image_size,
        labels=labels,
        cache=cache,
        workers=workers,
        seed=seed,
        device=device,
    )
    if json_output:
        _print_json({"out": str(out), **numbers})
    else:
        without = f"; {numbers['without_images']} have none of these images" if numbers["without_images"] else ""
        print(
            f"{numbers['num_clusters']} clusters of {numbers['asked_for']} asked for ({numbers['empty']} empty, "
            f"{numbers['dissolved']} dissolved){without}; sizes {numbers['smallest']} to {numbers['largest']}, median "
            f"{numbers['median']:g}: {out}\nTo see what is in them: attar report {out}"
        )


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder, a timm name, NAME@FILE, hog or pixels.")],
    labelled: Annotated[str, typer.Argument(help="Labelled images: a folder of class folders, a table, …")],
    test: Annotated[
        str | None,
        typer.Option("--test", help="Measure on these; without it, 20 % of LABELLED."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            help="knn, linear, mlp, finetune, low_label, few_shot, layers, classifier, exits, retrieval; repeatable.",
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Also measure this teacher; default: the run's own.")
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Random initialisation, pixels, HOG.")
    ] = True,
    num_untrained: Annotated[
        int | None, typer.Option(help="Random initialisations to compare with, each measured like RUN; default: 5.")
    ] = None,
    labels: Labels = None,
    label_noise: LabelNoise = None,
    cache: Cache = None,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    json_output: Json = False,
) -> None:
    """Measure a backbone on labelled images, beside its controls, and say in words whether it worked."""
    from attar import stages

    result = stages.evaluate(
        run,
        labelled,
        test=test,
        protocols=tuple(protocol or ("knn", "linear")),
        teacher=teacher,
        controls=controls,
        labels=labels,
        label_noise=label_noise,
        num_untrained=num_untrained,
        cache=cache,
        workers=workers,
        seed=seed,
        device=device,
        precision=precision,
    )
    if json_output:
        _print_json(result.to_json())
    else:
        _console().print(result.table())
        print(result.verdict)


@app.command()
def embed(
    run: Annotated[str, typer.Argument(help="A run folder, a timm name, NAME@FILE, hog or pixels.")],
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="A .parquet, .csv or .npz file.")],
    labels: Labels = None,
    cache: Cache = None,
    workers: Workers = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json_output: Json = False,
) -> None:
    """Write the features of every image into a table."""
    from attar import stages

    rows, width = stages.embed(
        run, source, out=out, labels=labels, cache=cache, workers=workers, device=device, precision=precision
    )
    if json_output:
        _print_json({"out": str(out), "rows": rows, "features": width})
    else:
        print(f"{rows} rows of {width} features: {out}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method whole.")] = None,
    json_output: Json = False,
) -> None:
    """The catalogue; with a NAME: paper, formula, and every recipe with its sources."""
    from attar.methods import CATALOGUE

    if name is not None:
        from attar.catalogue import describe

        description = describe(name)
        if json_output:
            _print_json(description.to_json())
        else:
            print(description.text())
    elif json_output:
        _print_json(
            [{"name": e.name, "family": e.family, "paper": e.paper, "year": e.year} for e in CATALOGUE.values()]
        )
    else:
        width = max(len(n) for n in CATALOGUE)
        for e in CATALOGUE.values():
            print(f"{e.name:<{width}}  {e.family:<12} {e.year}  {e.paper}")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="The folder to examine.")],
    other: Annotated[
        Path | None, typer.Argument(help="Look for images of FOLDER that are also in here (leakage).")
    ] = None,
    image_size: ImageSize = None,
    json_output: Json = False,
) -> None:
    """What is in this folder, what is broken, and what to do."""
    from attar.data.doctor import doctor as examine

    findings = examine(folder, other, image_size=image_size, progress=not json_output)
    if json_output:
        _print_json(findings.to_json())
    else:
        print("\n".join(findings.lines()))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder; with --out also a name or NAME@FILE.")],
    format: Annotated[str, typer.Option("--format", help="onnx, safetensors, timm, int8 or packed.")] = "onnx",
    classifier: Annotated[
        bool, typer.Option("--classifier", help="Class scores beside the features, by the run's own classifier.")
    ] = False,
    exits: Annotated[
        bool, typer.Option("--exits", help="One ONNX graph with the early exits of a run (byot) and the whole.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default: inside the run folder.")] = None,
    calibration: Annotated[str | None, typer.Option("--calibration", help="Images to calibrate int8 with.")] = None,
    json_output: Json = False,
) -> None:
    """Write the backbone in a format to deploy, with a parity check and the measured latency."""
    from attar import stages

    result = stages.export(run, format=format, classifier=classifier, exits=exits, out=out, calibration=calibration)
    if json_output:
        _print_json(result.to_json())
    else:
        print(result.text())


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, e.g. teacher and student; clusters too.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
    json_output: Json = False,
) -> None:
    """One self-contained HTML page about one or several runs, and about clusters."""
    from attar import stages

    path = stages.report(runs, out=out)
    if json_output:
        _print_json({"report": str(path)})
    else:
        print(path)


@app.command(name="run")
def run_pipeline(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with `stages`; see docs/pipelines.md.")],
    json_output: Json = False,
) -> None:
    """Several stages as one pipeline; what is done already is not done again."""
    from attar.pipeline import run as run_stages

    result = run_stages(recipe)
    if json_output:
        _print_json(result.to_json())
    else:
        print(result.text())
    if result.interrupted:
        raise typer.Exit(130)


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(CLAIMS)}. Without a name: what each of them says.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="What to run on; default: digits, which everybody has.")
    ] = None,
    test: Annotated[
        str | None, typer.Option("--test", help="Labelled images to measure on; default: 20 % of --data.")
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="cpu (minutes on 2 cores) or gpu; some have more, which an unknown one lists.")
    ] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; default: one for each claim, size and data.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A network in the place of the one that a claim trains to teach.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Number of seeds; default: the claim's.")] = None,
    device: Device = "auto",
    json_output: Json = False,
) -> None:
    """The smallest honest experiment for a paper's central claim, with control arms and a verdict."""
    from attar.claims import reproduce as run_claim
    from attar.claims import said

    if name is None:
        given = {"data": data, "test": test, "out": out, "teacher": teacher, "seeds": seeds}
        if asked := [f"--{option}" for option, value in given.items() if value is not None]:
            raise RecipeError(f"{', '.join(asked)} would be ignored: name a claim; attar reproduce lists them.")
        if json_output:
            _print_json([{"name": n, "claim": said(n)[0], "source": said(n)[1]} for n in CLAIMS])
        else:
            width = max(map(len, CLAIMS))
            print("\n".join(f"{n:<{width}}  {said(n)[0]}" for n in CLAIMS))
        return
    result = run_claim(name, data=data, test=test, size=size, out=out, seeds=seeds, device=device, teacher=teacher)
    if json_output:
        _print_json(result.to_json())
    else:
        print(result.text())


@app.command()
def leaderboard(
    data: Annotated[
        str, typer.Argument(help="Labelled images; the labels only measure, and train the supervised upper line.")
    ] = "digits",
    test: Annotated[str | None, typer.Option("--test", help="Measure on these; default: 20 % of DATA.")] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names, joined by commas; default: all that need no teacher.")
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="quick (roughly 3 minutes a method, 22 a masked one), cpu (15 and 50) or gpu.")
    ] = "cpu",
    seeds: Annotated[int, typer.Option("--seeds", help="Trainings a method.")] = 1,
    epochs: Epochs = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the runs, and the table of them all.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    json_output: Json = False,
) -> None:
    """All methods at 32 pixels and an equal budget, beside their controls: a table and a plot. Skips what is done."""
    from attar.leaderboard import leaderboard as run_leaderboard

    names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    board = run_leaderboard(
        data,
        test=test,
        methods=names,
        size=size,
        seeds=seeds,
        epochs=epochs,
        out=out,
        device=device,
        precision=precision,
        compile=compile,
    )
    if json_output:
        _print_json(board.to_json())
    else:
        print(board.text())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and the report.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option("--minutes", help="Time for the two trainings together.")] = 6.0,
    seed: Seed = 0,
    device: Device = "auto",
    json_output: Json = False,
) -> None:
    """The whole road on 2,624 real images of solar cells, in a few minutes, ending with a verdict and a report."""
    from attar.demo import demo as run_demo

    result = run_demo(out, minutes=minutes, seed=seed, device=device)
    if json_output:
        _print_json(result.to_json())
    else:
        print(result.text())


def _settings(given: list[str] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise RecipeError(f"-s {item}: write it as NAME=VALUE, e.g. -s temperature=0.2.")
        settings[name.strip()] = value.strip()
    return settings


def _channels(given: str) -> int | str:
    if given == "auto":
        return given
    if not given.isdigit() or int(given) < 1:
        raise RecipeError(f"--channels {given}: accepted are auto, 1, 3 or another whole number.")
    return int(given)


def _end_of_training(run: Any, json_output: bool) -> None:
    if run.interrupted:
        logging.getLogger("attar").warning("Stopped before the end. Continue with the same command and --resume.")
        raise typer.Exit(130)
    if not _is_main_process():
        return
    if json_output:
        fit = run.fit
        summary = {} if fit is None else {"steps": fit.step, "seconds": fit.seconds, "collapsed": fit.collapsed}
        _print_json({"run": str(run.path), **summary})
    else:
        print(run.path)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _console() -> Any:
    from rich.console import Console

    return Console()


def main() -> None:
    """Entry point: errors a user can cause are one paragraph on stderr, not a traceback."""
    # Threads of PyTorch that wait by spinning take the cores from each other where other programs run too: measured
    # 3 to 220 ms instead of 1 ms a view. Those that never spin sleep and wake hundreds of times a step: a tenth of the
    # time of the demo's training (benchmarks/results/training.md). So they spin for some 50 microseconds, then sleep.
    # Set before torch is imported; a person's own setting stays.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Large tensors on huge pages (Linux; PyTorch, c10/core/impl/alloc_cpu.cpp): on a CPU a step of SimCLR takes a tenth
    # less time, features at 256 images of 64 pixels up to a half.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    logging.getLogger("attar").setLevel(logging.INFO if _is_main_process() else logging.ERROR)
    try:
        app()
    except AttarError as error:
        print(f"attar: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("attar: stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
