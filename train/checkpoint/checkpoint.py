"""Checkpoints: one canonical form for every ZeRO stage and number of ranks, complete or absent.

Each rank writes the fragments that it owns to one safetensors file, checksummed while writing, with no gathering and
no pickle. The folder is filled under a name ending in `.partial` and renamed once its manifest lies on the disk:

    checkpoints/step_000500/
        manifest.json               step, updates, shapes, data fingerprint; size and sha256 of every file
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
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from train.checkpoint.tensor_file import WrittenFile, is_intact, write_safetensors
from train.config.errors import ConfigError
from train.config.facts.run_layout import MANIFEST, complete_steps, step_name
from train.engine.engine import Engine
from train.ranks.distributed import SideChannel, World, all_agree, gather_floats, sum_over_ranks

logger = logging.getLogger(__name__)

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0  # optimizer steps taken, skipped ones included
    updates: int = 0  # those that reached the weights
    skipped_in_a_row: int = 0
    evaluated: int = 0  # the last step after which the validation split was evaluated
    spikes: int = 0  # of loss and gradient norm
    recent: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by quantity: what the next step is judged by


# ------------------------------------------------------------------------------------------------------- writing


class Saver:
    """Writes checkpoints on all ranks: training waits for the copy into host memory, the rest goes on behind it.

    One checkpoint is under way at a time. Every rank makes the same calls in the same order.

    Args:
        folder: Of the run's checkpoints.
        engine: Whose state is saved.
        world: This rank's place.
        data_fingerprint: Of the run's samples.
        keep: How many checkpoints stay; None: all.
    """

    def __init__(self, folder: Path, engine: Engine, *, world: World, data_fingerprint: str, keep: int | None) -> None:
        self.folder = folder
        self._engine = engine
        self._world = world
        self._data_fingerprint = data_fingerprint
        self._keep = keep
        self._channel = SideChannel()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def start(self, progress: Progress, *, then: Callable[[Path], None]) -> None:
        """Copy the state and write it behind; `then` gets the published folder, in the writer's thread of each rank.

        Waits for the checkpoint before, if that is not written yet.

        Raises:
            CheckpointError: The checkpoint before could not be written.
        """
        self.finish()
        described = {
            "format": FORMAT,
            **asdict(progress),
            "world_size": self._world.size,
            "data_fingerprint": self._data_fingerprint,
            "parameters": self._engine.parameter_shapes(),
        }
        copied = snapshot(self._engine, self._world)
        self._under_way = self._writer.submit(self._write, progress.step, described, copied, then)

    def finish(self) -> None:
        """Wait until what was started is on the disk.

        Raises:
            CheckpointError: It could not be written (disk full, permission): on every rank, and earlier checkpoints
                are as they were.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    @property
    def has_failed(self) -> bool:
        """Whether `finish` would raise; does not wait."""
        under_way = self._under_way
        return under_way is not None and under_way.done() and under_way.exception() is not None

    def close(self) -> None:
        """Wait for the writer and end it; what went wrong has been told."""
        self._writer.shutdown()

    def _write(self, step: int, described: Mapping[str, Any], copied: Snapshot, then: Callable[[Path], None]) -> None:
        partial, final = self.folder / f"{step_name(step)}.partial", self.folder / step_name(step)
        is_main, rank = self._world.is_main, self._world.rank
        self._together(lambda: _make_empty(partial) if is_main else None, "could not be started", partial)
        self._together(lambda: _write_rank(partial, copied, rank), "could not be written", partial)
        self._together(lambda: _publish(partial, final, described) if is_main else None, "not published", partial)
        if is_main:
            _retire(self.folder, self._keep)
        self._together(lambda: then(final), "saved, but not what was to come of it", partial)

    def _together(self, work: Callable[[], None], failure: str, partial: Path) -> None:
        """Do a part of the work on every rank; if one fails, all raise."""
        fault: Exception | None = None
        try:
            work()
        except Exception as error:  # whatever it is: the other ranks wait to hear of it
            fault = error
            logger.error("%s: %s: %s", partial, failure, error)
        if self._channel.all_agree(fault is None):
            return
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        last = complete_steps(partial.parent)
        kept = f"the last complete checkpoint is {step_name(last[-1])}" if last else "there is no earlier checkpoint"
        reason = fault or "another rank says why"
        raise CheckpointError(f"checkpoint {partial.stem}: {failure} ({reason}); {kept}, untouched") from fault


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


class Snapshot(NamedTuple):
    """What one rank has to save, in host memory."""

    tensors: dict[str, Tensor]  # by key
    places: dict[str, list[int]]  # of each fragment's key: [start, numel] in the flattened parameter


def _write_rank(partial: Path, copied: Snapshot, rank: int) -> None:
    name = f"rank_{rank:05d}"
    places = {"fragments": json.dumps(copied.places)}
    written = write_safetensors(partial / f"{name}.safetensors", copied.tensors, places)
    (partial / f"{name}.json").write_text(json.dumps(written._asdict()))


def snapshot(engine: Engine, world: World) -> Snapshot:
    """Copy what this rank has to save into host memory."""
    tensors: dict[str, Tensor] = {}
    places: dict[str, list[int]] = {}
    for fragment in engine.owned_fragments():
        for kind, tensor in fragment.tensors.items():
            key = f"{kind}/{fragment.name}"
            tensors[key] = tensor.detach().to("cpu", copy=True)
            places[key] = [fragment.start, fragment.numel]
    tensors["rng/cpu"] = torch.get_rng_state()
    if world.device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(world.device)
    if world.is_main:
        buffers = engine.running_statistics.state()
        tensors |= {f"buffer/{name}": buffer.detach().to("cpu", copy=True) for name, buffer in buffers.items()}
    return Snapshot(tensors, places)


def _publish(partial: Path, final: Path, described: Mapping[str, Any]) -> None:
    """Describe the ranks' files in the manifest and give the folder its name: from here on it counts."""
    files = []
    for note in sorted(partial.glob("rank_*.json")):
        files.append(json.loads(note.read_text()))
        note.unlink()
    with (partial / MANIFEST).open("w") as file:
        json.dump({**described, "files": files}, file, indent=1)
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
    """Delete the oldest checkpoints; each loses its name first, so that a kill leaves none half deleted."""
    steps = complete_steps(folder)
    for step in steps[:-keep] if keep is not None else []:
        doomed = folder / f"{step_name(step)}.partial"
        (folder / step_name(step)).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- reading


def newest_intact(folder: Path, *, world: World) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint whose every byte is as written; all ranks share the reading, and agree.

    Damaged ones are renamed to `step_*.damaged` and passed over.

    Returns:
        The checkpoint, or None; and a sentence about each one passed over.
    """
    passed_over: list[str] = []
    # Rank 0's view of the folder counts: a network file system may show the ranks different ones.
    seen = complete_steps(folder) if world.is_main else []
    for index in range(int(gather_floats(len(seen))[0])):
        step = int(gather_floats(seen[-1 - index] if world.is_main else 0)[0])
        checkpoint = folder / step_name(step)
        faults = damage(checkpoint, world=world)
        if not faults:
            return checkpoint, passed_over
        passed_over.append(f"{step_name(step)} is damaged and was passed over: {'; '.join(faults)}")
        if world.is_main:
            _set_aside(checkpoint)
    return None, passed_over


def damage(checkpoint: Path, *, world: World) -> list[str]:
    """Return what is wrong with a checkpoint's files, by name; the ranks share the reading."""
    manifest = _read_manifest(checkpoint)
    if not all_agree(manifest is not None):
        return [f"{MANIFEST} is missing or not readable"]
    assert manifest is not None
    files = [WrittenFile(**described) for described in manifest["files"]]
    broken = torch.zeros(len(files))
    for index in range(world.rank, len(files), world.size):
        broken[index] = not is_intact(checkpoint, files[index])
    sum_over_ranks(broken)
    return [f"{file.name} is not as it was written" for file, bad in zip(files, broken, strict=True) if bad]


def _read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def _set_aside(checkpoint: Path) -> None:
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


class CheckpointReader:
    """Random access to the tensors of a checkpoint, whatever stage and number of ranks wrote it."""

    def __init__(self, checkpoint: Path):
        manifest = _read_manifest(checkpoint)
        if manifest is None:
            raise CheckpointError(f"{checkpoint}: no readable {MANIFEST}")
        self.folder = checkpoint
        self.manifest = manifest
        self.progress = Progress(**{key.name: manifest[key.name] for key in fields(Progress) if key.name in manifest})
        self._files = [safe_open(checkpoint / file["name"], framework="pt") for file in manifest["files"]]
        self._places: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        for file in self._files:
            for key, (start, numel) in json.loads(file.metadata()["fragments"]).items():
                self._places[key].append((start, numel, file))

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor:
        """Return elements [start, start + numel) of a flattened tensor, from whichever files hold them."""
        key, result, filled = f"{kind}/{name}", torch.empty(numel), 0
        for have_start, have_numel, file in self._places[key]:
            first, last = max(start, have_start), min(start + numel, have_start + have_numel)
            if first < last:
                piece = file.get_slice(key)[first - have_start : last - have_start]
                result[first - start : last - start] = piece
                filled += last - first
        if filled != numel:
            raise CheckpointError(f"{self.folder}: {key} lacks {numel - filled} of {numel} elements")
        return result

    def whole(self, kind: str, name: str) -> Tensor:
        """Return a whole tensor in its shape."""
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
        """Return a rank's random states; empty for a rank that did not exist when this was written."""
        if rank >= len(self._files):
            return {}
        file = self._files[rank]
        return {key.removeprefix("rng/"): file.get_tensor(key) for key in list(file.keys()) if key.startswith("rng/")}


def restore(checkpoint: Path, engine: Engine, *, world: World) -> Progress:
    """Bring weights, optimizer state, buffers and random state back; returns how far the run had come.

    Raises:
        ConfigError: The checkpoint is of a model of other shapes.
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
    faults = [
        f"task.model: {name} is {list(wanted.get(name, [])) or 'absent'} here and "
        f"{list(saved.get(name, [])) or 'absent'} in {source}"
        for name in sorted(saved.keys() | wanted.keys())
        if list(saved.get(name, [])) != list(wanted.get(name, []))
    ]
    if faults:
        raise ConfigError(faults[:8] + [f"... and {len(faults) - 8} more"] * (len(faults) > 8))


def load_folder(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a Hugging Face folder into a model.

    Raises:
        ConfigError: There are no safetensors, or they are of a model of other shapes.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError([f"checkpoint.start_from: {folder} holds no .safetensors file; give a Hugging Face folder"])
    found: dict[str, Tensor] = {}
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                found |= {key: file.get_tensor(key) for key in list(file.keys())}
    except SafetensorError as error:
        raise ConfigError([f"checkpoint.start_from: {folder} can not be read: {error}"]) from None
    state = model.state_dict()
    tied = {tensor.data_ptr() for name, tensor in state.items() if name in found}
    wanted = {name: t.shape for name, t in state.items() if name in found or t.data_ptr() not in tied}
    _require_same_shapes(
        {name: list(t.shape) for name, t in found.items()}, {n: list(s) for n, s in wanted.items()}, folder
    )
    model.load_state_dict(found, strict=False)
