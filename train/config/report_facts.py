"""What reports need to know about settings, written into each run folder as settings.json.

`analysis` knows nothing of training and keeps no table of settings: it groups runs by what this file says.
"""

from __future__ import annotations

from typing import Any

from train.config.run import RunConfig
from train.config.setting import nearest, settings_in

FORMAT = 1


def report_facts(config: RunConfig) -> dict[str, Any]:
    """Return the facts of a run's settings; a path stands for all below it that are not listed themselves.

    `report` says whether runs that differ in a setting are told apart ("distinguishes", which is the default), are
    seeds of one line ("seed"), or are the same ("ignored"); `judged_by` lists the settings that decide what a
    validation metric means.
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
