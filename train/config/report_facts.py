"""Properties of settings that reports rely on, written to each run folder as settings.json.

`analysis` does not import `train` and keeps no table of settings: it groups runs by the contents of this file.
"""

from __future__ import annotations

from typing import Any

from train.config.run import RunConfig
from train.config.setting import nearest, settings_in

FORMAT = 1


def report_facts(config: RunConfig) -> dict[str, Any]:
    """Return the properties of a run's settings; a path covers everything below it that is not listed itself.

    `report` defines whether runs that differ in a setting are distinguished ("distinguishes", the default), are seeds
    of one line ("seed"), or count as equal ("ignored"); `judged_by` lists the settings that determine the meaning of a
    validation metric.
    """
    settings = dict(settings_in(config))
    roles = {path: setting.report or "distinguishes" for path, setting in settings.items()}
    judging = {path: setting.judges for path, setting in settings.items()}
    return {
        "format": FORMAT,
        "report": {path: role for path, role in roles.items() if role != (_above(path, roles) or "distinguishes")},
        "judged_by": [path for path, judges in judging.items() if judges and not _above(path, judging)],
    }


def _above(path: str, properties: dict[str, Any]) -> Any:
    return nearest(path.rpartition(".")[0], properties)
