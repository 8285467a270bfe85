"""Facts about settings from a run's settings.json: which ones distinguish runs, and which decide comparability.

`python -m train` writes the file, so there is no table of settings here. A path covers everything unlisted below it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SettingFacts:
    """Facts about the settings of one or several runs.

    Attributes:
        report: By path, "distinguishes" (the default), "seed" or "ignored".
        judged_by: Paths of the settings without which validation metrics cannot be compared.
    """

    report: Mapping[str, str] = field(default_factory=dict)
    judged_by: tuple[str, ...] = ()

    def role(self, path: str) -> str:
        """Return what a difference in a setting means: "distinguishes", "seed" or "ignored"."""
        if path == "name":  # a run's name never distinguishes it, even without settings.json
            return "ignored"
        while path not in self.report and "." in path:
            path = path.rpartition(".")[0]
        return self.report.get(path, "distinguishes")

    def judges(self, path: str) -> bool:
        """Return whether validation metrics of runs that differ in a setting cannot be compared."""
        return any(path == judge or path.startswith(f"{judge}.") for judge in self.judged_by)


def read_setting_facts(folder: Path) -> SettingFacts | None:
    """Return the facts in a run folder; None where it has none, as those of older versions."""
    try:
        facts: dict[str, Any] = json.loads((folder / "settings.json").read_text())
        report = {str(path): str(role) for path, role in facts["report"].items()}
        return SettingFacts(report, tuple(map(str, facts["judged_by"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def merged(facts: Iterable[SettingFacts | None]) -> SettingFacts:
    """Return the facts of several runs as one; what one run lacks, another may know."""
    present = [each for each in facts if each is not None]
    report = {path: role for each in present for path, role in each.report.items()}
    return SettingFacts(report, tuple(dict.fromkeys(path for each in present for path in each.judged_by)))
