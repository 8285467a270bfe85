"""What a run says: metrics.jsonl, events.jsonl, TensorBoard, one console line per log, a progress bar."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train.ranks.distributed import World, gather_floats, gather_hosts, sum_over_ranks
from train.tasks.task import SampleCost, Sums

logger = logging.getLogger(__name__)

# Dense bf16 peaks in FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return a device's dense bf16 peak in FLOP/s, None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory that this rank has held so far: of the GPU's, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


_DRAWN_ACTIVATIONS = ("variance", "max_abs", "top1_over_median", "fp16_overflow_share")
_DRAWN_GRADIENTS = {
    "norm": "gradient_norm",
    "parameter_norm": "parameter_norm",
    "update_ratio": "update_ratio",
    "scale_mean": "norm_scale_mean",
}


class Accumulator:
    """Sums and weights by name, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}  # (sum, weight) of this rank, (2,) fp64

    def add(self, sums: Sums) -> None:
        """Add one micro-batch's sums; does not wait for the device."""
        for name, (value, weight) in sums.items():
            pair = torch.stack((value.detach().double(), weight.detach().double()))
            self.totals[name] = self.totals[name] + pair if name in self.totals else pair

    def means(self) -> dict[str, float]:
        """Return the means over all ranks: one reduction, one wait."""
        names = sorted(self.totals)
        if not names:
            return {}
        totals = sum_over_ranks(torch.stack([self.totals[name] for name in names])).tolist()
        return {
            name: total / weight if weight else math.nan for name, (total, weight) in zip(names, totals, strict=True)
        }


class Stopwatch:
    """Times training steps, evaluation and saving apart."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._start, self._paused, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def seconds_per_step(self) -> float:
        """Return the mean over the interval."""
        return (time.perf_counter() - self._start - self._paused) / max(1, self.steps)


def speed(
    seconds: float, *, cost: SampleCost, global_batch_size: int, world: World, hosts: Sequence[str]
) -> dict[str, float | str | None]:
    """Return the throughput figures of a step; `seconds` is this rank's mean, `hosts` the machines by rank.

    MFU counts 6 operations per matrix parameter and token, and attention once: see `flops_per_token` of the model.
    """
    over_ranks = gather_floats(seconds)
    slowest = max(over_ranks)
    samples = global_batch_size / slowest
    peak = peak_flops(world.device)
    known = peak is not None and cost.flops is not None
    return {
        "samples_per_second": samples,
        **({"tokens_per_second": samples * cost.tokens} if cost.tokens is not None else {}),
        "mfu": samples * cost.flops / (peak * world.size) if known else None,  # type: ignore[operator]
        "step_seconds": sum(over_ranks) / len(over_ranks),
        "step_seconds_min": min(over_ranks),
        "step_seconds_max": slowest,
        "slowest_host": hosts[over_ranks.index(slowest)],
        "peak_memory_gib": max(gather_floats(peak_memory_gib(world.device))),
    }


class RunLog:
    """The files of a run folder that grow while it trains; only rank 0 writes, the others' calls do nothing."""

    def __init__(self, folder: Path, *, world: World, steps: int, done: int):
        self.folder = folder
        self.steps = steps
        self.hosts = gather_hosts()
        self._active = world.is_main
        if not self._active:
            return
        for name in ("metrics", "activations", "gradients"):
            cut_after_step(folder / f"{name}.jsonl", done)
        cut_after_step(folder / "events.jsonl", None)
        self._files: dict[str, LineFile] = {}
        self._lock = threading.Lock()  # a checkpoint's writer tells its event from a thread of its own
        self._board = Board(folder / "tensorboard", first_step=done + 1)
        self._bar = tqdm(
            total=steps, initial=done, disable=not sys.stderr.isatty(), unit="step", leave=False, dynamic_ncols=True
        )
        self._began, self._done = time.monotonic(), done

    def event(self, kind: str, *, step: int, **fields: Any) -> None:
        """Append to events.jsonl: something that happened once."""
        if self._active:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._write("events", {"time": now, "event": kind, "step": step, **fields})

    def row(self, step: int, fields: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl and TensorBoard, and print the console line."""
        if not self._active:
            return
        self._write("metrics", {"step": step, **fields})
        self._draw(step, fields)
        self._board.draw("flush")
        self.say(console_line(step, self.steps, fields, self._seconds_left(step)))

    def activations(
        self, step: int, rows: Sequence[Mapping[str, Any]], histograms: Mapping[tuple[int | None, str], Tensor]
    ) -> None:
        """Append to activations.jsonl; scalars and histograms by exponent to TensorBoard."""
        if not self._active:
            return
        for row in rows:
            self._write("activations", {"step": step, **row})
            place = _place(row["layer"], row["site"])
            self._draw(step, {f"{name}/{place}": row[name] for name in _DRAWN_ACTIVATIONS})
        for (layer, site), counts in histograms.items():
            self._draw_histogram(f"log2_magnitude/{_place(layer, site)}", counts, step)

    def gradients(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append to gradients.jsonl and TensorBoard."""
        if not self._active:
            return
        for row in rows:
            self._write("gradients", {"step": step, **row})
            drawn = {f"{label}/{row['parameter']}": row.get(name) for name, label in _DRAWN_GRADIENTS.items()}
            self._draw(step, drawn)

    def gallery(self, step: int) -> RunGallery:
        """Return where a task shows what it does at this step."""
        if not self._active:
            return RunGallery(None, None, step)
        return RunGallery(self.folder / "images" / f"step_{step:06d}", self._board, step)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if self._active:
            tqdm.write(text, file=sys.stderr)

    def tick(self) -> None:
        """Move the progress bar by one step."""
        if self._active:
            self._bar.update()

    def close(self) -> None:
        """Flush and close everything."""
        if self._active:
            self._bar.close()
            self._board.draw("close")
            for file in self._files.values():
                file.close()

    def _write(self, name: str, fields: Mapping[str, Any]) -> None:
        """Append a line to a file that is made by its first."""
        with self._lock:
            if name not in self._files:
                self._files[name] = LineFile(self.folder / f"{name}.jsonl")
            self._files[name].append(fields)

    def _draw(self, step: int, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.draw("add_scalar", name, value, step)

    def _draw_histogram(self, name: str, counts: Tensor, step: int) -> None:
        """Draw counts by exponent, (256,), over log2 of the magnitude; the ends (zeros, infinities) are left out."""
        inside = counts[1:-1].nonzero().flatten() + 1
        if not len(inside):
            return
        low, high = int(inside[0]), int(inside[-1])
        exponents = torch.arange(low, high + 1) - 127
        drawn = counts[low : high + 1].double()
        middles = exponents + 0.5
        self._board.draw(
            "add_histogram_raw",
            name,
            min=float(exponents[0]),
            max=float(exponents[-1] + 1),
            num=int(drawn.sum()),
            sum=float((drawn * middles).sum()),
            sum_squares=float((drawn * middles.square()).sum()),
            bucket_limits=(exponents + 1).tolist(),
            bucket_counts=drawn.tolist(),
            global_step=step,
        )

    def _seconds_left(self, step: int) -> float:
        return (time.monotonic() - self._began) / max(1, step - self._done) * (self.steps - step)


def _place(layer: int | None, site: str) -> str:
    """Return a name by which TensorBoard sorts layers: those below 1000 in their order."""
    return site if layer is None else f"layer_{layer:03d}.{site}"


def console_line(step: int, steps: int, fields: Mapping[str, Any], seconds_left: float) -> str:
    """Return the line that a person reads: training figures, or those of a validation."""
    head = f"step {step:>{len(str(steps))}}/{steps}"
    if "validation_loss" in fields:
        names = [name for name in fields if name.startswith("validation_")]
        figures = (f"{name.removeprefix('validation_')} {_number(fields[name])}" for name in names)
        return f"{head}  validation  {'  '.join(figures)}"
    mfu = f"  mfu {100 * fields['mfu']:4.1f}%" if fields["mfu"] is not None else ""
    rate = fields.get("tokens_per_second")
    speed_shown = f"{rate:9,.0f} tok/s" if rate is not None else f"{fields['samples_per_second']:9,.1f} samples/s"
    return (
        f"{head}  loss {_number(fields['loss'])}  grad {_number(fields['grad_norm'])}  lr {fields['lr']:.2e}"
        f"  {speed_shown}{mfu}  {fields['step_seconds']:6.3f} s/step  {_duration(seconds_left)} left"
    )


def _number(value: float | None) -> str:
    return f"{value:7.4f}" if value is not None and math.isfinite(value) else "  -    "


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def strict(value: Any) -> Any:
    """Return a JSON value in which what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value


class Board:
    """TensorBoard's files; a disk that is full ends the drawing, not the run."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and for one rank only

        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=first_step)

    def draw(self, method: str, *given: Any, **named: Any) -> None:
        """Call a method of the SummaryWriter."""
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*given, **named)
        except OSError as error:
            logger.error("TensorBoard ends here (%s); all figures are in the .jsonl files", error.strerror or error)
            self._writer = None


class RunGallery:
    """Pictures on TensorBoard and arrays in a folder of one step; on ranks other than 0, nothing."""

    def __init__(self, folder: Path | None, board: Board | None, step: int) -> None:
        self._folder = folder
        self._board = board
        self._step = step

    def image(self, name: str, pixels: Tensor) -> None:
        """Show a picture: (3 or 1, H, W), from 0 to 1."""
        if self._board is not None:
            self._board.draw("add_image", name, pixels.detach().float().clamp(0, 1).cpu(), self._step)

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays to NAME.npz, complete or not at all; a full disk costs the file, not the run."""
        if self._folder is None:
            return
        partial = self._folder / f"{name}.npz.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            partial.rename(partial.with_suffix(""))
        except OSError as error:
            logger.error("%s: %s; training goes on without it", partial.with_suffix(""), error.strerror or error)


class LineFile:
    """A file of JSON lines that only grows. A full disk does not end the run: lines wait until there is room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._warned = False

    def append(self, fields: Mapping[str, Any]) -> None:
        """Write a line, after those that still wait."""
        self._waiting += json.dumps(strict(fields), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)  # no half lines
            if not self._warned:
                logger.error("%s: %s; its lines are kept and written when that is over", self.path, error.strerror)
            self._warned = True
            return
        self._waiting, self._warned = b"", False

    def close(self) -> None:
        """Close the file; lines that could not be written are lost now, and that is said."""
        if self._waiting:
            logger.error("%s: %d lines could not be written", self.path, self._waiting.count(b"\n"))
        self._file.close()


def cut_after_step(path: Path, step: int | None) -> None:
    """Drop a half-written last line, and every row after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if _is_kept(line, step)]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def _is_kept(line: bytes, step: int | None) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and (step is None or row["step"] <= step)
