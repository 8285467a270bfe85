"""HTML of a page: one self-contained text with its plots embedded.

Its content security policy forbids everything but what is embedded, so it opens from a file and never uses the network.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from analysis.page.contents import FileLink, Section, Spread, Table, number_text
from analysis.style import WIDTH, Panel, Plate

_MOST_ITEMS, _FIRST_ITEMS = 10, 6  # of a list that is open, and of one whose end is closed
_LONGEST_WORD = 24  # letters that stay on one line of a table
_STYLE = Path(__file__).with_name("page.css")


class Saved(NamedTuple):
    """A figure's files: its name without an ending, its SVG, and the endings."""

    name: str
    svg: bytes
    endings: tuple[str, ...]


def page_html(
    title: str, lead: str, sections: Sequence[Section], drawn: Mapping[int, Saved], *, out: Path, mark: str
) -> str:
    """Return the text of a page.

    Args:
        title: Heading of the page.
        lead: A sentence under the heading.
        sections: What it shows.
        drawn: The files of each panel, by the panel's id.
        out: Folder of the page, from which links start.
        mark: What the page is and which files it wrote, for the next report in this folder.
    """
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


def _section(section: Section, drawn: Mapping[int, Saved], out: Path) -> str:
    parts = [f'<section id="{_anchor(section.title)}">', f"<h2>{_text(section.title)}</h2>"]
    parts += [f"<p>{_text(sentence)}</p>" for sentence in section.prose]
    parts.append(_list("notes", section.notes))
    parts += [_table(table, out) for table in section.tables]
    parts += [_plate(plate, drawn) for plate in section.plates]
    return "\n".join([*(part for part in parts if part), "</section>"])


def _plate(plate: Plate, drawn: Mapping[int, Saved]) -> str:
    images = [_image(panel, drawn[id(panel)]) for panel in plate.panels]
    kind = "panels row" if plate.is_row else "panels"
    scrolls = ' tabindex="0"' if plate.is_row else ""  # sideways, on a phone
    grid = f'<div class="{kind}"{scrolls}>{"".join(images)}</div>' if images else ""
    caption = f"<figcaption>{_text(plate.caption)}</figcaption>" if images else ""
    return "\n".join(
        [
            f"<h3>{_text(plate.title)}</h3>",
            f"<figure>{grid}{caption}</figure>" if images else "",
            _list("findings", plate.findings, is_open=plate.is_open),
            _list("missing", [f"Not shown: {reason}." for reason in plate.missing]),
        ]
    )


def _image(panel: Panel, saved: Saved) -> str:
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
