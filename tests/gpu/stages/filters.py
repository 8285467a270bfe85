"""Stage `filters`: the joint image filters on a card: training, speed, and the same output as on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.modeling_dkn import DKNModel
from tests.benchmark.filters import FILTER_ARMS, HEIGHT, WIDTH, measure_filter
from tests.gpu.bench import ROOT, Bench
from tests.gpu.runs import folder, training_rows

TINY = (24, 32)
OUTPUTS = 1e-3  # relative to the largest output, in fp32 without TF32, which convolutions use by default
ARMS = [name for name, arm in FILTER_ARMS.items() if not arm.plain]
CONFIG = ROOT / "configs/depth_upsampling/quickstart.yaml"


def run(bench: Bench) -> None:
    """Train first: on a CPU that run is forked, which threads of a backward pass would not survive."""
    bench.item("training", lambda: training(bench))
    size = TINY if bench.options.tiny else (HEIGHT, WIDTH)
    for name in ("fdkn", "dkn"):
        bench.item(f"{name} output", lambda name=name: output(bench, name, size=size))
    for name in ARMS:
        bench.item(name, lambda name=name: timed(bench, name, size=size))


def timed(bench: Bench, name: str, *, size: tuple[int, int]) -> dict[str, float]:
    """Time a filter's pass, or its training step."""
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return measure_filter(name, steps=200 if bench.on_gpu else 1, size=size)


def training(bench: Bench) -> dict[str, Any]:
    """Train depth upsampling for some steps without the baselines, which need OpenCV's contributed modules."""
    words = [str(CONFIG), "name=depth", f"output_dir={bench.work / 'runs'}", "steps=6", "optim.warmup=2", "log_every=1"]
    sources = "{path: procedural-scenes, start: 1000, stop: 1002, size: [64, 64], units_per_value: 100}"
    words += ["task.baselines=false", f"task.data.validation_sources=[{sources}]", "task.shown_images=0"]
    if bench.options.tiny:
        words += ["task.data.crop=32", "task.data.sources=[{path: procedural-scenes, stop: 8, size: [48, 48]}]"]
        words += ["global_batch_size=2", "micro_batch_size=2"]
    bench.finish(bench.start("depth", "tests.gpu.loops.rank", ["plain", *words]))
    found = training_rows(folder(bench, "depth"))
    if any(row["loss"] is None for row in found):
        raise AssertionError("a loss is not finite")
    return {"steps": len(found), "last_step_ms": 1e3 * found[-1]["step_seconds"], "loss": found[-1]["loss"]}


@torch.no_grad()
def output(bench: Bench, architecture: str, *, size: tuple[int, int]) -> dict[str, Any]:
    """Compare a filter's output on the card with the CPU's."""
    torch.manual_seed(0)
    model = DKNModel(DKNConfig(architecture=architecture)).eval()  # type: ignore[arg-type]
    height, width = (side // 4 for side in size) if bench.on_gpu else size  # DKN takes long on a CPU
    images = [torch.rand(1, channels, height, width) for channels in (3, 1)]
    expected, found = (_output(model, images, device) for device in ("cpu", bench.options.device))
    difference = float((found - expected).abs().max() / expected.abs().max())
    if difference > (OUTPUTS if bench.on_gpu else 0.0):
        raise AssertionError(f"the output differs by {difference:.2g} from the CPU's")
    return {"size": f"{width} x {height}", "relative_difference": difference}


def _output(model: nn.Module, images: list[Tensor], device: str) -> Tensor:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return model.to(device)(*(image.to(device) for image in images)).output.cpu()
