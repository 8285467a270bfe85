"""DKNConfig: its fields are the run configuration's, and what cannot work is refused with a way out."""

import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.facts_dkn import FilterShape, shape_faults
from modeling.joint_filter.purpose_dkn import FilterPurpose
from tests.modeling.decoder.test_config import own_fields
from train.config.tasks.joint_filter import FilterConfig


def test_fields_are_those_of_the_run_configuration() -> None:
    """But for the purpose, which describes the run rather than the network."""
    purpose = {"purpose": (dict[str, Any] | None, None)}
    assert own_fields(DKNConfig) == own_fields(FilterConfig) | purpose
    assert own_fields(FilterConfig).keys() == {each.name for each in fields(FilterShape)}


def test_facts_are_read_without_torch() -> None:
    code = "import modeling.joint_filter.facts_dkn, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def test_a_rule_without_its_values_is_skipped() -> None:
    assert [fault.key for fault in shape_faults({"kernel_size": 1, "window_size": 1})] == ["window_size"]
    assert not list(shape_faults(asdict(FilterShape())))


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="architecture") as caught:
        DKNConfig(architecture="djf", sampling="nearest", kernel_size=4)  # type: ignore[arg-type]
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "architecture",
        "kernel_size",
        "sampling",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "djf"}, "architecture: 'djf' is none of fdkn, dkn"),
        ({"sampling": "nearest"}, "sampling: 'nearest' is none of centered, compat"),
        ({"residual": 1}, "residual: 1 is none of True, False"),
        ({"guidance": "no"}, "guidance: 'no' is none of True, False"),
        ({"kernel_size": 0}, "kernel_size: 0 is not a whole number of at least 1"),
        ({"kernel_size": 3.0}, "kernel_size: 3.0 is not a whole number"),
        ({"kernel_size": True}, "kernel_size: True is not a whole number"),
        ({"kernel_size": 4}, "kernel_size: 4 has no pixel in the middle; write 3 or 5"),
        ({"kernel_size": 2}, "kernel_size: 2 has no pixel in the middle; write 3"),
        ({"kernel_size": 1}, "kernel_size: 1 cannot learn in the residual form"),
        ({"window_size": 14}, "window_size: 14 has no pixel in the middle; write 13 or 15"),
        ({"kernel_size": 5, "window_size": 3}, "kernel_size: 5 is more than window_size 3"),
        ({"kernel_size": 1, "window_size": 1, "residual": False}, "window_size: 1 leaves nothing to sample"),
        ({"target_channels": -1}, "target_channels: -1 is not a whole number of at least 1"),
        ({"purpose": 8}, "purpose: 8 is no record of task, scale"),
        ({"purpose": {"task": "depth"}}, "purpose.scale: missing"),
        ({"purpose": {"task": "depth", "scale": 0.5}}, "purpose.scale: 0.5 is not a number of at least 1"),
        ({"purpose": {"task": "depth", "scale": 8, "size": 1}}, "purpose.size: unknown; it may have task, scale"),
        ({"purpose": {"task": "depth", "scale": 8, "invalid": "nan"}}, "purpose.invalid: 'nan' is not zero, none or"),
        ({"purpose": {"task": "depth", "scale": 8, "value_range": [3, 1]}}, "purpose.value_range: [3, 1] is not"),
        ({"guidance_channels": None}, "guidance_channels: None is not a whole number of at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DKNConfig(**values)


def test_a_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    purpose = FilterPurpose(task="depth_upsampling", scale=8, unit="cm", value_range=(0.5, 10), invalid=65535)
    config = DKNConfig(
        architecture="dkn", residual=False, kernel_size=5, sampling="compat", guidance=False, purpose=purpose.record()
    )
    config.save_pretrained(tmp_path)
    loaded = DKNConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.trained_for() == purpose
