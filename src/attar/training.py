"""One training from a request to a finished run folder: check, read the images, build, fit, save.

The body of `attar.pretrain` and `attar.distill`. Whatever can be wrong is looked at in the order of its cost: what the
request alone shows comes before the first image is decoded, and a run that exists is compared before it is touched.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attar.errors import RecipeError
from attar.planning import Plan, cache_of, clusters_of, make_plan, must_be_the_same, saved_recipe
from attar.request import Request, check
from attar.train.run import RunFolder

if TYPE_CHECKING:
    from attar.data.images import ImageSpec
    from attar.methods.base import Trained
    from attar.models.clusters import Clusters
    from attar.models.teachers import Teacher
    from attar.train.loop import FitResult, Job

logger = logging.getLogger("attar")


@dataclass(frozen=True)
class Run:
    """What a training returns: its folder, the resolved recipe, and how it ended."""

    path: Path
    recipe: dict[str, Any]
    fit: FitResult | None  # None when the run was already complete

    @property
    def interrupted(self) -> bool:
        return self.fit is not None and self.fit.interrupted

    def or_stop(self) -> Run:
        """This run; KeyboardInterrupt if a signal ended it, so that a sequence of stages ends there too."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self


def train(request: Request) -> Run:
    """Carry a request out, or continue it.

    Raises:
        AttarError: for anything a user can cause, before training starts where possible.
    """
    from attar.methods.base import load
    from attar.train.distributed import world as join_world
    from attar.train.loop import fit

    check(request)
    saved = saved_recipe(request)
    with join_world(request.device) as world:
        if request.shard and world.world_size == 1:
            raise RecipeError(
                "--shard spreads one training over several processes, and there is one. Start it with torchrun "
                "--nproc-per-node N -m attar …, or leave --shard out."
            )
        plan = make_plan(request, world, saved)
        if saved is not None:
            must_be_the_same(request, saved, plan.identity)
            if RunFolder(Path(request.out)).is_complete:
                logger.info("%s is complete; nothing to do.", request.out)
                return Run(Path(request.out), saved, None)
        if load(request.method).METHOD.needs_clusters:
            plan = replace(plan, clusters=clusters_of(request, plan, world))
        job = _build(request, plan, world)
        if request.minutes is not None and saved is None:
            job = _fit_into_minutes(job, request.minutes)
            plan = replace(plan, recipe=job.method.recipe)
        resolved = plan.resolved
        run = RunFolder(Path(request.out))
        if world.is_main:
            needed = 3 * 4 * 4 * sum(p.numel() for p in job.method.parameters())  # two checkpoints with moments
            run = RunFolder.create(request.out, resume=request.resume, needed_bytes=needed)
        try:
            if world.is_main:
                if saved is None:
                    run.write_recipe(resolved)
                _say(plan, job)
            world.barrier()
            result = fit(job, run, identity=plan.identity, resume=saved is not None)
            if world.is_main and not result.interrupted:
                _finish(run, job, plan, resolved, result)
            world.barrier()
        finally:
            run.release()
    return Run(run.path, resolved, result)


def _build(request: Request, plan: Plan, world: Any) -> Job:
    """Backbone, method and everything the loop needs."""
    import torch

    from attar.methods.base import Setup, load, make_views
    from attar.models.backbones import build_backbone
    from attar.models.saved import load_head, start_from
    from attar.train.loop import Job, LoopOptions

    module = load(request.method)
    torch.manual_seed(request.seed)  # initial weights
    backbone = build_backbone(
        plan.backbone_name,
        channels=plan.image.channels,
        image_size=plan.image.size,
        stem=request.stem,
        pretrained=request.pretrained,
    )
    projector = None
    if request.init is not None:
        start_from(backbone, request.init)
        projector = load_head(Path(request.init), "projector")
    if request.checkpoint_activations:
        backbone.checkpoint_activations()
    options_by_size = {plan.image.size: "image"}
    options_by_size.setdefault(plan.test_image.size, "test")  # mostly the same one, which is asked once
    if small := next((size for size in options_by_size if backbone.reduces_to_a_pixel(size)), None):
        logger.warning(
            "%s reduces images of %d pixels to a single position before it pools, so most of its depth sees no "
            "picture. Better: --stem small (ResNets), a net for small images such as resnet20, or a larger "
            "--%s-size.",
            request.backbone,
            small,
            options_by_size[small],
        )
    views = make_views(request.method, plan.recipe, plan.image, backbone)
    setup = Setup(
        image=plan.image,
        images=plan.images,
        clusters=plan.clusters,
        projector=projector,
        seed=request.seed,
        device=world.device,
        cache=cache_of(request),
    )
    num_views = getattr(plan.recipe, "teacher_views", 0)
    if num_views:
        setup.teacher = _asked_once(request, plan, views, num_views, world)
    elif plan.clusters is None:
        setup.teacher = plan.teacher  # type: ignore[assignment]  # clusters only where these were loaded or made
    options = LoopOptions(
        seed=request.seed,
        precision=request.precision,
        accumulate=request.accumulate,
        compile=request.compile,
        shard=request.shard,
        checkpoint_steps=request.checkpoint_steps,
        show_progress=request.progress,
    )
    method = module.METHOD(plan.recipe, backbone, setup)
    return Job(method, views, plan.images, plan.image, world, options, num_views or None)


def _asked_once(request: Request, plan: Plan, views: Any, num_views: int, world: Any) -> Teacher:
    """The teacher's answers for `num_views` views of every image, from the cache; process 0 computes them."""
    from attar.models.teachers import cache_answers
    from attar.train.loop import views_of

    def answers(is_main: bool) -> Teacher:
        return cache_answers(
            plan.teacher,  # type: ignore[arg-type]
            plan.images,
            plan.image,
            lambda batch, view: views_of(batch, views, request.seed, view).images,  # type: ignore[attr-defined]
            num_views=num_views,
            folder=cache_of(request),
            key=f"{views!r} {request.seed}",
            device=world.device,
            show_progress=is_main and request.progress,
            smaller="ask the teacher anew every time (-s teacher_views=0)",
        )

    return world.main_first(answers)


def _fit_into_minutes(job: Job, minutes: float) -> Job:
    """The same job with as many epochs as fit into the time, by the measured speed; at least one."""
    import torch

    from attar.train.loop import measure_step_seconds

    measured = torch.tensor(measure_step_seconds(job), dtype=torch.float64, device=job.world.device)
    seconds = float(job.world.mean(measured))  # the same on all processes, and so the number of epochs
    epoch_seconds = seconds * job.plan.steps_per_epoch
    epochs = max(int(minutes * 60 / epoch_seconds), 1)
    if epoch_seconds > minutes * 60:
        logger.warning("One epoch takes about %.1f minutes, longer than asked; training one epoch.", epoch_seconds / 60)
    logger.info(
        "%.2f s a step, %.1f s an epoch: %s in %g minutes.",
        seconds,
        epoch_seconds,
        _counted(epochs, "epoch"),
        minutes,
    )
    job.method.recipe = replace(job.method.recipe, epochs=epochs)
    return replace(job)  # its plan follows the recipe


def _say(plan: Plan, job: Job) -> None:
    parameters = sum(p.numel() for p in job.method.backbone.parameters()) / 1e6
    logger.info(
        "%s (recipe %s) trains %s, %.2f M parameters, on %d images of %d px%s for %s of %s; %s, %s.",
        plan.request.method,
        plan.recipe_name,
        plan.backbone_name,
        parameters,
        len(job.images),
        job.image.size,
        "" if plan.test_image == plan.image else f" (then {plan.test_image.size} px)",
        _counted(job.recipe.epochs, "epoch"),
        _counted(job.plan.steps_per_epoch, "step"),
        job.world.device,
        plan.precision,
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _finish(run: RunFolder, job: Job, plan: Plan, resolved: dict[str, Any], result: FitResult) -> None:
    """Write what people and later stages need: weights, head, broken files, views, gallery."""
    import numpy as np
    import torch

    from attar.methods.base import Trained
    from attar.reporting.attention import attention_of
    from attar.reporting.gallery import collect_gallery
    from attar.train.loop import views_of
    from attar.views.augmentation import CentreView
    from attar.views.contact_sheet import contact_sheet

    method = job.method.eval()
    first = job.images.batch(np.arange(min(8, len(job.images)))).to(job.world.device)
    views = views_of(first, job.make_views, job.options.seed, 0)
    contact_sheet(views, job.image, num_images=8).save(run / "views.png")
    attended = attention_of(method.backbone, CentreView(job.image)(first), first.index)
    if attended is not None:
        contact_sheet(attended, job.image, num_images=8).save(run / "attention.png")
    with torch.no_grad():
        answered = method.answers(views)
    if answered is not None:
        contact_sheet(answered, job.image, num_images=8).save(run / "answers.png")
    collect_gallery(method.backbone, plan.test_image, job.images, out=run / "gallery.npz", device=job.world.device)
    if plan.clusters is not None:
        _keep_clusters(run, plan, plan.clusters, job.world.device)
    run.write_json("broken.json", [asdict(image) for image in job.images.broken])
    run.write_json("fit.json", asdict(result))
    kept = ("kind", "method", "recipe", "settings", "data", "teacher", "teacher_size", "init", "seed", "versions")
    provenance = {key: resolved[key] for key in kept} | {"collapsed": result.collapsed}
    others = method.others()
    for name, other in others.items():
        _save(run / name, other, job, plan.test_image, provenance | {"part": name})
    own = Trained(method.backbone, method.projector, method.classifier)
    _save(run.path, own, job, plan.test_image, provenance)  # last: its presence means complete
    if result.collapsed:
        logger.error("%s ended collapsed: do not use these weights. See health.jsonl.", run.path)
    asked = plan.request.minutes
    if asked is not None and result.seconds > 1.5 * 60 * asked:
        logger.warning(
            "Training took %.2g minutes instead of %g. The speed is measured on a few steps before; other programs on "
            "the same cores, checks, checkpoints and compilation come on top.",
            result.seconds / 60,
            asked,
        )
    kept_beside = "".join(f", {run / name}" for name in others)
    logger.info(
        "Done in %.0f s (%.0f images a second): %s%s",
        result.seconds,
        result.images_per_second,
        run.path,
        kept_beside,
    )


def _save(folder: Path, trained: Trained, job: Job, image: ImageSpec, provenance: dict[str, Any]) -> None:
    """Heads, then the backbone, which looks at `image` from now on."""
    from attar.models.heads import MLP
    from attar.models.saved import save_backbone, save_head

    folder.mkdir(exist_ok=True)
    for name, head in (("projector", trained.projector), ("classifier", trained.classifier)):
        if isinstance(head, MLP):
            save_head(folder, name, head, classes=job.method.class_names or job.images.classes)
    trained.backbone.spec = replace(trained.backbone.spec, image_size=image.size)
    save_backbone(folder, trained.backbone, image, provenance=provenance)


def _keep_clusters(run: RunFolder, plan: Plan, clusters: Clusters, device: Any) -> None:
    """Beside the run: the clusters, what became of these images, and pictures of some clusters."""
    from attar.reporting.gallery import collect_cluster_gallery

    named = clusters.assign(plan.images, folder=cache_of(plan.request), device=device, show_progress=False)
    clusters.save(run / "clusters")
    run.write_json("clusters/labels.json", named.numbers())
    collect_cluster_gallery(plan.images, named.cluster, named.distance, out=run / "clusters" / "gallery.npz")
