"""Checkpoints: one canonical format for every ZeRO stage and number of ranks, published atomically.

Each rank writes the fragments it owns to one safetensors file, checksummed while writing, without gathering and without
pickle. The folder is written under a name ending in `.partial` and renamed once its manifest is on disk:

    checkpoints/step_000500/
        manifest.json               step, updates, shapes, data fingerprint; size and sha256 of every file; its own
        rank_00000.safetensors      weight/NAME, exp_avg/NAME, ... (1-D fp32), rng/*; rank 0 also buffer/NAME
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import safe_open
from torch import Tensor

from train.checkpoint.host_copy import copies_in_host_memory
from train.checkpoint.tensor_file import write_safetensors
from train.config.errors import ConfigError
from train.config.facts.manifest import FORMAT, MANIFEST, files_of, rank_file, read_manifest
from train.config.facts.run_layout import complete_steps, step_name
from train.config.facts.sealed import DamagedFileError, sealed
from train.engine.engine import Engine, is_finite
from train.ranks.distributed import SideChannel, World

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


class NonFiniteStateError(CheckpointError):
    """A weight or optimizer state is NaN or infinite; it is not saved, so that checkpoints stay usable."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run."""

    step: int = 0  # optimizer steps taken, skipped ones included
    updates: int = 0  # those that reached the weights
    skipped_in_a_row: int = 0
    evaluated: int = 0  # the last step whose evaluation is done, and its measurement of layers
    spikes: int = 0  # of loss and gradient norm
    recent: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by quantity: values for spike detection


# ------------------------------------------------------------------------------------------------------- writing


class Saver:
    """Writes checkpoints on all ranks: training waits only for the copy to host memory, a thread writes it to disk.

    At most one checkpoint is in progress. All ranks must make the same calls in the same order.

    Args:
        folder: Folder of the run's checkpoints.
        engine: The engine to save.
        world: This rank's position.
        data_fingerprint: Fingerprint of the run's samples.
        keep: Number of checkpoints to keep; None for all.
    """

    def __init__(self, folder: Path, engine: Engine, *, world: World, data_fingerprint: str, keep: int | None) -> None:
        self.folder = folder
        self._engine = engine
        self._world = world
        self._data_fingerprint = data_fingerprint
        self._keep = keep
        self._channel = SideChannel()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def start(self, progress: Progress, *, then: Callable[[Path], None]) -> None:
        """Copy the state and write it in the background.

        Waits for the previous checkpoint first. `then` is called with the published folder, in the writer thread of
        each rank.

        Raises:
            CheckpointError: The previous checkpoint could not be written.
        """
        self.finish()
        manifest = {
            "format": FORMAT,
            **asdict(progress),
            "world_size": self._world.size,
            "data_fingerprint": self._data_fingerprint,
            "parameters": self._engine.parameter_shapes(),
        }
        state = snapshot(self._engine, self._world)
        self._pending = self._writer.submit(self._write, progress.step, manifest, state, then)

    def finish(self) -> None:
        """Wait until the checkpoint in progress is on disk.

        Raises:
            CheckpointError: It could not be written (disk full, permissions). Raised on every rank; earlier checkpoints
                are intact.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def failure(self) -> CheckpointError | None:
        """What `finish` would raise, as far as is known yet; does not wait."""
        pending = self._pending
        error = pending.exception() if pending is not None and pending.done() else None
        return cast("CheckpointError | None", error)

    def close(self) -> None:
        """Wait for the writer and stop it; errors have been logged."""
        self._writer.shutdown()

    def _write(self, step: int, manifest: Mapping[str, Any], state: Snapshot, then: Callable[[Path], None]) -> None:
        partial, final = self.folder / f"{step_name(step)}.partial", self.folder / step_name(step)
        is_main, rank = self._world.is_main, self._world.rank
        self._together(lambda: _require_finite(state), "is not written", partial, NonFiniteStateError)
        self._together(lambda: _make_empty(partial) if is_main else None, "could not be started", partial)
        self._together(lambda: _write_rank(partial, state, rank), "could not be written", partial)
        self._together(
            lambda: _publish(partial, final, manifest) if is_main else None, "could not be published", partial
        )
        if is_main:
            _retire(self.folder, self._keep)
        self._together(lambda: then(final), "saved, but post-save work failed", partial)

    def _together(
        self, work: Callable[[], None], failure: str, partial: Path, error_type: type[CheckpointError] = CheckpointError
    ) -> None:
        """Run a part of the work on every rank; if it fails on any rank, raise on all."""
        fault: Exception | None = None
        try:
            work()
        except Exception as error:  # of any kind, as the other ranks wait for the outcome
            fault = error
            logger.error("%s: %s: %s", partial, failure, error)
        if self._channel.all_agree(fault is None):
            return
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        steps = complete_steps(partial.parent)
        last = (
            f"the last complete checkpoint, {step_name(steps[-1])}, is intact" if steps else "there is no earlier one"
        )
        reason = fault or "another rank logs the reason"
        raise error_type(f"checkpoint {partial.stem}: {failure} ({reason}); {last}") from fault


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


class Snapshot(NamedTuple):
    """The state that one rank saves, in host memory."""

    tensors: dict[str, Tensor]  # by key
    places: dict[str, list[int]]  # by fragment key: [start, numel] in the flattened parameter


def _require_finite(state: Snapshot) -> None:
    """Look at all weights and optimizer state.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    bad = [key for key in state.places if not is_finite(state.tensors[key])]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(f"{bad[0]}{more} is not finite")


def _write_rank(partial: Path, state: Snapshot, rank: int) -> None:
    path = partial / rank_file(rank)
    written = write_safetensors(path, state.tensors, {"fragments": json.dumps(state.places)})
    path.with_suffix(".json").write_text(json.dumps(written._asdict()))


def snapshot(engine: Engine, world: World) -> Snapshot:
    """Copy the state that this rank saves to host memory."""
    live: dict[str, Tensor] = {}
    places: dict[str, list[int]] = {}
    for fragment in engine.owned_fragments():
        for kind, tensor in fragment.tensors.items():
            key = f"{kind}/{fragment.name}"
            live[key] = tensor
            places[key] = [fragment.start, fragment.numel]
    live["rng/cpu"] = torch.get_rng_state()
    if world.device.type == "cuda":
        live["rng/cuda"] = torch.cuda.get_rng_state(world.device)
    if world.is_main:
        live |= {f"buffer/{name}": buffer for name, buffer in engine.running_statistics.state().items()}
    return Snapshot(copies_in_host_memory(live), places)


def _publish(partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, which lists the ranks' files, and rename the folder, which makes the checkpoint valid."""
    files = []
    for note in sorted(partial.glob("rank_*.json")):
        files.append(json.loads(note.read_text()))
        note.unlink()
    with (partial / MANIFEST).open("w") as file:
        json.dump(sealed({**manifest, "files": files}), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(partial)
    if final.exists():  # a damaged one that could not be moved out of the way
        shutil.rmtree(final)
    partial.rename(final)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _retire(folder: Path, keep: int | None) -> None:
    """Delete the oldest checkpoints; each is renamed first, so that a kill leaves none half deleted."""
    steps = complete_steps(folder)
    for step in steps[:-keep] if keep is not None else []:
        doomed = folder / f"{step_name(step)}.partial"
        (folder / step_name(step)).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- reading


class CheckpointReader:
    """Random access to the tensors of a checkpoint, independent of the stage and number of ranks that wrote it.

    The checkpoint is one that has been verified (`train.checkpoint.published`) or just written.

    Raises:
        CheckpointError: Its manifest is damaged.
    """

    def __init__(self, checkpoint: Path):
        try:
            manifest = read_manifest(checkpoint)
        except DamagedFileError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from None
        self.folder = checkpoint
        self.manifest = manifest
        self.progress = Progress(**{key.name: manifest[key.name] for key in fields(Progress) if key.name in manifest})
        self._files = [safe_open(checkpoint / file.name, framework="pt") for file in files_of(manifest)]
        self._places: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        for file in self._files:
            for key, (start, numel) in json.loads(file.metadata()["fragments"]).items():
                self._places[key].append((start, numel, file))

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Return elements [start, start + numel) of a flattened tensor, from whichever files contain them."""
        key, result, filled = f"{kind}/{name}", torch.empty(numel), 0
        for piece_start, piece_numel, file in self._places[key]:
            first, last = max(start, piece_start), min(start + numel, piece_start + piece_numel)
            if first < last:
                piece = file.get_slice(key)[first - piece_start : last - piece_start]
                result[first - start : last - start] = piece
                filled += last - first
        if filled != numel:
            raise CheckpointError(f"{self.folder}: {key} lacks {numel - filled} of {numel} elements")
        return result

    def whole(self, kind: str, name: str) -> Tensor:
        """Return a whole tensor in its original shape."""
        shape = self.manifest["parameters"][name]
        return self.read(kind, name, 0, int(torch.Size(shape).numel())).view(shape)

    def buffers(self) -> dict[str, Tensor]:
        """Return the model's persistent buffers."""
        first = self._files[0]
        return {
            key.removeprefix("buffer/"): first.get_tensor(key)
            for key in list(first.keys())
            if key.startswith("buffer/")
        }

    def random_state(self, rank: int) -> dict[str, Tensor]:
        """Return a rank's random states; empty if the rank did not exist when the checkpoint was written."""
        if rank >= len(self._files):
            return {}
        file = self._files[rank]
        return {key.removeprefix("rng/"): file.get_tensor(key) for key in list(file.keys()) if key.startswith("rng/")}


def restore(checkpoint: Path, engine: Engine, *, world: World) -> Progress:
    """Restore weights, optimizer state, buffers and random state, and return the run's progress.

    Raises:
        ConfigError: The checkpoint belongs to a model with other shapes.
    """
    reader = CheckpointReader(checkpoint)
    _require_same_shapes(reader.manifest["parameters"], engine.parameter_shapes(), checkpoint)
    engine.load(reader, updates=reader.progress.updates)
    engine.running_statistics.restore(reader.buffers())
    states = reader.random_state(world.rank)
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and world.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], world.device)
    return reader.progress


def _require_same_shapes(saved: Mapping[str, Any], wanted: Mapping[str, Any], source: Path) -> None:
    """Compare shapes by parameter.

    Raises:
        ConfigError: With the parameters that differ.
    """
    faults = [
        f"task.model: {name} is {list(wanted.get(name, [])) or 'absent'} here and "
        f"{list(saved.get(name, [])) or 'absent'} in {source}"
        for name in sorted(saved.keys() | wanted.keys())
        if list(saved.get(name, [])) != list(wanted.get(name, []))
    ]
    if faults:
        raise ConfigError(faults[:8] + [f"... and {len(faults) - 8} more"] * (len(faults) > 8))
