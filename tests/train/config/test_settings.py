"""Every setting is told once, where it is declared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

from tests.tiny import tiny_file
from tests.tiny_filter import tiny_filter_file
from train.config.errors import ConfigError
from train.config.load import load
from train.config.reference import as_markdown, as_text
from train.config.report_facts import report_facts
from train.config.run import RunConfig
from train.config.schema import key_paths
from train.config.setting import Entry, Setting, entries, is_union

ROOT = Path(__file__).parents[3]
SETTINGS = list(entries(RunConfig))
# Numbers for which every value of their type makes sense.
ANY_NUMBER = {"missing", "start", "stop"}


def named(entry: Entry) -> str:
    return f"{entry.owner.__name__}.{entry.field.name}"


@pytest.mark.parametrize("entry", SETTINGS, ids=named)
def test_every_setting_has_a_meaning_and_numbers_a_range(entry: Entry) -> None:
    assert re.match(r"[\w-]+.* \w+", entry.setting.meaning) or entry.setting.meaning == "The task", "write a phrase"
    kinds = set(get_args(entry.type)) if is_union(entry.type) else {entry.type}
    if {int, float} & kinds and entry.field.name not in ANY_NUMBER:
        assert entry.setting.range_text
    assert bool(entry.setting.null) == (NoneType in kinds), "null is allowed exactly where it is said what it means"


def test_every_setting_is_listed(tmp_path: Path) -> None:
    text, page = as_text(), as_markdown()
    for entry in SETTINGS:
        if not entry.is_section:
            assert f"  {entry.path}: " in text
            assert f"| `{entry.path}` |" in page
    assert {entry.path for entry in SETTINGS} == set(key_paths(RunConfig))


def test_the_page_of_settings_is_the_one_that_is_generated() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    assert page == as_markdown(), "run make settings"


def test_a_pattern_selects_by_a_part_of_the_path_or_as_a_shell_does() -> None:
    assert "optim.warmup: " in as_text("warm")
    assert "optim.lr: " not in as_text("warm")
    assert re.findall(r"^  (\S+): ", as_text("engine.*_stage"), re.MULTILINE) == ["engine.zero_stage"]
    with pytest.raises(ConfigError, match="no setting matches 'warmpu'"):
        as_text("warmpu")


def test_the_command_lists_settings_without_torch() -> None:
    program = (
        "import sys; from train.__main__ import main; code = main(['--settings', 'optim.lr']);"
        "print(code, sorted({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "optim.lr: a number, from 1e-30 to 1e+06, required" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_no_second_table_names_settings_by_their_paths() -> None:
    """A list, set or dictionary of three paths or more is a table; rules name the few settings that they read."""
    paths = {entry.path for entry in SETTINGS if "." in entry.path and not entry.is_section}
    for package in ("train", "launch", "analysis"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for table in re.findall(r"[\[{(]((?:\s*\"[\w.]+\"(?:: [^,\n]+)?,)+)", file.read_text()):
                strings = re.findall(r"\"([\w.]+)\"", table)
                assert len([text for text in strings if text in paths]) < 3, f"{file}: {strings}"


@pytest.mark.parametrize(
    ("given", "value", "fault"),
    [
        (Setting(meaning="a", at_least=1), 0, "0 is too small; write 1 or more"),
        (Setting(meaning="a", at_least=1, null="all"), 0, "0 is too small; write null for all"),
        (Setting(meaning="a", above=0, below=1), 1.0, "1.0 is too large; write a number above 0 and below 1"),
        (Setting(meaning="a", at_least=0, at_most=1), 2.0, "2.0 is too large; write a number from 0 to 1"),
        (Setting(meaning="a", at_least=0, below=1), (0.5, 1.0), "1.0 is too large; write a number from 0 to below 1"),
        (Setting(meaning="a", at_least=1), 1, None),
        (Setting(meaning="a", at_least=1), None, None),
        (Setting(meaning="a", at_least=1), True, None),
        (Setting(meaning="a"), -1, None),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(given: Setting, value: object, fault: str | None) -> None:
    assert given.violation(value) == fault


def test_reports_learn_what_sets_runs_apart(tmp_path: Path) -> None:
    facts = report_facts(load(tiny_file(tmp_path)))
    assert facts["report"]["seed"] == facts["report"]["task.data.seed"] == "seed"
    assert facts["report"]["checkpoint"] == facts["report"]["watchdog"] == "ignored"
    assert facts["report"]["checkpoint.start_from"] == "distinguishes"
    assert "optim.lr" not in facts["report"]
    assert "task.data.validation_sources" in facts["judged_by"]
    assert "task.data.scale" in report_facts(load(tiny_filter_file(tmp_path)))["judged_by"]
