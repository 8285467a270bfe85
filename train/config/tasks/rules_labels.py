"""Cross-field checks of the labels that validation sources have, whatever the task."""

from __future__ import annotations

import re
from collections.abc import Iterator

from train.config.tasks.values import Values


def labels_name_metrics(values: Values) -> Iterator[str]:
    """Require labels that can be part of a metric's name, of validation sources alone."""
    for number, source in enumerate(values["task.data.sources"]):
        if source.label is not None:
            yield f"task.data.sources.{number}.label: has no effect on training data; remove it"
    for number, source in enumerate(values["task.data.validation_sources"]):
        if source.label is not None and not re.fullmatch(r"[A-Za-z0-9]\w{0,39}", source.label, re.ASCII):
            yield (
                f"task.data.validation_sources.{number}.label: {source.label!r} cannot be part of a metric's name; "
                "use up to 40 letters, digits and '_', as in books"
            )
