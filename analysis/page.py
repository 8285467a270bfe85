"""Self-contained HTML page with its plots, written atomically.

The page opens from a file and never uses the network: its plots are embedded, and its content security policy forbids
anything else. The same plots are saved next to it as PNG (300 dpi) and SVG (with text as text), and their numbers as
CSV.
"""

from __future__ import annotations

import base64
import csv
import html
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis.runs import InputError
from analysis.style import PAPER, WIDTH, Panel, Plate, Series, series_of

DPI = 300
_MOST_ITEMS, _FIRST_ITEMS = 10, 6  # of a list that is open, and of one whose end is closed
_LONGEST_WORD = 24  # letters that stay on one line of a table
_STYLE = Path(__file__).with_name("page.css")
_NO_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
_MARK = re.compile(r'<meta name="periln" content="([^"]*)">')


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: Cells: text, a number, a Spread, a FileLink, or None for a dash.
        caption: Text above the table.
        best: (row, column) of bold cells.
        same: What is the same in all rows, by name; listed above the table.
        is_upright: Whether a column mixes all kinds of cells, so that none is aligned as numbers.
        is_folded: Whether the table is closed until the reader opens it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    best: Collection[tuple[int, int]] = ()
    same: Mapping[str, str] = field(default_factory=dict)
    is_upright: bool = False
    is_folded: bool = False


class Spread(NamedTuple):
    """A metric over several runs: its mean and range."""

    mean: float
    low: float
    high: float


class FileLink(NamedTuple):
    """A file that a cell links, by its path relative to the page."""

    text: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: notes first, then tables, then plots."""

    title: str
    prose: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plates: Sequence[Plate] = ()


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
        text = _page(title, lead, sections, drawn, out=out, mark=json.dumps({"kind": kind, "files": ours}))
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


class _Saved(NamedTuple):
    """A figure's files: its name without an ending, its SVG, and the endings."""

    name: str
    svg: bytes
    endings: tuple[str, ...]


def _save(figure: Figure, stem: Path) -> _Saved:
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
    return _Saved(stem.name, svg.read_bytes(), ("svg", "png", "csv") if series else ("svg", "png"))


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


def _page(
    title: str, lead: str, sections: Sequence[Section], drawn: Mapping[int, _Saved], *, out: Path, mark: str
) -> str:
    several = len(sections) > 1
    links = (f'<a href="#{_anchor(s.title)}">{_text(s.title)}</a>' for s in sections)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta name="periln" content="{html.escape(mark)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">",
            '<link rel="icon" href="data:,">',
            f"<title>{_text(title)}</title>",
            f"<style>{_STYLE.read_text()}</style>",
            "</head>",
            "<body>",
            f"<h1>{_text(title)}</h1>",
            f"<p>{_text(lead)}</p>" if lead else "",
            f"<nav>{' '.join(links)}</nav>" if several else "",
            *(_section(section, drawn, out) for section in sections),
            "</body>",
            "</html>",
            "",
        ]
    )


def _section(section: Section, drawn: Mapping[int, _Saved], out: Path) -> str:
    parts = [f'<section id="{_anchor(section.title)}">', f"<h2>{_text(section.title)}</h2>"]
    parts += [f"<p>{_text(sentence)}</p>" for sentence in section.prose]
    parts.append(_list("notes", section.notes))
    parts += [_table(table, out) for table in section.tables]
    parts += [_plate(plate, drawn) for plate in section.plates]
    return "\n".join([*(part for part in parts if part), "</section>"])


def _plate(plate: Plate, drawn: Mapping[int, _Saved]) -> str:
    images = [_image(panel, drawn[id(panel)]) for panel in plate.panels]
    grid = f'<div class="panels">{"".join(images)}</div>' if images else ""
    caption = f"<figcaption>{_text(plate.caption)}</figcaption>" if images else ""
    return "\n".join(
        [
            f"<h3>{_text(plate.title)}</h3>",
            f"<figure>{grid}{caption}</figure>" if images else "",
            _list("findings", plate.findings, is_open=plate.is_open),
            _list("missing", [f"Not shown: {reason}." for reason in plate.missing]),
        ]
    )


def _image(panel: Panel, saved: _Saved) -> str:
    width, height = panel.figure.get_size_inches()
    data = base64.b64encode(saved.svg).decode()
    wide = " wide" if width > 1.5 * WIDTH else ""
    links = " ".join(
        f'<a href="{html.escape(_address(f"figures/{saved.name}.{ending}"))}">{ending.upper()}</a>'
        for ending in saved.endings
    )
    return (
        f'<div class="panel{wide}"><div class="picture" tabindex="0"><img alt="{html.escape(panel.alt)}" '
        f'width="{width * 96:.0f}" height="{height * 96:.0f}" src="data:image/svg+xml;base64,{data}"></div>'
        f'<p class="files">{links}</p></div>'
    )


def _address(path: str) -> str:
    """Return a relative path as an address: what is special in one is quoted, whatever bytes a name holds."""
    return quote(os.fsencode(path), safe="/")


def _table(table: Table, out: Path) -> str:
    columns = range(len(table.header))
    numeric = [i > 0 and not table.is_upright and any(_is_number(row[i]) for row in table.rows) for i in columns]
    head = "".join(
        f'<th scope="col"{_classes(name, is_number)}>{_breakable(name)}</th>'
        for name, is_number in zip(table.header, numeric, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(row[i], i, numeric[i], (n, i) in table.best, out) for i in columns)}</tr>"
        for n, row in enumerate(table.rows)
    )
    caption = f"<p>{_text(table.caption)}</p>" if table.caption else ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    kind = ' class="upright"' if table.is_upright else ""
    grid = f'<div class="scroll" tabindex="0"><table{kind}>{body}</table></div>' if table.rows else ""
    if table.is_folded and grid:
        grid = f"<details><summary>{len(table.rows)} rows</summary>{grid}</details>"
    return f"<h3>{_text(table.title)}</h3>\n{caption}{_same(table.same)}{grid}"


def _same(facts: Mapping[str, str]) -> str:
    """Return facts as a list of names and values on one or few lines."""
    items = "".join(f"<div><dt>{_breakable(name)}</dt> <dd>{_text(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="same">{items}</dl>' if items else ""


def _cell(value: Any, column: int, is_numeric: bool, is_best: bool, out: Path) -> str:
    if isinstance(value, FileLink):
        relative = os.path.relpath(os.path.realpath(value.path), os.path.realpath(out))
        return f'<td><a href="{html.escape(_address(relative))}">{_text(value.text)}</a></td>'
    if column == 0:
        name = number_text(value)
        return f'<th scope="row"{_classes(name)}>{_breakable(name)}</th>'
    text = _text(number_text(value))
    if isinstance(value, Spread):  # a line may end between mean and range, not within them
        text = text.replace(" to ", "&nbsp;to&nbsp;")
    kind = _classes(number_text(value), is_numeric and (value is None or _is_number(value)))
    return f"<td{kind}>{f'<strong>{text}</strong>' if is_best else text}</td>"


def _breakable(name: str) -> str:
    """Return a name with places where a line may end: after the dots of a setting, the slashes of a path."""
    return re.sub(r"([./_])(?=[A-Za-z])", r"\1<wbr>", _text(name))


def _classes(text: str, is_number: bool = False) -> str:
    """Return the classes of a cell: numbers are aligned right, and only words that are too long are broken."""
    is_long = max(map(len, text.split()), default=0) > _LONGEST_WORD
    names = " ".join(name for name, holds in (("number", is_number), ("long", is_long)) if holds)
    return f' class="{names}"' if names else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Spread) and not isinstance(value, bool)


def number_text(value: Any) -> str:
    """Return a cell as people read it: four digits of a fraction, counts in full, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, Spread):
        return f"{number_text(value.mean)} ({number_text(value.low)} to {number_text(value.high)})"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and 1e3 <= abs(value) < 1e15):
        return f"{int(value):,}"
    if math.isinf(value):
        return "infinite"
    if 0.1 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")  # with its last zeros: 3.400 below 3.403
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def _list(kind: str, sentences: Iterable[str], *, is_open: bool = False) -> str:
    """Return a list of sentences; the end of a long one is closed until the reader opens it, unless `is_open`."""
    items = [f"<li>{_text(sentence)}</li>" for sentence in sentences]
    if not items:
        return ""
    if is_open or len(items) <= _MOST_ITEMS:
        return f'<ul class="{kind}">{"".join(items)}</ul>'
    first, rest = items[:_FIRST_ITEMS], items[_FIRST_ITEMS:]
    return (
        f'<div class="{kind}"><ul>{"".join(first)}</ul>'
        f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details></div>"
    )


def _text(value: str) -> str:
    return html.escape(value, quote=False)


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
