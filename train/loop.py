"""fit(): the training loop, one function, read top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.checkpoint.checkpoint import CheckpointError, Progress, Saver
from train.config.run import RunConfig
from train.data.order import SampleOrder, combined_hash, content_hashes, rank_share
from train.engine.engine import Engine, StepResult
from train.engine.schedule import learning_rate
from train.evaluate.validation import validation_chunks, validation_means
from train.export.model_folder import write_model_folder
from train.observe.accumulator import Accumulator
from train.observe.probes import Probes
from train.observe.run_log import RunLog
from train.observe.spikes import SpikeWatch
from train.observe.throughput import Stopwatch, speed
from train.ranks.distributed import SideChannel, World, gather_over_ranks, sum_over_ranks
from train.ranks.stopping import StopSignal
from train.tasks.task import Batch, SampleCost, Task
from train.watchdog.watchdog import Watchdog

logger = logging.getLogger(__name__)


class TooManySkippedStepsError(RuntimeError):
    """Loss or gradient were not finite for so many steps in a row that the run stopped itself."""


@dataclass
class Run:
    """Everything that training works with."""

    config: RunConfig
    folder: Path
    task: Task
    engine: Engine
    world: World
    log: RunLog
    probes: Probes
    spikes: SpikeWatch
    saver: Saver
    stop: StopSignal
    channel: SideChannel  # over which the ranks agree to stop
    progress: Progress
    watchdog: Watchdog


class MicroBatch:
    """The samples of one forward pass, on the device, with what is needed to name them."""

    def __init__(self, ids: np.ndarray, batch: Batch, weight: float):
        self.ids = ids
        self.host = batch
        self.weight = weight

    def on(self, device: torch.device) -> Batch:
        """Return the tensors on the device; the copy overlaps with computing."""
        if device.type == "cpu":
            return self.host
        return {key: value.pin_memory().to(device, non_blocking=True) for key, value in self.host.items()}


def fit(run: Run) -> bool:
    """Train from `run.progress` to the last step; returns whether it came to it.

    Step n is the pass with the weights after n-1 updates; all that it logs carries the number n. The last step
    always logs, evaluates and saves. After a signal to any rank, the step under way is the last, and is saved.

    Raises:
        TooManySkippedStepsError: Steps were skipped `optim.stop_after_skipped_steps` times in a row.
        CheckpointError: The last checkpoint could not be written, or any, where `checkpoint.when_not_saved` says stop.
    """
    config, task, engine, world, log, probes = run.config, run.task, run.engine, run.world, run.log, run.probes
    cost = task.cost(engine.module)
    watch = Stopwatch()
    evaluate_when_due(run)  # the run may have been stopped before it could

    for step, micro_batches in feed(run):
        lr = learning_rate(step, optim=config.optim, steps=config.steps)
        total_weight = global_weight(micro_batches, world)
        means, losses = Accumulator(), []
        with probes.watching(step):
            for micro_batch in micro_batches:
                output = task.step(engine.model, micro_batch.on(world.device))
                engine.backward(output.loss_sum, total_weight=total_weight)
                means.add(output.metrics)
                losses.append(output.loss_sum.detach())
        probes.read_gradients(step)
        result = engine.step(lr)
        probes.write(step, lr, applied=result.applied)
        watch.steps += 1
        run.spikes.add(step, loss=means.totals["loss"], grad_norm=result.grad_norm)
        run.progress = advance(run, step, result, micro_batches, losses)
        log.tick()
        seen = amount_seen(step, config, cost)

        if due(step, config.log_every, config.steps):
            figures = {**means.means(), "grad_norm": float(result.grad_norm), "lr": lr}
            seconds = watch.seconds_per_step()  # after the figures: reading them has waited for the device
            size = config.global_batch_size
            pace = speed(seconds, cost=cost, global_batch_size=size, world=world, hosts=log.hosts)
            tell_spikes(run)
            faults = {"skipped": step - run.progress.updates, "spikes": run.progress.spikes}
            log.row(step, {**seen, **figures, **pace, **faults, "samples_hash": samples_hash(micro_batches, run)})
            watch.restart()

        with watch.paused():
            evaluate_when_due(run)
            stopping = asked_to_stop(run)
            if stopping or due(step, config.checkpoint.every, config.steps) or keeps_weights(config, step):
                run.watchdog.enter("save", step)
                save(run)
        if stopping:
            log.event("signal", step=step, signal=run.stop.name or "to another rank")
            break

    run.watchdog.enter("save", run.progress.step)
    run.saver.finish()
    return run.progress.evaluated == config.steps


def due(step: int, every: int, last: int) -> bool:
    """Return whether something that happens every so many steps, and at the last one, happens now."""
    return step % every == 0 or step == last


def amount_seen(step: int, config: RunConfig, cost: SampleCost) -> dict[str, int]:
    """Return how many samples, and tokens where there are any, the run has seen; skipped ones count."""
    samples = step * config.global_batch_size
    return {"samples": samples} if cost.tokens is None else {"samples": samples, "tokens": samples * cost.tokens}


def keeps_weights(config: RunConfig, step: int) -> bool:
    """Return whether this step's weights are kept for later analysis."""
    every = config.checkpoint.weights_every
    return every is not None and due(step, every, config.steps)


def feed(run: Run) -> Iterator[tuple[int, list[MicroBatch]]]:
    """Yield each step with this rank's micro-batches, read one step ahead by a thread."""
    config, world = run.config, run.world
    order = SampleOrder(
        run.task.num_training_samples, seed=config.task.data.seed, global_batch_size=config.global_batch_size
    )

    def read(step: int) -> list[MicroBatch]:
        share = rank_share(
            order.of_step(step), rank=world.rank, world_size=world.size, micro_batch_size=config.micro_batch_size
        )
        batches = [(ids, run.task.batch(ids, split="training", step=step)) for ids in share]
        return [MicroBatch(ids, batch, run.task.weight(batch)) for ids, batch in batches]

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as reader:
        ahead: Future[list[MicroBatch]] | None = None
        for step in range(run.progress.step + 1, config.steps + 1):
            run.watchdog.enter("step", step)  # data that do not come are a step that hangs
            now = (ahead or reader.submit(read, step)).result()
            ahead = reader.submit(read, step + 1) if step < config.steps else None
            yield step, now


def global_weight(micro_batches: list[MicroBatch], world: World) -> Tensor:
    """Return the denominator of the step: its weight over all micro-batches and ranks, () fp32 on the device."""
    mine = sum(micro_batch.weight for micro_batch in micro_batches)
    return sum_over_ranks(torch.tensor(mine, dtype=torch.float32, device=world.device))


def samples_hash(micro_batches: list[MicroBatch], run: Run) -> str:
    """Return one hash of the content of the global batch's samples, in order."""
    mine = np.concatenate([content_hashes(micro_batch.host) for micro_batch in micro_batches])
    return combined_hash(_over_ranks(mine))


def _over_ranks(mine: np.ndarray) -> np.ndarray:
    """Put equally long int64 arrays of all ranks one after the other."""
    return torch.cat(gather_over_ranks(torch.from_numpy(mine))).numpy()


def tell_spikes(run: Run) -> None:
    """Judge the loss and gradient norm of the steps since this was last asked."""
    found = run.spikes.settle()
    for spike in found:
        run.log.event("spike", **spike._asdict())
        if run.world.is_main:
            logger.warning(
                "step %d: %s %.4g is a spike (median of the steps before: %.4g)",
                *(spike.step, spike.quantity, spike.value, spike.median),
            )
    run.progress = replace(run.progress, spikes=run.progress.spikes + len(found), recent=run.spikes.recent)


def advance(run: Run, step: int, result: StepResult, micro_batches: list[MicroBatch], losses: list[Tensor]) -> Progress:
    """Count the step; name the samples of one that was skipped, and stop after too many in a row."""
    if result.applied:
        return replace(run.progress, step=step, updates=run.engine.updates, skipped_in_a_row=0)
    finite = np.array([bool(torch.isfinite(loss)) for loss in losses])
    ids = _over_ranks(np.concatenate([m.ids for m in micro_batches]))
    suspects = _over_ranks(
        np.concatenate(
            [m.ids if not ok else np.full_like(m.ids, -1) for m, ok in zip(micro_batches, finite, strict=True)]
        )
    )
    in_a_row = run.progress.skipped_in_a_row + 1
    bad = [int(sample) for sample in suspects if sample >= 0]
    reason = "the loss" if bad else "the gradient"
    run.log.event("skip", step=step, reason=f"{reason} is not finite", samples=ids.tolist(), suspects=bad)
    if run.world.is_main:
        named = f"; samples {bad}" if bad else ""
        logger.warning("step %d skipped: %s is not finite%s (events.jsonl names all samples)", step, reason, named)
    if in_a_row >= run.config.optim.stop_after_skipped_steps:
        raise TooManySkippedStepsError(
            f"{in_a_row} steps in a row were skipped, up to step {step}: loss or gradient is not finite. "
            "The weights are unharmed; events.jsonl names the samples. Lower optim.lr, or raise "
            "optim.stop_after_skipped_steps"
        )
    return replace(run.progress, step=step, updates=run.engine.updates, skipped_in_a_row=in_a_row)


def asked_to_stop(run: Run) -> bool:
    """Return whether any rank has heard a signal: all ranks ask at the same moments and get the same answer.

    Raises:
        CheckpointError: The last checkpoint could not be written, and the run is to stop then.
    """
    gives_up = run.config.checkpoint.when_not_saved == "stop" and run.saver.has_failed
    answer = run.channel.largest(2 if gives_up else int(run.stop.name is not None))
    if answer == 2:
        run.watchdog.enter("save", run.progress.step)
        run.saver.finish()
    return answer == 1


def evaluate_when_due(run: Run) -> None:
    """Evaluate after this step, where that is due and not yet done, and log it."""
    step, config = run.progress.step, run.config
    if step == 0 or not due(step, config.evaluate_every, config.steps) or run.progress.evaluated >= step:
        return
    run.watchdog.enter("evaluation", step)
    figures = evaluate(run, step)
    if figures is not None:
        run.log.row(step, {**amount_seen(step, config, run.task.cost(run.engine.module)), **figures})
        run.progress = replace(run.progress, evaluated=step)


def evaluate(run: Run, step: int) -> dict[str, float] | None:
    """Return the metrics of the whole validation split, and show samples; None if asked to stop meanwhile."""
    task, model = run.task, run.engine.model
    size = run.engine.plan.micro_batch_size  # the shape that compiled blocks know
    chunks = validation_chunks(task.num_validation_samples, size=size, ranks=run.world.size)
    model.eval()
    means = validation_means(task, model, chunks, world=run.world, step=step, is_stopped=lambda: asked_to_stop(run))
    if means is not None:
        with torch.no_grad():
            task.illustrate(model, run.log.gallery(step))
    model.train()
    return None if means is None else task.validation_report(means)


def save(run: Run) -> None:
    """Start to write a checkpoint, and from it the bf16 folder that is kept for analysis when one is due.

    Raises:
        CheckpointError: The one before could not be written, and the run is to stop then.
    """
    tell_spikes(run)  # the checkpoint is to know all steps before it
    progress = run.progress

    def then(folder: Path) -> None:
        run.log.event("save", step=progress.step, checkpoint=folder.name)
        if keeps_weights(run.config, progress.step) and run.world.is_main:
            dtype = torch.bfloat16 if run.task.supports_bf16 else torch.float32
            write_model_folder(run.task, folder, run.folder / "weights" / folder.name, dtype=dtype)

    try:
        run.saver.finish()
    except CheckpointError as error:
        if run.config.checkpoint.when_not_saved == "stop":
            raise
        run.log.event("not_saved", step=progress.step, reason=str(error))
        if run.world.is_main:
            logger.error("TRAINING GOES ON WITHOUT A NEW CHECKPOINT: %s", error)
    run.saver.start(progress, then=then)
