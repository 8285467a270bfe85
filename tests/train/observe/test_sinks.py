"""Data that each sink of a run's log receives."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from train.observe import run_log
from train.observe.run_log import RunLog
from train.observe.sink import Histogram, Sink, Table, magnitude_histogram
from train.observe.tensorboard import TensorBoard
from train.ranks.distributed import World

ROW = {"loss": 2.0, "grad_norm": float("nan"), "lr": 0.1, "mfu": None, "samples_hash": "ab"}
ROW |= {"samples_per_second": 3.0, "step_seconds": 0.5}


class Recorder(Sink):
    """A sink that keeps what it receives."""

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self.received: list[tuple[Any, ...]] = []

    @override
    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        self.received.append(("hyperparameters", dict(values)))

    @override
    def row(self, table: Table, step: int, fields: Mapping[str, Any]) -> None:
        self.received.append((table, step))

    @override
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.received.append(("scalars", step, dict(values)))

    @override
    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        self.received.append(("histogram", step, name))

    @override
    def image(self, step: int, name: str, pixels: Tensor) -> None:
        self.received.append(("image", step, name, tuple(pixels.shape)))

    @override
    def close(self) -> None:
        self.received.append(("close",))


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunLog]:
    monkeypatch.setattr(run_log, "TensorBoard", Recorder)
    monkeypatch.setattr(run_log, "gather_hosts", lambda: ["here"])
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
    log = RunLog(tmp_path, world=world, steps=10, done=0, hyperparameters={"seed": 1})
    yield log
    log.close()


def received(log: RunLog) -> list[tuple[Any, ...]]:
    return next(sink.received for sink in log._sinks if isinstance(sink, Recorder))


def test_a_sink_receives_the_configuration_rows_and_finite_scalars(log: RunLog, tmp_path: Path) -> None:
    log.row(3, ROW)
    log.event("save", step=3, checkpoint="step_000003")
    log.close()
    numbers = {"loss": 2.0, "lr": 0.1, "samples_per_second": 3.0, "step_seconds": 0.5}
    assert received(log) == [
        ("hyperparameters", {"seed": 1}),
        ("metrics", 3),
        ("scalars", 3, numbers),
        ("events", 3),
        ("close",),
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, **ROW, "grad_norm": None}


def test_a_sink_receives_what_the_probes_measured(log: RunLog) -> None:
    statistics = {"variance": 1.0, "max_abs": 2.0, "top1_over_median": 3.0, "fp16_overflow_share": 0.0}
    counts = torch.zeros(256)
    counts[127] = 5
    log.activations(1, [{"layer": 0, "site": "mlp", **statistics}], {(0, "mlp"): counts, (1, "mlp"): torch.zeros(256)})
    log.gradients(1, [{"parameter": "w", "norm": 1.0, "parameter_norm": 2.0, "update_ratio": None}])
    log.layers(2, [{"layer": 3, "loss": 2.0, "loss_without": float("nan"), "angular_distance": 0.25}])
    assert received(log)[1:] == [
        ("activations", 1),
        ("scalars", 1, {f"{name}/layer_000.mlp": value for name, value in statistics.items()}),
        ("histogram", 1, "log2_magnitude/layer_000.mlp"),
        ("gradients", 1),
        ("scalars", 1, {"gradient_norm/w": 1.0, "parameter_norm/w": 2.0}),
        ("layers", 2),
        ("scalars", 2, {"angular_distance/layer_003": 0.25}),
    ]


def test_a_sink_receives_pictures(log: RunLog) -> None:
    log.gallery(2).image("chair", torch.full((3, 4, 5), 2.0))
    assert received(log)[1:] == [("image", 2, "chair", (3, 4, 5))]


def test_a_histogram_leaves_out_zeros_and_infinities() -> None:
    counts = torch.zeros(256)
    counts[[0, 126, 128, 255]] = torch.tensor([9.0, 2.0, 3.0, 9.0])
    histogram = magnitude_histogram(counts)
    assert histogram is not None
    assert histogram.edges.tolist() == [-1, 0, 1, 2]
    assert histogram.counts.tolist() == [2.0, 0.0, 3.0]
    assert magnitude_histogram(torch.zeros(256)) is None


def test_a_full_disk_ends_tensorboard_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    board = TensorBoard(tmp_path, first_step=1)

    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    board._write(fail)
    board.scalars(1, {"loss": 1.0})
    board.close()
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard logging stopped (No space left on device); all metrics are in the .jsonl files"
    ]
