"""Text that no one should write: one message for each, no traceback, and bounded time."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from launch.slurm import cluster
from launch.sweep.sweep_file import read_sweep
from tests.tiny import tiny_file
from train.config import yaml_text
from train.config.errors import MOST_LINES, ConfigError
from train.config.load import load
from train.config.yaml_loader import MOST_DEPTH, MOST_NODES, parse

NINES = "9" * 5000
BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
)
MERGE_BOMB = "\n".join(["b0: &b0 {x: 1}", *(f"b{n}: &b{n} {{<<: [*b{n - 1}, *b{n - 1}]}}" for n in range(1, 60))])

# value of a setting -> what the message contains
VALUES = {
    "!!int x": "x is not a whole number",
    "!!int 3.5": "3.5 is not a whole number",
    "!!int": "is not a whole number",
    "!!float x": "x is not a number",
    "!!bool yes": "yes is not true or false",
    "!!null x": "x is not null",
    "!!timestamp x": "the tag !!timestamp is not supported",
    "!!binary x": "the tag !!binary is not supported",
    "!!set {a}": "the tag !!set is not supported",
    "!!omap [a: 1]": "the tag !!omap is not supported",
    "!!python/object/apply:os.getcwd []": "the tag !!python/object/apply:os.getcwd is not",
    "!!map []": "the tag !!map is not supported",
    "!own x": "the tag !own is not supported",
    '"\\0"': "the character U+0000",
    '"\\ud800"': "the character U+D800",
    '"\\UFFFFFFFF"': "not valid YAML",
    "\0": "the character U+0000 is not allowed",
    "\x07": "the character U+0007 is not allowed",
    "\udc80": "the character U+DC80 is not allowed",
    NINES: "99... is too large",
    f"0x{NINES}": "99... is too large",
    f"1e{NINES}": "99... is too large",
    "1.0e5000": "1.0e5000 is too large",
    "1.0e-5000": "1.0e-5000 is too small, as it would be read as 0",
    "[" * 3000: f"more than {MOST_DEPTH} sections and lists",
    "{a: " * 3000: f"more than {MOST_DEPTH} sections and lists",
    ".nan": ".nan is not a number",
    ".inf": ".inf is not a number",
    "{null: 2}": "keys must be text, and null is not",
    "{1: 2}": "keys must be text, and 1 is not",
    "{.nan: 2}": "keys must be text, and .nan is not",
    "{[a]: 2}": "a list or a section is used as a key",
    "{<<: 3}": "<< merges sections only",
    "*nowhere": "not valid YAML",
}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value[:30]))
def test_a_value_that_cannot_be_read_is_one_fault(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tiny_file(tmp_path), [f"optim.lr={value}"])
    (fault,) = error.value.faults
    assert VALUES[value] in fault
    assert "optim.lr" in fault
    assert len(fault) < 400


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("task.kind=[1]", "task.kind: [1] is not one of"),
        ("task.kind={a: 1}", "task.kind: {a: 1} is not one of"),
        ("task.model.rope_parameters.rope_type=[a]", "rope_parameters.rope_type: ['a'] is none of"),
        ("task.model.norm_placement=[[a]]", "norm_placement.0: [a] is not one of"),
        (f"optim.betas.{NINES}=1", "optim.betas"),
        ("x" * 100_000 + "=1", "unknown key"),
    ],
    ids=lambda text: text[:40],
)
def test_values_of_another_shape_are_one_fault(tmp_path: Path, override: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tiny_file(tmp_path), [override])
    assert fragment in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (BOMB, f"more than {MOST_NODES:,} values"),
        (f"{BOMB}\nsteps: *a29", f"more than {MOST_NODES:,} values"),
        (MERGE_BOMB, f"more than {MOST_NODES:,} values"),
        ("steps: &a [*a]", "wrong.yaml:1: not valid YAML: an alias contains itself"),
        ("task: &a {model: *a}", "an alias contains itself"),
        ("task: &a {<<: *a}", "an alias contains itself"),
        ("steps: 1\nname: \0", "wrong.yaml:2: not valid YAML: the character U+0000"),
        ("a: " + "[" * 3000, f"more than {MOST_DEPTH}"),
        ("x" * 2_000_000, "is larger than 1,000,000 bytes"),
        ("\n".join(f"k{n}: 1" for n in range(10_000)), "9980 more unknown keys"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert fragment in str(error.value)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "a\0b", "a\udc80b", "x" * 5000, "file/below"], ids=ascii)
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        load(tmp_path / name)


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tiny_file(tmp_path), ["task.data.sources=[" + "{a: 1}, " * 2000 + "]"])
    assert len(error.value.faults) == 4000
    assert str(error.value).count("\n") == MOST_LINES
    assert str(error.value).endswith("... and 3900 more")


def test_a_cluster_file_and_a_sweep_are_read_as_carefully(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("nodes: 1\nenvironment: {null: 2}\n")
    with pytest.raises(ConfigError, match="2: keys must be text, and null is not; put it in quotes"):
        cluster.load(path)
    path.write_text("name: a\nconfig: b\ngrid: {1: [2]}\n")
    with pytest.raises(ConfigError, match="3: keys must be text, and 1 is not; put it in quotes"):
        read_sweep(path)


def test_an_alias_is_a_copy_that_an_override_changes_alone(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text("a: &a {x: [1, 2]}\nb: *a\n")
    assert yaml_text.read(path, ["b.x.0=3"]) == ({"a": {"x": [1, 2]}, "b": {"x": [3, 2]}}, [])


def test_merged_sources_give_way_to_earlier_ones_and_to_own_keys() -> None:
    text = "a: &a {x: 1, y: 1, z: 1}\nb: &b {x: 2, y: 2, w: 2}\nc: {y: 3, <<: [*a, *b]}\n"
    value = parse(text).value
    assert isinstance(value, dict)
    assert value["c"] == {"x": 1, "y": 3, "z": 1, "w": 2}


def test_random_text_is_read_or_refused(tmp_path: Path) -> None:
    """Pieces of a configuration and of YAML's syntax, shuffled: parsing, checking and showing never raise."""
    generator, whole = random.Random(0), tiny_file(tmp_path).read_text()
    syntax = [
        "&a ",
        "*a",
        "<<: ",
        "!!",
        "!",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "? ",
        "|\n",
        ">\n",
        "'",
        '"',
        "#",
        "%",
        "\n  ",
    ]
    outcomes: list[list[str]] = []
    for _ in range(400):
        cuts = sorted(generator.sample(range(len(whole)), 2))
        pieces = [whole[: cuts[0]], *generator.choices(syntax, k=generator.randrange(1, 5)), whole[cuts[1] :]]
        path = tmp_path / "random.yaml"
        path.write_text("".join(pieces))
        outcomes.append(faults_of(path))
    assert sum(map(bool, outcomes)) > 300


def faults_of(path: Path) -> list[str]:
    try:
        load(path)
    except ConfigError as error:
        return error.faults
    return []
