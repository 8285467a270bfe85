"""The picture of the architecture: `python docs/figures/architecture.py` writes architecture.svg beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 1120, 1364
LEFT, MIDDLE, RIGHT = 56, 560, 1064  # columns: LEFT to MIDDLE - GAP, MIDDLE to RIGHT
GAP = 16
COLORS = {  # of a package: fill of its frame, line
    "configs": ("#f3f0e8", "#8a7a4f"),
    "launch": ("#e8f0fa", "#2f6db3"),
    "train": ("#e9f5ec", "#2e8049"),
    "modeling": ("#fdeee2", "#c2641b"),
    "files": ("#f1f1f3", "#666a75"),
    "analysis": ("#f2eafa", "#7a4bb0"),
}


class Box(NamedTuple):
    """A rectangle with a name and a line of text; a frame holds others."""

    name: str
    text: str
    package: str
    x: int
    y: int
    right: int
    height: int
    is_frame: bool = False

    @property
    def bottom(self) -> int:
        """Return where its lower edge is."""
        return self.y + self.height


class Arrow(NamedTuple):
    """From the lower edge of one box to the upper edge of another, at a place where both are."""

    start: str
    end: str
    x: int
    label: str


def room(name: str, text: str, package: str, x: int, y: int, right: int) -> Box:
    """Return a box that holds no others."""
    return Box(name, text, package, x, y, right, 60)


def frame(name: str, text: str, package: str, y: int, height: int, *, x: int = 40, right: int = 1080) -> Box:
    """Return a box that holds others."""
    return Box(name, text, package, x, y, right, height, is_frame=True)


BOXES = [
    room("configs/*.yaml", "values only: one file is one run", "configs", 316, 16, 804),
    frame("launch/", "starts processes, on a login node too; no torch", "launch", 110, 112),
    room("local.py", "ranks on this machine", "launch", LEFT, 146, 296),
    room("slurm/", "jobs that requeue themselves", "launch", 312, 146, 552),
    room("sweep/", "grids and chains", "launch", 568, 146, 808),
    room("plan/", "memory, hours, sizes", "launch", 824, 146, RIGHT),
    frame("train/", "one process for each rank", "train", 256, 628),
    room("config/", "every setting, checked; no torch", "train", LEFT, 290, 380),
    room("ranks/", "process group, signals; watchdog/", "train", 396, 290, 724),
    room("rank.py", "assembles a run and fits it", "train", 740, 290, RIGHT),
    room("loop.py", "fit(): read it from top to bottom", "train", LEFT, 384, MIDDLE - GAP),
    room("data/", "order by (seed, step); text/ images/ annotated/", "train", MIDDLE, 384, RIGHT),
    room("tasks/", "language model, depth up-sampling, ...: batch, step, evaluation", "train", LEFT, 478, RIGHT),
    frame("modeling/", "networks; exported beside their weights", "modeling", 568, 112, x=LEFT, right=RIGHT),
    room("decoder/", "pre, post, peri, output norms", "modeling", 72, 604, 400),
    room("joint_filter/", "DKN and FDKN", "modeling", 416, 604, 726),
    room("segmentation/", "masks from boxes: BAP, NAL", "modeling", 742, 604, 1048),
    room("engine/", "DeepSpeed: backward, step, ZeRO stages", "train", LEFT, 714, MIDDLE - GAP),
    room("checkpoint/", "any ranks, any stage; safetensors", "train", LEFT, 808, MIDDLE - GAP),
    room("observe/", "probes, metrics, spikes", "train", MIDDLE, 714, RIGHT),
    frame("runs/NAME/", "the run folder: what programs and people read afterwards", "files", 918, 112),
    room("checkpoints/", "and weights/", "files", LEFT, 954, 376),
    room("config.yaml", "environment.json, stacks.txt", "files", 392, 954, 712),
    room("*.jsonl", "metrics, activations, gradients, events", "files", 728, 954, RIGHT),
    room("export/", "loads anywhere", "train", LEFT, 1062, 244),
    room("convert/", "to and from Llama ...", "train", 260, 1062, 448),
    room("evaluate/", "on other data", "train", 464, 1062, 636),
    room("pseudo_labels/", "of images, from boxes", "train", 652, 1062, 856),
    room("filter/", "images, by a filter", "train", 872, 1062, RIGHT),
    frame("analysis/", "reads files; knows nothing of training", "analysis", 1156, 196),
    room("inspect/", "any causal language model, at any step", "analysis", LEFT, 1190, MIDDLE - GAP),
    room("report/", "runs side by side on one page", "analysis", MIDDLE, 1190, RIGHT),
    room("measure/", "also used by train's probes", "analysis", LEFT, 1284, 296),
    room("images/", "what tasks saved", "analysis", 312, 1284, 552),
    room("figures/", "plots", "analysis", 568, 1284, 808),
    room("page/", "one HTML file", "analysis", 824, 1284, RIGHT),
]
ARROWS = [
    Arrow("configs/*.yaml", "launch/", 560, "CONFIG key=value"),
    Arrow("launch/", "train/", 560, "python -m train, once for each rank"),
    Arrow("config/", "loop.py", 218, "RunConfig"),
    Arrow("rank.py", "data/", 902, "opens"),
    Arrow("loop.py", "tasks/", 300, "step n: which samples"),
    Arrow("data/", "tasks/", 812, "the batch"),
    Arrow("tasks/", "modeling/", 652, "tensors"),
    Arrow("modeling/", "engine/", 390, "loss_sum, weight"),
    Arrow("modeling/", "observe/", 812, "activations at sites"),
    Arrow("engine/", "checkpoint/", 300, "fragments"),
    Arrow("checkpoint/", "runs/NAME/", 216, "a complete checkpoint, or none"),
    Arrow("observe/", "runs/NAME/", 896, "a line at a time"),
    Arrow("runs/NAME/", "export/", 150, ""),
    Arrow("runs/NAME/", "evaluate/", 550, ""),
    Arrow("runs/NAME/", "pseudo_labels/", 750, ""),
    Arrow("runs/NAME/", "analysis/", 864, ""),
    Arrow("export/", "analysis/", 150, "MODEL"),
    Arrow("inspect/", "measure/", 176, ""),
    Arrow("report/", "figures/", 688, ""),
    Arrow("report/", "page/", 944, ""),
]


def drawn_box(box: Box) -> list[str]:
    """Return a box as SVG."""
    fill, line = COLORS[box.package]
    if not box.is_frame:
        fill = "#ffffff"
    shape = f'x="{box.x}" y="{box.y}" width="{box.right - box.x}" height="{box.height}" rx="8"'
    lines = [f'<rect {shape} fill="{fill}" stroke="{line}" stroke-width="{2 if box.is_frame else 1.5}"/>']
    if box.is_frame:
        name = f'<tspan class="name">{escape(box.name)}</tspan>'
        lines.append(f'<text x="{box.x + 16}" y="{box.y + 24}">{name}  {escape(box.text)}</text>')
        return lines
    middle = (box.x + box.right) // 2
    lines.append(f'<text x="{middle}" y="{box.y + 25}" class="name" text-anchor="middle">{escape(box.name)}</text>')
    lines.append(f'<text x="{middle}" y="{box.y + 45}" text-anchor="middle">{escape(box.text)}</text>')
    return lines


def drawn_arrow(arrow: Arrow) -> list[str]:
    """Return an arrow and its label as SVG."""
    boxes = {box.name: box for box in BOXES}
    top, bottom = boxes[arrow.start].bottom, boxes[arrow.end].y
    lines = [f'<path d="M{arrow.x} {top}V{bottom - 3}" class="arrow" marker-end="url(#head)"/>']
    if arrow.label:
        lines.append(
            f'<text x="{arrow.x + 10}" y="{(top + bottom) // 2 + 5}" class="label">{escape(arrow.label)}</text>'
        )
    return lines


def svg() -> str:
    """Return the picture."""
    frames = [line for box in BOXES if box.is_frame for line in drawn_box(box)]
    rooms = [line for box in BOXES if not box.is_frame for line in drawn_box(box)]
    arrows = [line for arrow in ARROWS for line in drawn_arrow(arrow)]
    style = (
        "text{font:14px 'DejaVu Sans',Verdana,sans-serif;fill:#222;white-space:pre}"
        ".name{font:bold 15px 'DejaVu Sans Mono',Menlo,monospace}"
        ".label{font-size:13px;font-style:italic;fill:#444}.arrow{stroke:#444;stroke-width:1.6;fill:none}"
    )
    head = '<marker id="head" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">',
        "<title>periln: from a configuration to a report</title>",
        f'<defs><style>{style}</style>{head}<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *frames,
        *rooms,
        *arrows,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(svg())
