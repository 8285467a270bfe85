"""The training loop, `fit`: one function, to be read from top to bottom."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.checkpoint.checkpoint import CheckpointError, NonFiniteStateError, Progress, Saver
from train.config.facts.manifest import step_name
from train.config.facts.run_layout import WEIGHTS
from train.config.run import RunConfig
from train.data.order import SampleOrder, combined_hash, content_hashes, rank_share
from train.engine.engine import Engine, StepResult
from train.engine.schedule import learning_rate
from train.evaluate.layers import layer_contributions
from train.evaluate.validation import first_of, validation_chunks, validation_means
from train.export.model_folder import write_model_folder
from train.observe.accumulator import Accumulator
from train.observe.probes import Probes
from train.observe.run_log import RunLog
from train.observe.spikes import SpikeWatch
from train.observe.throughput import Stopwatch, speed
from train.ranks.distributed import SideChannel, World, all_agree, gather_over_ranks, sum_over_ranks
from train.ranks.garbage import collect_when_due
from train.ranks.stopping import StopSignal
from train.ranks.watchdog.watchdog import Watchdog
from train.tasks.task import Batch, SampleCost, Task

logger = logging.getLogger(__name__)


class TooManySkippedStepsError(RuntimeError):
    """Too many consecutive steps were skipped because loss or gradient was not finite."""


@dataclass
class Run:
    """Everything needed to train on one rank."""

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
    channel: SideChannel  # used by the ranks to agree on stopping
    progress: Progress
    watchdog: Watchdog


class MicroBatch:
    """The samples of one forward pass, with their ids."""

    def __init__(self, ids: np.ndarray, batch: Batch, weight: float):
        self.ids = ids
        self.host = batch
        self.weight = weight

    def on(self, device: torch.device) -> Batch:
        """Return the tensors on the device; the copy overlaps with computation."""
        if device.type == "cpu":
            return self.host
        return {key: value.pin_memory().to(device, non_blocking=True) for key, value in self.host.items()}


def fit(run: Run) -> bool:
    """Train from `run.progress` to the last step; return whether the last step was reached.

    Step n uses the weights after the steps before it; everything it logs carries the number n. The last step always
    logs, evaluates and saves. After a signal to any rank, training stops at the end of the current step and saves it.

    Raises:
        TooManySkippedStepsError: `optim.stop_after_skipped_steps` consecutive steps were skipped.
        CheckpointError: The final checkpoint could not be written, or any checkpoint if `checkpoint.when_not_saved` is
            "stop" or the state to save is not finite.
    """
    config, task, engine, world, log, probes = run.config, run.task, run.engine, run.world, run.log, run.probes
    cost = task.cost(engine.module)
    watch = Stopwatch()
    make_up(run)

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
        seen = amount_seen(step, config, cost, task.num_training_samples)

        if due(step, config.log_every, config.steps):
            metrics = {**means.means(), "grad_norm": float(result.grad_norm), "lr": lr}
            seconds = watch.seconds_per_step()  # after reading the metrics, which waits for the device
            size = config.global_batch_size
            pace = speed(seconds, cost=cost, global_batch_size=size, world=world, hosts=log.hosts)
            log_spikes(run)
            counts = {"skipped": step - run.progress.updates, "spikes": run.progress.spikes}
            log.row(step, {**seen, **metrics, **pace, **counts, "samples_hash": samples_hash(micro_batches, run)})
            watch.restart()

        collect_when_due(step)
        with watch.paused():
            evaluate_when_due(run)
            stopping = stop_requested(run)
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
    """Return whether an action with interval `every` is due at this step; the last step is always due."""
    return step % every == 0 or step == last


def amount_seen(step: int, config: RunConfig, cost: SampleCost, training_samples: int) -> dict[str, float]:
    """Return the samples and epochs seen so far, and the tokens if the task has any; skipped steps count."""
    samples = step * config.global_batch_size
    tokens = {} if cost.tokens is None else {"tokens": samples * cost.tokens}
    return {"samples": samples, **tokens, "epoch": samples / training_samples}


def keeps_weights(config: RunConfig, step: int) -> bool:
    """Return whether a weights folder is written for this step."""
    every = config.checkpoint.weights_every
    return every is not None and due(step, every, config.steps)


def make_up(run: Run) -> None:
    """Do what an earlier start did not get to after its last step: the evaluation, or the weights folder."""
    evaluate_when_due(run)
    checkpoint = run.saver.folder / step_name(run.progress.step)
    if checkpoint.exists() and not weights_folder(run, checkpoint).exists():
        run.watchdog.enter("save", run.progress.step)
        keep_weights(run, run.progress.step, checkpoint)


def keep_weights(run: Run, step: int, checkpoint: Path) -> None:
    """Write the weights folder of a step from its checkpoint on rank 0, if one is due."""
    if keeps_weights(run.config, step) and run.world.is_main:
        dtype = torch.bfloat16 if run.task.supports_bf16 else torch.float32
        write_model_folder(run.task, checkpoint, weights_folder(run, checkpoint), dtype=dtype)


def weights_folder(run: Run, checkpoint: Path) -> Path:
    """Return the weights folder that belongs to a checkpoint."""
    return run.folder / WEIGHTS / checkpoint.name


def feed(run: Run) -> Iterator[tuple[int, list[MicroBatch]]]:
    """Yield each step with this rank's micro-batches, which a thread reads one step ahead."""
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
            run.watchdog.enter("step", step)  # missing data counts as a hanging step
            now = (ahead or reader.submit(read, step)).result()
            ahead = reader.submit(read, step + 1) if step < config.steps else None
            yield step, now


def global_weight(micro_batches: list[MicroBatch], world: World) -> Tensor:
    """Return the denominator of the step: its weight over all micro-batches and ranks, () fp32 on the device."""
    mine = sum(micro_batch.weight for micro_batch in micro_batches)
    return sum_over_ranks(torch.full((), mine, dtype=torch.float32, device=world.device))


def samples_hash(micro_batches: list[MicroBatch], run: Run) -> str:
    """Return a hash of the content of all samples in the global batch, in order."""
    mine = np.concatenate([content_hashes(micro_batch.host) for micro_batch in micro_batches])
    return combined_hash(_over_ranks(mine))


def _over_ranks(mine: np.ndarray) -> np.ndarray:
    """Concatenate the int64 arrays of all ranks, which have equal length."""
    return torch.cat(gather_over_ranks(torch.from_numpy(mine))).numpy()


def log_spikes(run: Run) -> None:
    """Detect and log spikes of loss and gradient norm in the steps since the last call."""
    spikes = run.spikes.settle()
    for spike in spikes:
        run.log.event("spike", **spike._asdict())
        if run.world.is_main:
            logger.warning(
                "step %d: %s %.4g is a spike (median of preceding steps: %.4g)",
                *(spike.step, spike.quantity, spike.value, spike.median),
            )
    run.progress = replace(run.progress, spikes=run.progress.spikes + len(spikes), recent=run.spikes.recent)


def advance(run: Run, step: int, result: StepResult, micro_batches: list[MicroBatch], losses: list[Tensor]) -> Progress:
    """Count the step; log the samples of a skipped step, and fail after too many in a row."""
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
        samples = f"; samples {bad}" if bad else ""
        logger.warning("step %d skipped: %s is not finite%s (events.jsonl lists all samples)", step, reason, samples)
    if in_a_row >= run.config.optim.stop_after_skipped_steps:
        all_finite = all_agree(run.engine.weights_are_finite())
        raise TooManySkippedStepsError(
            f"{in_a_row} consecutive steps were skipped, up to step {step}: loss or gradient is not finite. "
            f"The weights {'are all finite' if all_finite else 'are NOT finite'}; "
            "events.jsonl lists the samples. Lower optim.lr, or raise optim.stop_after_skipped_steps"
        )
    return replace(run.progress, step=step, updates=run.engine.updates, skipped_in_a_row=in_a_row)


def stop_requested(run: Run) -> bool:
    """Return whether any rank has received a signal; collective, with the same result on all ranks.

    Raises:
        CheckpointError: The last checkpoint could not be written, and the run ends for that reason.
    """
    failure = run.saver.failure
    gives_up = failure is not None and ends_the_run(failure, run.config)
    answer = run.channel.largest(2 if gives_up else int(run.stop.name is not None))
    if answer == 2:
        run.watchdog.enter("save", run.progress.step)
        run.saver.finish()
    return answer == 1


def ends_the_run(failure: CheckpointError, config: RunConfig) -> bool:
    """Return whether training must not continue after a checkpoint could not be written."""
    return config.checkpoint.when_not_saved == "stop" or isinstance(failure, NonFiniteStateError)


def evaluate_when_due(run: Run) -> None:
    """Evaluate after this step and measure its layers, if due and not yet done, and log the results: all or none."""
    step, config = run.progress.step, run.config
    evaluates, measures = due(step, config.evaluate_every, config.steps), measures_layers(config, step)
    if step == 0 or not (evaluates or measures) or run.progress.evaluated >= step:
        return
    metrics = evaluate(run, step) if evaluates else {}
    layers = [] if metrics is None or not measures else measure_layers(run, step)
    if metrics is None or layers is None:
        return
    if evaluates:
        cost = run.task.cost(run.engine.module)
        run.log.row(step, {**amount_seen(step, config, cost, run.task.num_training_samples), **metrics})
    run.log.layers(step, layers)
    run.progress = replace(run.progress, evaluated=step)


def measures_layers(config: RunConfig, step: int) -> bool:
    """Return whether the layers are measured after this step."""
    every = config.probes.layers_every
    return every is not None and due(step, every, config.steps)


def evaluate(run: Run, step: int) -> dict[str, float] | None:
    """Return the metrics of the validation split and show samples; None if a stop is requested meanwhile."""
    run.watchdog.enter("evaluation", step)
    task, model = run.task, run.engine.model
    chunks = chunks_of(run, task.validation_sets)
    model.eval()
    means = validation_means(task, model, chunks, world=run.world, step=step, is_stopped=lambda: stop_requested(run))
    if means is not None:
        with torch.no_grad():
            task.illustrate(model, run.log.gallery(step))
    model.train()
    return None if means is None else task.validation_report(means)


def measure_layers(run: Run, step: int) -> list[dict[str, Any]] | None:
    """Return the contribution of each layer, by the first validation samples; None if a stop is requested meanwhile."""
    run.watchdog.enter("evaluation", step)  # with a deadline of its own
    task, model = run.task, run.engine.model
    chunks = chunks_of(run, first_of(task.validation_sets, run.config.probes.layer_windows))
    model.eval()
    try:
        return layer_contributions(
            task,
            model,
            chunks,
            layers=task.layers(run.engine.module),
            world=run.world,
            step=step,
            is_stopped=lambda: stop_requested(run),
        )
    finally:
        model.train()


def chunks_of(run: Run, sets: Sequence[int]) -> list[np.ndarray]:
    """Return the ids of validation samples by pass, in the shape that the loss and the blocks were compiled for."""
    return validation_chunks(sets, size=run.engine.plan.micro_batch_size, ranks=run.world.size)


def save(run: Run) -> None:
    """Start writing a checkpoint, followed by a weights folder if one is due.

    Raises:
        CheckpointError: The previous one could not be written, and the run ends for that reason.
    """
    log_spikes(run)  # the checkpoint must account for all steps before it
    progress = run.progress

    def after_save(folder: Path) -> None:
        run.log.event("save", step=progress.step, checkpoint=folder.name)
        keep_weights(run, progress.step, folder)

    try:
        run.saver.finish()
    except CheckpointError as error:
        if ends_the_run(error, run.config):
            raise
        run.log.event("not_saved", step=progress.step, reason=str(error))
        if run.world.is_main:
            logger.error("TRAINING CONTINUES WITHOUT A NEW CHECKPOINT: %s", error)
    run.saver.start(progress, then=after_save)
