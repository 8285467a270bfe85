"""Writing of a page, atomically, with its plots beside it as PNG (300 dpi), SVG (with text as text) and CSV."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis.page.contents import Section
from analysis.page.markup import Saved, page_html
from analysis.runs import InputError
from analysis.style import PAPER, Panel, Series, series_of

DPI = 300
_NO_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
_MARK = re.compile(r'<meta name="periln" content="([^"]*)">')


def check_out(out: Path, *, kind: str) -> None:
    """Refuse a folder that holds anything but an earlier page of the same kind.

    Raises:
        InputError: The folder holds other files; the message names them.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder that does not exist yet")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    ours = _written_before(out / "index.html", kind)
    if ours is None:
        raise InputError(
            f"--out {out}: is not empty and holds no earlier {kind}; give a folder that does not exist yet, "
            f"or one with an earlier {kind} to replace"
        )
    if foreign := sorted(names - ours):
        raise InputError(
            f"--out {out}: holds other files besides an earlier {kind}, which would be deleted: "
            f"{', '.join(foreign[:5])}; move them away or give another folder"
        )


def write_page(
    out: Path,
    title: str,
    sections: Sequence[Section],
    *,
    kind: str = "report",
    lead: str = "",
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write index.html, figures/*.png, *.svg and *.csv, and further files; an earlier page of this kind is replaced.

    Args:
        out: Folder; written beside itself and renamed, so that it is there completely or as it was.
        title: Heading of the page.
        sections: What it shows. Names of plates are distinct over all sections.
        kind: What the page is; only a page of this kind may be replaced.
        lead: A sentence under the heading.
        files: Further text files, by path below `out`.

    Returns:
        The path of index.html.

    Raises:
        InputError: As `check_out`.
    """
    check_out(out, kind=kind)
    files = files or {}
    temporary = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "figures").mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be created ({error.strerror}); give a writable location") from error
    try:
        for path, text in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text)
        drawn = {
            id(panel): _save(panel.figure, temporary / "figures" / f"{plate.name}{_ending(panel)}")
            for section in sections
            for plate in section.plates
            for panel in plate.panels
        }
        ours = sorted({"index.html", "figures", *(Path(path).parts[0] for path in files)})
        text = page_html(title, lead, sections, drawn, out=out, mark=json.dumps({"kind": kind, "files": ours}))
        (temporary / "index.html").write_text(text)
        _replace(temporary, out.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / "index.html"


def _written_before(index: Path, kind: str) -> set[str] | None:
    """Return the names that an earlier page of this kind wrote, None where there is no such page."""
    if not index.is_file():
        return None
    with index.open(errors="replace") as file:
        match = _MARK.search(file.read(4096))
    if match is None:
        return None
    try:
        mark = json.loads(html.unescape(match.group(1)))
        return set(mark["files"]) if mark["kind"] == kind else None
    except (ValueError, KeyError, TypeError):
        return None


def _replace(temporary: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _ending(panel: Panel) -> str:
    return f"-{panel.name}" if panel.name else ""


def _save(figure: Figure, stem: Path) -> Saved:
    """Write PNG, SVG and, for lines, CSV.

    The canvases are asked directly and the layout is found once: `savefig` draws every figure twice.
    """
    svg = stem.with_name(f"{stem.name}.svg")
    with matplotlib.rc_context(PAPER):
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(stem.with_name(f"{stem.name}.png"))
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata=_NO_METADATA)
    series = series_of(figure)
    if series:
        _write_csv(stem.with_name(f"{stem.name}.csv"), series)
    return Saved(stem.name, svg.read_bytes(), ("svg", "png", "csv") if series else ("svg", "png"))


def _write_csv(path: Path, series: Sequence[Series]) -> None:
    """Write every point of every line, neither thinned nor rounded; a value that does not exist is empty."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("label", "quantity", "x", "y", "low", "high"))
        for line in series:
            nothing = np.full(len(line.x), np.nan)
            low, high = (nothing if ends is None else ends for ends in (line.low, line.high))
            columns = (_exact(values) for values in (line.x, line.y, low, high))
            writer.writerows((line.label, line.quantity, *row) for row in zip(*columns, strict=True))


def _exact(values: np.ndarray) -> list[str]:
    """Return numbers as the shortest texts that read back as the same numbers, and NaN as an empty one."""
    return ["" if math.isnan(value) else repr(value) for value in np.asarray(values, dtype=float).tolist()]
