"""PeriLNConfig: its fields are the run configuration's, and what cannot work is refused with a way out."""

import dataclasses
import re
from typing import Any, get_type_hints

import pytest
import torch
from transformers import LlamaConfig

from modeling.decoder.configuration_periln import PeriLNConfig
from train.config.tasks.language_model import DecoderConfig

from .tiny_decoder import tiny_config


def own_fields(config_class: type) -> dict[str, tuple[Any, Any]]:
    """Type and default of the fields that a class declares itself."""
    hints = get_type_hints(config_class, localns={"torch": torch})  # transformers names it without importing it
    fields = [field for field in dataclasses.fields(config_class) if field.name in config_class.__annotations__]
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }
    return {name: (hints[name], default) for name, default in defaults.items()}


# fields that transformers and its clients expect of every decoder, and no run sets
OF_CLIENTS: dict[str, tuple[Any, Any]] = {
    "use_cache": (bool, True),
    "pad_token_id": (int | None, None),
    "bos_token_id": (int | None, None),
    "eos_token_id": (int | list[int] | None, None),
}


def test_fields_are_those_of_the_run_configuration_and_of_clients() -> None:
    assert own_fields(PeriLNConfig) == own_fields(DecoderConfig) | OF_CLIENTS


def test_fields_of_clients_have_the_defaults_of_llama() -> None:
    theirs = LlamaConfig()
    assert {name: getattr(theirs, name) for name in ("use_cache", "pad_token_id")} == {
        name: getattr(tiny_config(), name) for name in ("use_cache", "pad_token_id")
    }


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="num_key_value_heads") as caught:
        tiny_config(num_key_value_heads=3, norm_kind="batchnorm", norm_placement="sandwich")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "num_key_value_heads",
        "norm_placement",
        "norm_kind",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: 0 is not a whole number of at least 1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers: 2.5 is not a whole number"),
        ({"vocab_size_multiple": True}, "vocab_size_multiple: True is not a whole number"),
        ({"initializer_range": -0.02}, "initializer_range: -0.02 is negative"),
        ({"norm_eps": float("nan")}, "norm_eps: nan is negative or not a number"),
        ({"z_loss_coefficient": -1.0}, "z_loss_coefficient: -1.0 is negative"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide num_attention_heads 4; write 1, 2, 4"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "5 does not divide hidden_size 48"),
        ({"num_attention_heads": 16}, "16 heads make each 3 wide"),
        ({"head_dim": 7}, "head_dim: 7 is not even"),
        ({"hidden_act": "swish2"}, "hidden_act: 'swish2' is none of"),
        ({"norm_placement": "sandwich"}, "norm_placement: 'sandwich' is none of pre, post, peri, output"),
        ({"norm_placement": ["pre", "peri"]}, "norm_placement: 2 names for num_hidden_layers 3"),
        ({"norm_placement": ["pre", "peri", "lane"]}, "norm_placement: 'lane' is none of"),
        ({"norm_kind": "batchnorm"}, "norm_kind: 'batchnorm' is none of rmsnorm, layernorm"),
        ({"qk_norm": "yes"}, "qk_norm: 'yes' is none of none, head, projection"),
        ({"initializer_scheme": "xavier"}, "initializer_scheme: 'xavier' is none of normal, depth_scaled"),
        ({"frozen_norm_scales": "input"}, "frozen_norm_scales: 'input' is none of none, output, all"),
        ({"frozen_norm_scales": "output", "norm_placement": "pre"}, "frozen_norm_scales: 'output' has no effect"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters.rope_type: 'spiral' is none of default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor: rope_type 'linear' needs it"),
        ({"rope_parameters": {"rope_theta": 5e5, "factor": 2.0}}, "rope_parameters.factor: rope_type 'default' does"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta: -1.0 is not a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_config(**fields)


def test_a_written_configuration_reads_back_equal(tmp_path: Any) -> None:
    config = tiny_config(norm_placement=("pre", "peri", "post"), rope_parameters={"rope_theta": 500.0})
    config.save_pretrained(tmp_path)
    assert PeriLNConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_callers_rope_parameters_stay_as_they_are() -> None:
    given = {"rope_theta": 500.0}
    tiny_config(rope_parameters=given)
    assert given == {"rope_theta": 500.0}


def test_head_dim_follows_from_the_width() -> None:
    assert tiny_config().head_dim == 12
    assert tiny_config(head_dim=20).head_dim == 20
