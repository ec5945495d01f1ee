"""Several stages as one resumable pipeline, joined by files on disk.

    out: runs/solar
    stages:
      - name: teacher
        pretrain: {source: photos/, method: simclr, backbone: resnet18, epochs: 100}
      - name: student
        distill: {source: photos/, teacher: teacher, method: seed, backbone: resnet8}
      - evaluate: {run: student, labelled: labelled/, protocols: [knn, linear]}
      - export: {run: student, format: onnx}
      - report: {runs: [teacher, student], out: report.html}

Where `run`, `runs`, `teacher` or `init` names an earlier stage, that stage's folder (out/NAME) is meant. What is done
is not done again: a stage is skipped when its arguments, the images and runs it reads, and the stages it depends on are
what they were, and what it made is still there. A training that was stopped is resumed; one whose settings changed
since is moved aside (out/NAME.replaced-1) and trained anew.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from attar.errors import RecipeError, RunChanged, RunError, unknown_name
from attar.request import teachers_named
from attar.train.run import RunFolder, check_writable, write_atomically

logger = logging.getLogger("attar")

TRAININGS = ("pretrain", "distill")
NAMED = (*TRAININGS, "cluster")  # stages that write a folder of their own, out/NAME
KINDS = (*NAMED, "evaluate", "embed", "export", "report")


@dataclass(frozen=True)
class Stage:
    """One entry of the file: what to do (kind), its arguments, and the name of its folder if it is a training."""

    kind: str
    arguments: dict[str, Any]
    name: str | None

    @property
    def title(self) -> str:
        return self.name or self.kind


@dataclass
class PipelineResult:
    """Which stages ran, which were done already, and whether a signal ended it early."""

    out: Path
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    interrupted: bool = False
    verdicts: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "out": str(self.out)}

    def text(self) -> str:
        lines = [f"ran: {', '.join(self.ran) or 'nothing'}; done already: {', '.join(self.skipped) or 'nothing'}"]
        return "\n".join([*lines, *self.verdicts, f"in {self.out}"])


def run(recipe: str | Path) -> PipelineResult:
    """Carry out the stages of a YAML file, skipping those that are done.

    Raises:
        RecipeError: the file or a stage in it is not understood; nothing has run then.
        AttarError: whatever a stage raises; earlier stages stay done.
    """
    out, plan = read_pipeline(Path(recipe))
    return carry_out(plan, out)


def read_pipeline(path: Path) -> tuple[Path, list[Stage]]:
    """The output folder and the checked stages of a file."""
    if not path.is_file():
        raise RecipeError(f"{path.absolute()} does not exist; attar run takes a YAML file with `out` and `stages`.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list) or not content.get("out"):
        raise RecipeError(f"{path}: a pipeline has `out` (a folder) and `stages` (a list); see docs/pipelines.md.")
    out = Path(str(content["out"]))
    plan: list[Stage] = []
    for number, entry in enumerate(content["stages"], 1):
        where = f"{path}, stage {number}"
        stage = _read_stage(where, entry)
        earlier = {s.name: s for s in plan if s.name}
        if stage.name in earlier:
            raise RecipeError(f"{where}: an earlier stage is named {stage.name!r} too; each needs its own folder.")
        _check_stage(where, stage, earlier, out)
        plan.append(stage)
    return out, plan


def _check_stage(where: str, stage: Stage, earlier: Mapping[str, Stage], out: Path) -> None:
    """What would fail when its turn comes, hours later: names of runs, methods, networks, protocols, settings."""
    from attar import stages
    from attar.data.listing import require_folder
    from attar.data.sources import path_of
    from attar.errors import AttarError
    from attar.methods.base import load
    from attar.models import weights_file
    from attar.models.backbones import check_name
    from attar.planning import check_not_about_clusters
    from attar.request import Request, accepted_recipe, check

    for name in _references(stage):
        if name not in earlier and not Path(name).exists():
            if (parts := weights_file.name_and_file(name)) and stage.kind != "report":
                try:
                    weights_file.check(*parts)
                except AttarError as error:
                    raise type(error)(f"{where}: {error}") from None
                continue
            if len(Path(name).parts) > 1 or stage.kind == "report":
                raise RecipeError(f"{where}: {name} is no earlier stage and no folder; earlier: {', '.join(earlier)}.")
            try:
                check_name(name)
            except AttarError:
                raise RecipeError(f"{where}: " + unknown_name("stage, folder or network", name, earlier)) from None
    try:
        paths = [path_of(stage.arguments[key]) for key in _SOURCES if stage.arguments.get(key) is not None]
        for path in (path for path in paths if path is not None):
            if not path.absolute().is_relative_to(out.absolute()):  # what lies there, an earlier stage may make
                require_folder(path)
        if stage.kind in TRAININGS:
            given = {**_with_defaults(stage, out), "resume": True}
            taught_by = given.get("teacher")
            several: list[Any] = taught_by if isinstance(taught_by, list) else [taught_by]
            if any(one in earlier for one in several):  # a folder not there yet, so there is nothing to look at
                given["teacher"] = [stage if one in earlier else one for one in several]
            begun_from = _begun_from(stage)
            if given["image_size"] is None:
                given["image_size"] = _said(begun_from, "image_size", earlier)
            given["init"] = earlier.get(given["init"], given["init"])
            check(request := Request(**given))
            _check_channels(stage, earlier)
            _check_teacher_size(request.teacher_size, [earlier[one] for one in several if one in earlier], earlier)
            made = _clusters_said(begun_from, earlier)
            if made is not None and load(request.method).METHOD.needs_clusters:
                check_not_about_clusters(request, accepted_recipe(request), made, str(begun_from))
        elif stage.kind == "cluster":
            stages.check_clustering(stage.arguments)
            _check_clustered(stage.arguments, earlier)
        elif stage.kind == "evaluate":
            stages.check_evaluation(
                stage.arguments.get("protocols", ("knn",)),
                stage.arguments.get("device", "auto"),
                stage.arguments.get("precision", "auto"),
                stage.arguments.get("label_noise"),
                stage.arguments.get("controls", True),
                stage.arguments.get("num_untrained"),
            )
        elif stage.kind == "export":
            stages.check_export(**stage.arguments)
    except AttarError as error:
        raise type(error)(f"{where}: {error}") from None


def _with_defaults(stage: Stage, out: Path) -> dict[str, Any]:
    """All arguments of the function that a stage of training calls."""
    bound = inspect.signature(_function(stage.kind)).bind(**stage.arguments, out=out / str(stage.name))
    bound.apply_defaults()
    return bound.arguments


def _said(name: str | None, argument: str, earlier: Mapping[str, Stage]) -> int | None:
    """The image_size or channels of a run that is there, or that an earlier stage will make: its own, or those of what
    it starts from; None where only its images will tell."""
    from attar.models.saved import load_backbone

    if name is None:
        return None
    stage = earlier.get(name)
    if stage is None:
        there = (Path(name) / "backbone.json").is_file()
        return getattr(load_backbone(name)[1], _IN_AN_IMAGE[argument]) if there else None
    own = stage.arguments.get(argument)
    if argument == "image_size":
        own = stage.arguments.get("test_size") or own
    if isinstance(own, int):
        return own
    return _said(_begun_from(stage), argument, earlier)


_IN_AN_IMAGE = {"image_size": "size", "channels": "channels"}


def _begun_from(stage: Stage) -> str | None:
    """The run or network whose images a stage takes by default: the first teacher's, else of what it starts from."""
    given = (stage.arguments.get(key) for key in ("run", "teacher", "init"))
    return _first(next((one for one in given if one), None))


def _first(given: Any) -> Any:
    return given[0] if isinstance(given, list) else given


def _clusters_said(name: str | None, earlier: Mapping[str, Stage]) -> dict[str, Any] | None:
    """Settings of the clusters that a stage will make, without those that only its images will tell, or that are in a
    folder; None for what is no clusters."""
    from attar.models.clusters import ClusterSettings, is_clusters, load_clusters

    stage = earlier.get(name) if name else None
    if stage is None:
        return asdict(load_clusters(name).settings) if name and is_clusters(name) else None
    if stage.kind != "cluster":
        return None
    made = _clusters_said(stage.arguments["run"], earlier)
    if made is not None:
        return made
    usual = {f.name: f.default for f in fields(ClusterSettings) if f.default is not MISSING}
    return {**usual, **{name: value for name, value in stage.arguments.items() if value is not None}}


def _check_channels(stage: Stage, earlier: Mapping[str, Stage]) -> None:
    """Are the channels those of the teacher, or of the run to start from, as far as an earlier stage says them?"""
    own = stage.arguments.get("channels")
    for key in ("teacher", "init"):
        theirs = _said(_first(stage.arguments.get(key)), "channels", earlier)
        if theirs and isinstance(own, int) and own != theirs:
            raise RecipeError(
                f"channels: {own} does not go with {key}: {stage.arguments[key]}, which takes {theirs}. Leave it out."
            )


def _check_teacher_size(size: int | None, teachers: list[Stage], earlier: Mapping[str, Stage]) -> None:
    """Can the networks that earlier stages train look at images of this size?"""
    from attar.models.backbones import BackboneSpec
    from attar.models.other_size import check_other_size

    for stage in teachers if size is not None else ():
        own = _said(stage.name, "image_size", earlier)
        if stage.kind in TRAININGS and own not in (None, size):
            given = _with_defaults(stage, Path())
            spec = BackboneSpec(name=given["backbone"], channels=3, image_size=own, stem=given["stem"])
            check_other_size(spec, size, option="--teacher-size")


def _check_clustered(arguments: dict[str, Any], earlier: Mapping[str, Stage]) -> None:
    """Will the run of an earlier stage take images of this size, and has its network a layer of this name?"""
    from attar.methods.base import load
    from attar.models.backbones import build_backbone
    from attar.models.clusters import check_grid
    from attar.stages import check_not_about_made

    run, size = arguments["run"], arguments.get("image_size")
    trained, layer = earlier.get(run), arguments.get("layer") or "features"
    expected = _said(run, "image_size", earlier)
    if size is not None and expected and size != expected:
        raise RecipeError(
            f"image_size: {size} would be ignored: {run} takes images of {expected} pixels. Leave it out."
        )
    if trained is not None and trained.kind == "cluster":
        check_not_about_made(run, [name for name, value in arguments.items() if value is not None])
    if layer == "features" or trained is None or trained.kind not in TRAININGS:
        return
    given = _with_defaults(trained, Path())
    backbone = load(given["method"]).METHOD.backbone_name(given["backbone"])
    layers = build_backbone(backbone, image_size=expected or 224, stem=given["stem"]).stages_of_blank()
    if layer not in layers:
        raise RecipeError(f"{backbone}: " + unknown_name("layer", layer, layers))
    if expected:
        check_grid(arguments.get("grid") or 1, layer, layers[layer])


_NUMBERS = {
    **dict.fromkeys(("epochs", "batch_size", "image_size", "test_size", "teacher_size"), int),
    **dict.fromkeys(("seed", "accumulate", "checkpoint_steps", "workers"), int),
    **dict.fromkeys(("num_clusters", "grid", "pca_dim", "kmeans_iterations", "images_per_cluster"), int),
    "min_cluster_size": int,
    **dict.fromkeys(("minutes", "lr"), float),
}
_LISTS = ("protocols", "runs")


def _typed(where: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """YAML's 1e-3 is a text, and a list of one is easily written as the one."""
    typed = dict(arguments)
    for name, value in arguments.items():
        if name in _NUMBERS and value is not None:
            try:
                typed[name] = _NUMBERS[name](value)
            except (TypeError, ValueError):
                raise RecipeError(f"{where}: {name}: {value!r} is no number.") from None
        elif name in _LISTS and isinstance(value, str):
            typed[name] = [value]
        elif name in _SOURCES and not isinstance(value, str):
            raise RecipeError(f"{where}: {name}: {value!r} is not accepted; give one folder, file or name.")
        elif name in ("run", "init") and (name, value) != ("init", None) and not isinstance(value, str):
            raise RecipeError(f"{where}: {name}: {value!r} is not accepted; give one stage, folder or network.")
    return typed


def _read_stage(where: str, entry: Any) -> Stage:
    kinds = [key for key in entry if key != "name"] if isinstance(entry, dict) else []
    if len(kinds) != 1:
        raise RecipeError(
            f"{where}: write one of {', '.join(KINDS)} with its arguments, and a name for {', '.join(NAMED)}."
        )
    kind = kinds[0]
    if kind not in KINDS:
        raise RecipeError(f"{where}: " + unknown_name("stage", kind, KINDS))
    if kind in NAMED and not entry.get("name"):
        raise RecipeError(f"{where}: {kind} needs a name; what it makes is kept in the folder out/NAME.")
    if "," in str(entry.get("name")):
        raise RecipeError(f"{where}: name: {entry['name']!r} is not accepted; a comma joins teachers.")
    parameters = inspect.signature(_function(kind)).parameters
    accepted = set(parameters) - ({"out", "resume"} if kind in NAMED else set())
    arguments = _typed(where, entry[kind] or {})
    if kind == "distill" and len(teachers := teachers_named(arguments.get("teacher"))) > 1:
        arguments["teacher"] = teachers
    for argument in arguments:
        if argument not in accepted:
            raise RecipeError(f"{where}: " + unknown_name(f"argument of {kind}", argument, accepted, limit=40))
    for name in accepted - arguments.keys():
        if parameters[name].default is inspect.Parameter.empty:
            raise RecipeError(f"{where}: {kind} needs {name}.")
    return Stage(kind, arguments, str(entry["name"]) if entry.get("name") else None)


def _function(kind: str) -> Any:
    from attar import stages

    return getattr(stages, kind)


def carry_out(plan: list[Stage], out: Path) -> PipelineResult:
    """Run the stages in order; `out/pipeline.json` remembers the digest of each that is done."""
    check_writable(ledger := out / "pipeline.json")
    done: dict[str, str] = json.loads(ledger.read_text()) if ledger.is_file() else {}
    result = PipelineResult(out)
    digests: dict[str, str] = {}
    about: dict[str, list[str]] = {}  # run -> digests of the stages that measured or exported it
    for number, stage in enumerate(plan, 1):
        key = f"{number}-{stage.title}"
        arguments = _arguments(stage, out, digests)
        mentioned = [name for name in _references(stage) if name in digests]
        depends = sorted({digests[name] for name in mentioned})
        if stage.kind == "report":
            depends += sorted(digest for name in mentioned for digest in about.get(name, ()))
        reads = _digests_outside(stage, digests)
        text = json.dumps([stage.kind, stage.arguments, stage.name, depends, reads], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if stage.name:
            digests[stage.name] = digest
        for name in mentioned if stage.kind in ("evaluate", "export") else ():
            about.setdefault(name, []).append(digest)
        if done.get(key) == digest and all(file.exists() for file in _outputs(stage, arguments)):
            logger.info("Stage %d of %d, %s: done already.", number, len(plan), stage.title)
            result.skipped.append(stage.title)
            continue
        logger.info("Stage %d of %d: %s", number, len(plan), stage.title)
        returned = _carry_out(stage, arguments)
        if getattr(returned, "interrupted", False):
            result.interrupted = True
            return result
        if hasattr(returned, "verdict"):
            result.verdicts.append(returned.verdict)
        result.ran.append(stage.title)
        done[key] = digest
        write_atomically(ledger, json.dumps(done, indent=1))
    return result


def _carry_out(stage: Stage, arguments: dict[str, Any]) -> Any:
    """The stage's function; what differs from what its folder holds is made anew, and the old folder is kept.

    Where making it anew fails before anything is there, the old folder comes back.
    """
    function = _function(stage.kind)
    try:
        return function(**arguments)
    except RunChanged as error:
        folder = Path(arguments["out"])
        number = next(i for i in itertools.count(1) if not folder.with_name(f"{folder.name}.replaced-{i}").exists())
        aside = folder.rename(folder.with_name(f"{folder.name}.replaced-{number}"))
        logger.warning("%s It is kept as %s; making it anew.", error.found, aside)
    try:
        return function(**arguments)
    except BaseException:
        if not RunFolder(folder).has_begun:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            logger.warning("That failed; what was kept as %s is %s again.", aside, folder)
        raise


def _digests_outside(stage: Stage, names: dict[str, str]) -> list[str]:
    """Digests of what a stage reads that no stage made: images by their listing, runs by their weights."""
    from attar.data.sources import open_source
    from attar.models.saved import file_digest
    from attar.models.weights_file import name_and_file

    found = []
    for key in _SOURCES:
        if isinstance(given := stage.arguments.get(key), str):
            source = open_source(given, stage.arguments.get("labels") or ("auto" if key in _LABELLED else None))
            labels = b"" if source.labels is None else source.labels.astype("<i8").tobytes()
            text = f"{source.digest} {list(source.classes)}".encode()
            found.append(hashlib.sha256(text + labels).hexdigest())
    for item in _references(stage):
        weights = Path(item) / "backbone.json"
        if item not in names and weights.is_file():
            found.append(file_digest(weights))
        elif item not in names and (parts := name_and_file(item)):
            found.append(file_digest(parts[1]))
    return found


def _outputs(stage: Stage, arguments: dict[str, Any]) -> list[Path]:
    """The files whose presence shows that a stage has done its work."""
    if stage.kind in NAMED:
        made = ["backbone.json", "labels.parquet"] if stage.kind == "cluster" else ["backbone.json"]
        return [arguments["out"] / name for name in made]
    if stage.kind in ("report", "embed"):
        return [Path(arguments["out"])]
    if stage.kind == "evaluate":
        return [Path(arguments["run"]) / "evaluation.json"]
    return [Path(arguments.get("out") or Path(arguments["run"]) / "export.json")]


_LABELLED = ("labelled", "test")  # sources whose labels count
_SOURCES = ("source", *_LABELLED, "calibration")
_REFERENCES = ("run", "runs", "teacher", "init")


def _references(stage: Stage) -> list[str]:
    """The runs that a stage names: earlier stages, folders or networks."""
    given = [stage.arguments.get(key) for key in _REFERENCES]
    flat = [item for value in given for item in (value if isinstance(value, list) else [value])]
    return [str(item) for item in flat if item is not None]


def _arguments(stage: Stage, out: Path, names: dict[str, str]) -> dict[str, Any]:
    """The stage's arguments with the names of earlier stages turned into their folders."""

    def folder(value: Any) -> Any:
        if isinstance(value, list):
            return [folder(item) for item in value]
        return str(out / value) if value in names else value

    arguments = {key: folder(value) if key in _REFERENCES else value for key, value in stage.arguments.items()}
    if stage.kind in NAMED:
        if stage.name is None:
            raise RunError(f"{stage.kind} without a name")  # read_pipeline has checked it
        return {**arguments, "out": out / stage.name, **({"resume": True} if stage.kind in TRAININGS else {})}
    if stage.kind in ("report", "embed") or "out" in arguments:
        arguments["out"] = out / arguments.get("out", "report.html")
    if isinstance(arguments.get("protocols"), list):
        arguments["protocols"] = tuple(arguments["protocols"])
    return arguments
