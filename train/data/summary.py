"""Facts about data in words: a line per split and per source.

The facts are those that a task records in environment.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from train.data.split import SPLITS, Split

_UNITS = ("documents", "bytes", "tokens", "windows", "pairs", "images", "samples")
_SOURCES, _SIZES = 10, 3  # that are listed
_GROUPS = {"training": "task.data.sources", "validation": "task.data.validation_sources"}


def amounts(facts: Mapping[str, Any], split: Split) -> dict[str, int]:
    """Return how much a split has, by unit, as far as it is known."""
    known = {unit: facts.get(f"{split}_{unit}") for unit in _UNITS}
    if known["bytes"] is None:
        known["bytes"] = _bytes_of_sources(facts, split)
    return {unit: amount for unit, amount in known.items() if amount is not None}


def _bytes_of_sources(facts: Mapping[str, Any], split: Split) -> int | None:
    """Return the bytes of a split that has sources of its own, none of which was dropped."""
    sources: Mapping[str, Mapping[str, Any]] = facts.get("sources", {})
    if not any(path.startswith(_GROUPS["validation"]) for path in sources):
        return None
    if split == "training" and facts.get("training_documents_dropped_as_in_validation"):
        return None
    return sum(source["bytes"] for path, source in sources.items() if path.startswith(_GROUPS[split]))


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the data are: a line per split, a line per source, and what was left out."""
    for split in SPLITS:
        if of_split := amounts(facts, split):
            used = facts.get(f"{split}_windows_used")
            yield f"{split} data: {in_words(of_split)}{'' if used is None else f', of which {used:,} are used'}"
    sources: Mapping[str, Mapping[str, Any]] = facts.get("sources", {})
    tokens: Mapping[str, int] = facts.get("tokens_by_source", {})
    for path, source in list(sources.items())[:_SOURCES]:
        of_source = {unit: source[unit] for unit in ("files", "documents", "bytes") if unit in source}
        if path in tokens:
            of_source["tokens"] = tokens[path]
        yield f"  {path} {source['path']}: {in_words(of_source)}{_left_out(source)}"
    if len(sources) > _SOURCES:
        yield f"  ... and {len(sources) - _SOURCES:,} more sources"
    if dropped := facts.get("training_documents_dropped_as_in_validation"):
        yield f"  not trained on, as the validation sources contain them too: {_amount('documents', dropped)}"
    if repeated := facts.get("read_repeatedly"):
        more = ", ..." if len(repeated) > 3 else ""
        yield f"  read more than once, by several sources or links: {', '.join(repeated[:3])}{more}"
    yield from (f"  {line_of_set(of_set)}" for of_set in facts.get("validation_sets", ()))
    if weights := facts.get("initial_weights"):
        file = f": {weights['file']}, SHA-256 {weights['sha256']}" if "file" in weights else ""
        yield f"initial weights of the backbone: {weights['given']}{file}"
    if labels := facts.get("labels"):
        yield f"labels: {labels['path']}, made by step {labels['step']} of {labels['run']}"


def line_of_set(facts: Mapping[str, Any]) -> str:
    """Return what is in a validation set."""
    return f"validation set {facts['label'] or 'without a label'}: {in_words(facts)}"


def validation_line(facts: Mapping[str, Any], *, length: int) -> str:
    """Return what was read of a validation set, and of which files.

    Args:
        facts: See `train.data.text.validation`.
        length: Tokens that a window predicts.
    """
    names: list[str] = facts["first_files"][:3]
    more = f" and {facts['files'] - len(names):,} more" if facts["files"] > len(names) else ""
    head = "" if facts["label"] is None else f"{facts['label']}: "
    amount = in_words({unit: facts[unit] for unit in ("documents", "bytes", "tokens", "windows")})
    end = f"; the last {facts['tokens_dropped']:,} tokens fill no window" if facts.get("tokens_dropped") else ""
    first = "; only its first windows, as task.data.validation_windows says" if "first_windows_only" in facts else ""
    return f"{head}{', '.join(names)}{more}: {amount} of {length} tokens{_left_out(facts)}{end}{first}"


def _left_out(source: Mapping[str, Any]) -> str:
    counts = {"blank": source.get("blank_documents", 0), "bad and skipped": source.get("skipped", 0)}
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    first = f"; the first: {source['first_skipped'][0]}" if source.get("first_skipped") else ""
    return f" ({words}{first})" if words else ""


def in_words(counts: Mapping[str, Any]) -> str:
    """Return counts by unit in words: "1 document, 2.1 kB, 512 tokens"."""
    order = ("files", *_UNITS)
    return ", ".join(_amount(unit, counts[unit]) for unit in order if unit in counts)


def _amount(unit: str, count: int) -> str:
    if unit == "bytes":
        return size(count)
    return f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"


def sizes(counts: Counter[tuple[int, int]]) -> str:
    """Return the most frequent sizes of images, height by width, from how many have each."""
    words = ", ".join(f"{height} x {width}" for (height, width), _ in counts.most_common(_SIZES))
    return f"{words} pixels{f' and {len(counts) - _SIZES} more sizes' if len(counts) > _SIZES else ''}"


def size(count: int) -> str:
    """Return a number of bytes with a unit of 1000, 1000^2 or 1000^3 bytes."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} bytes"
