"""The one training loop: batches, autocast, accumulation, processes, health, checkpoints, resume.

It knows no method by name. Everything random is a function of (seed, epoch, sample id) or (seed, step), so a resumed
run continues bit-equal and two processes draw what one would.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import statistics
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from attar.data.images import CanvasBatch, Images, ImageSpec
from attar.errors import RecipeError, TrainingError
from attar.methods.base import Method, Progress
from attar.models.backbones import evaluation_mode
from attar.models.batch_norm import synchronise_batch_norm
from attar.models.precision import mixed_precision
from attar.train.batches import BatchPlan, prefetched
from attar.train.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from attar.train.distributed import World
from attar.train.health import HealthMonitor, online_knn
from attar.train.interrupt import Signals
from attar.train.log import JsonLines, MetricsLog, read_json_lines
from attar.train.memory import peak_memory_of_process
from attar.train.optimisers import build_optimiser, clip_gradients, drop_frozen_gradients, set_rates
from attar.train.progress import TrainingBar
from attar.train.run import RunFolder
from attar.train.sharding import Sharded, gathered, load_method, load_optimiser
from attar.views.augmentation import CentreView
from attar.views.batches import Batch, ViewMaker
from attar.views.draws import Draws

logger = logging.getLogger("attar")

_FLUSH_EVERY = 10  # steps between reading losses back from a GPU; every step on the CPU, where reading is free


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How a run is executed, as opposed to what the recipe trains. Only the seed, the precision and, for losses
    that compare samples of a batch, accumulation change the result."""

    seed: int = 0
    precision: str = "auto"  # auto | fp32 | bf16
    accumulate: int = 1  # forward passes per optimiser step
    compile: bool = False
    shard: bool = False  # parameters, gradients and moments are spread over the processes (FSDP2)
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int | None = None  # save every so many steps instead
    health_per_epoch: int = 4
    knn_images: int = 1000  # labelled images for the online kNN; 0 switches it off
    tensorboard: bool = True
    show_progress: bool = True


@dataclass
class Job:
    """What one training consists of. `network` is the method, or what wraps it for several processes."""

    method: Method
    make_views: ViewMaker
    images: Images
    image: ImageSpec
    world: World
    options: LoopOptions
    view_period: int | None = None  # draw the same views again after so many epochs (a teacher's cache holds them)

    def __post_init__(self) -> None:
        self.recipe = self.method.recipe
        self.plan = BatchPlan(
            num_images=len(self.images),
            batch_size=self.recipe.batch_size,
            epochs=self.recipe.epochs,
            seed=self.options.seed,
            rank=self.world.rank,
            world_size=self.world.world_size,
            accumulate=self.options.accumulate,
        )
        if self.options.accumulate > 1 and self.method.batch_coupled:
            logger.warning(
                "accumulate=%d: this loss compares the samples of one forward pass, so it sees %d at a time, not %d.",
                self.options.accumulate,
                self.recipe.batch_size // self.options.accumulate,
                self.recipe.batch_size,
            )
        self.precision = choose_precision(self.options.precision, self.world.device)
        self.health = HealthMonitor()
        self.network: nn.Module = self.method

    def prepare(self) -> None:
        """Move the method to its device, and build the optimiser there."""
        if self.world.world_size > 1:
            synchronise_batch_norm(self.method)
        self.method.to(device=self.world.device)
        self.method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method.train()
        if self.options.shard:
            self.network = Sharded(self.method, self.world)
        self.optimiser = build_optimiser(self.method, self.recipe)

    def wrap(self) -> None:
        """Compile and distribute; after the state is in place."""
        if self.options.compile:
            self.method.backbone.compile()
        if self.world.world_size > 1 and not self.options.shard:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            with warnings.catch_warnings():  # torch 2.15 renames broadcast_buffers; the old name works everywhere
                warnings.simplefilter("ignore", FutureWarning)
                self.network = DistributedDataParallel(self.method, device_ids=ids, broadcast_buffers=False)


@dataclass(frozen=True)
class FitResult:
    """step: updates done in all. seconds, images_per_second: of this call. collapsed: at the last measurement.

    peak_memory: bytes; of the GPU, or of the whole process on a CPU. flops_per_step: operations of convolutions and
    matrix products in an update of all processes: views, forwards, backwards, and a teacher (a cached one does nothing
    then); the mean over the first updates of all epochs, of earlier calls too. 0 where they cannot be counted: with a
    compiled backbone.
    """

    step: int
    total_steps: int
    seconds: float
    images_per_second: float
    interrupted: bool
    collapsed: bool
    peak_memory: int
    flops_per_step: float


def fit(job: Job, run: RunFolder, *, identity: dict[str, Any], resume: bool = False) -> FitResult:
    """Train by the method's recipe, writing metrics, health and checkpoints into the run folder.

    identity: what a checkpoint must match to be resumed. Returns early, after a checkpoint, on SIGTERM or Ctrl-C.

    Raises:
        TrainingError: at a non-finite loss, with the step and the terms.
        CheckpointError: a checkpoint that cannot be written, or one that does not belong to this run.
    """
    job.prepare()
    world, plan, options = job.world, job.plan, job.options
    start = step = _restore(job, run, identity) if resume else 0
    job.wrap()
    log = MetricsLog(run.path, from_step=start, tensorboard=options.tensorboard) if world.is_main else None
    health_log = JsonLines(run / "health.jsonl", from_step=start) if world.is_main else None
    health_every = max(plan.steps_per_epoch // options.health_per_epoch, 1)
    interrupted = False
    earlier = read_json_lines(run / "health.jsonl") if resume else []
    collapsed = bool(earlier and earlier[-1].get("collapsed"))
    began = last_save = time.monotonic()

    def save() -> None:
        if log is not None:
            log.flush()
        _must_be_finite(job, step)
        state = {"step": step, "method": dict(job.method.state_dict()), "optimiser": job.optimiser.state_dict()}
        state = gathered(state) if options.shard else state
        if log is not None:
            save_checkpoint(run.checkpoint, state, step=step, identity=identity)
        world.barrier()

    shown = options.show_progress and world.is_main
    with Signals() as signals, TrainingBar(shown, job.recipe.epochs, start, plan.total_steps) as bar:
        for fetched in prefetched(job.images, plan, start, world):
            progress = Progress(step, plan.total_steps, step // plan.steps_per_epoch, job.recipe.epochs)
            step_began = time.monotonic()
            lr = set_rates(job.optimiser, job.recipe, progress)
            counted = step % plan.steps_per_epoch == 0 and not options.compile
            counter = FlopCounterMode(display=False) if counted else None
            with counter or contextlib.nullcontext():
                terms = update(job, fetched.parts, progress)
            step += 1
            if log is not None:
                seconds = time.monotonic() - step_began + fetched.wait
                rate = round(job.recipe.batch_size / max(seconds, 1e-9), 2)
                row = {"step": progress.step, "epoch": progress.epoch, "lr": lr, "images_per_second": rate}
                flops = {"flops": counter.get_total_flops() * world.world_size} if counter else {}
                log.add({**row, "data_wait": round(fetched.wait, 5), **flops}, terms)
                if world.device.type == "cpu" or step % _FLUSH_EVERY == 0:
                    bar.show(step, log.flush())
            if health_log is not None and (step % health_every == 0 or step == plan.total_steps):
                collapsed = _measure_health(job, health_log, progress)
            interrupted = world.any(signals.received)
            if interrupted or step == plan.total_steps or world.any(_due(last_save, step, plan, options)):
                save()  # also at the end: what follows may fail, and a finished run resumes as finished
                last_save = time.monotonic()
            if interrupted:
                break

    if log is not None and health_log is not None:
        log.close()
        health_log.close()
    if isinstance(job.network, Sharded):
        state = gathered(dict(job.method.state_dict()))
        if world.is_main:
            job.method = job.network.whole(state).to(world.device)
    seconds = time.monotonic() - began
    rate = (step - start) * job.recipe.batch_size / max(seconds, 1e-9)
    rows = read_json_lines(run / "metrics.jsonl") if log is not None else []
    peak_memory = torch.cuda.max_memory_allocated() if world.device.type == "cuda" else peak_memory_of_process()
    return FitResult(
        step=step,
        total_steps=plan.total_steps,
        seconds=seconds,
        images_per_second=rate,
        interrupted=interrupted and step < plan.total_steps,
        collapsed=collapsed,
        peak_memory=peak_memory,
        flops_per_step=statistics.mean([row["flops"] for row in rows if "flops" in row] or [0]),
    )


def update(job: Job, parts: list[CanvasBatch], progress: Progress) -> dict[str, Tensor | float]:
    """One optimiser step over the parts of a batch; loss and terms, averaged over parts and processes."""
    torch.manual_seed(_step_seed(job.options.seed, progress.step, job.world.rank))  # drop-path and dropout only
    job.optimiser.zero_grad(set_to_none=True)
    sums: dict[str, Tensor | float] = {}
    for i, canvases in enumerate(parts):
        epoch = progress.epoch % job.view_period if job.view_period else progress.epoch
        batch = views_of(canvases.to(job.world.device), job.make_views, job.options.seed, epoch)
        join = i == len(parts) - 1 or not isinstance(job.network, DistributedDataParallel)
        with contextlib.nullcontext() if join else job.network.no_sync():  # type: ignore[operator]
            is_bf16, recomputes = job.precision == torch.bfloat16, job.method.backbone.recomputes
            with mixed_precision(job.world.device, enabled=is_bf16, recomputes=recomputes):
                output = job.network(batch, progress)
            output = output[1] if isinstance(job.network, Sharded) else output
            (output.loss / len(parts)).backward()
        for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
            sums[name] = sums.get(name, 0.0) + value / len(parts)
        job.health.add(output.embeddings, output.positives)
    drop_frozen_gradients(job.optimiser, progress)
    norm = clip_gradients(job.optimiser, job.recipe)
    job.optimiser.step()
    job.method.after_step(progress)
    if job.world.is_main:  # only there it is measured, which empties what was added
        job.health.add_gradient(norm)
    sums["gradient_norm"] = norm  # equal on all processes, as the gradients are
    return {name: job.world.mean(value) if isinstance(value, Tensor) else value for name, value in sums.items()}


def views_of(canvases: CanvasBatch, make_views: ViewMaker, seed: int, epoch: int) -> Batch:
    """The typed batch a method sees; the same for a sample whatever batch, process or device it is drawn in."""
    with torch.no_grad():
        return make_views(canvases, Draws(seed, canvases.index, epoch=epoch))


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 where the hardware computes in it (GPUs since Ampere, CPUs with AVX512-BF16 or AMX), else fp32."""
    if precision not in ("auto", "fp32", "bf16"):
        raise RecipeError(f"--precision {precision!r} is unknown; accepted: auto, fp32, bf16.")
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_computes_bf16()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _cpu_computes_bf16() -> bool:
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:  # not Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def measure_step_seconds(job: Job, *, num_steps: int = 5) -> float:
    """Median seconds of an optimiser step, measured on a copy so that nothing of the run is touched."""
    trial = replace(job, method=copy.deepcopy(job.method))
    trial.prepare()
    progress = Progress(step=0, total_steps=num_steps, epoch=0, total_epochs=1)
    seconds = []
    for i in range(num_steps + 2):  # the first two warm caches up
        began = time.monotonic()
        size = trial.recipe.batch_size // job.world.world_size
        positions = (np.arange(size) + i * size) % len(job.images)
        set_rates(trial.optimiser, trial.recipe, progress)
        update(trial, [job.images.batch(part) for part in np.split(positions, job.options.accumulate)], progress)
        if job.world.device.type == "cuda":
            torch.cuda.synchronize(job.world.device)
        seconds.append(time.monotonic() - began)
    return float(np.median(seconds[2:]))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _restore(job: Job, run: RunFolder, identity: dict[str, Any]) -> int:
    """Load the newest checkpoint into method and optimiser; the step to continue with (0 if nothing was saved yet)."""
    if not has_checkpoint(run.checkpoint):
        logger.info("%s has no checkpoint yet; starting from the beginning.", run.path)
        return 0
    state = load_checkpoint(run.checkpoint, identity=identity)
    load_method(job.method, state["method"])
    load_optimiser(job.optimiser, state["optimiser"])
    if job.world.is_main:
        logger.info("Resuming %s at step %d of %d.", run.path, state["step"], job.plan.total_steps)
    return int(state["step"])


def _must_be_finite(job: Job, step: int) -> None:
    """A finite loss can leave weights that are not (its gradient overflowed): those are never saved."""
    mine = ((name, p.to_local() if isinstance(p, DTensor) else p) for name, p in job.method.named_parameters())
    broken = next((name for name, values in mine if not values.isfinite().all()), None)
    if job.world.any(broken is not None):
        raise TrainingError(
            f"the weights are not finite after step {step - 1} (first: {broken or 'on another process'}), though the "
            "loss was. The last checkpoint is from before. Try a lower --lr, clipping (-s clip_gradient=1.0) or "
            "--precision fp32."
        )


def _due(last_save: float, step: int, plan: BatchPlan, options: LoopOptions) -> bool:
    """Every checkpoint_steps if given; else after checkpoint_minutes, or at the end of an epoch if a tenth of that
    has passed (tiny epochs do not save each)."""
    if options.checkpoint_steps:
        return step % options.checkpoint_steps == 0
    minutes = (time.monotonic() - last_save) / 60
    at_epoch_end = step % plan.steps_per_epoch == 0
    return minutes >= options.checkpoint_minutes / (10 if at_epoch_end else 1)


def _measure_health(job: Job, log: JsonLines, progress: Progress) -> bool:
    """Write one row of health.jsonl; a collapse is reported at once. Returns whether it has collapsed."""
    gauges = job.health.measure()
    if (progress.step + 1) % job.plan.steps_per_epoch == 0:
        knn = _labelled_knn(job)
        if knn is not None:
            gauges["knn"] = knn
    if gauges:
        log.write({"step": progress.step, "epoch": progress.epoch, **gauges})
        log.flush()
    if gauges.get("collapsed"):
        logger.error(
            "COLLAPSE at step %d: the embeddings are nearly the same for all images (std %.3f of 1, effective rank "
            "%.1f). What is being learned is of no use. Try a lower --lr, a longer warm-up, or another method.",
            progress.step,
            gauges["embedding_std"],
            gauges["rankme"],
        )
    return bool(gauges.get("collapsed", False))


@torch.no_grad()
def _labelled_knn(job: Job) -> float | None:
    """Leave-one-out kNN of the backbone's features on a fixed sample of labelled images; None without labels."""
    if job.images.labels is None or not job.options.knn_images or job.options.shard:  # one process has no network
        return None
    labelled = np.flatnonzero(job.images.labels >= 0)
    if len(labelled) < 50:
        return None
    chosen = np.sort(np.random.default_rng(job.options.seed).permutation(labelled)[: job.options.knn_images])
    view = CentreView(job.image)
    with evaluation_mode(job.method.backbone):
        features = [
            job.method.backbone(view(job.images.batch(part).to(job.world.device)))
            for part in np.array_split(chosen, max(len(chosen) // 256, 1))
        ]
    return online_knn(torch.cat(features), torch.from_numpy(job.images.labels[chosen]).to(job.world.device))
