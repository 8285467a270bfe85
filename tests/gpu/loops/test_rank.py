"""Training runs that are changed for measuring, and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.gpu.loops import rank


def test_large_weights_are_drawn_on_the_card_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Size] = []
    on_cpu = torch.randn

    def randn(shape: torch.Size, *, device: str) -> Tensor:
        assert device == "cuda"
        drawn.append(shape)
        return on_cpu(shape)

    normal, reset = Tensor.normal_, nn.Linear.reset_parameters
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(rank, "LARGE", 1000)
    with rank.CHANGES["drawn_on_card"](""):
        large, small = nn.Linear(40, 50, bias=False), nn.Linear(2, 3, bias=False)
        for layer in (large, small):
            nn.init.normal_(layer.weight, std=0.02)
    assert drawn == [torch.Size((50, 40))]
    assert float(large.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert 0 < float(small.weight.detach().abs().max()) < 0.2
    assert (Tensor.normal_, nn.Linear.reset_parameters) == (normal, reset)


def test_runs_of_one_process_follow_each_other_until_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"first.yaml": 0, "second.yaml": 75, "third.yaml": 0}
    trained: list[list[str]] = []

    def train(words: list[str]) -> int:
        trained.append(words)
        return codes[words[0]]

    monkeypatch.setattr(rank, "_train_and_stay", train)
    words = ["plain", "first.yaml", "a=1", "--then", "plain", "second.yaml", "--then", "plain", "third.yaml"]
    assert rank.main(words) == 75
    assert trained == [["first.yaml", "a=1"], ["second.yaml"]]


def test_a_call_before_each_step_is_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from train import loop

    def feed(_: Any) -> Any:
        yield from ((1, "one"), (2, "two"))

    monkeypatch.setattr(loop, "feed", feed)
    calls: list[tuple[Any, int]] = []
    with rank.before_each_step(lambda run, step: calls.append((run, step))):
        assert list(loop.feed("run")) == [(1, "one"), (2, "two")]  # type: ignore[arg-type]
    assert calls == [("run", 1), ("run", 2)]
    assert loop.feed is feed
