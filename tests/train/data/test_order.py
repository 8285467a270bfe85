"""The order of samples is a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.data.order import SampleOrder, combined_hash, content_hashes, permutation, rank_share, sample_ids


def test_the_order_never_changes() -> None:
    """Golden values: a change here would silently reorder every run ever started."""
    assert permutation(8, seed=0, epoch=0).tolist() == GOLDEN_FIRST
    assert permutation(8, seed=1, epoch=3).tolist() == GOLDEN_OTHER


GOLDEN_FIRST = [2, 6, 5, 3, 0, 4, 7, 1]
GOLDEN_OTHER = [3, 4, 0, 7, 5, 2, 6, 1]


def test_an_epoch_visits_every_sample_once() -> None:
    order = SampleOrder(10, seed=7, global_batch_size=4)
    stream = np.concatenate([order.of_step(step) for step in range(1, 6)])
    assert sorted(stream[:10].tolist()) == list(range(10))
    assert sorted(stream[10:].tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:].tolist()


def test_a_step_is_the_same_asked_alone_or_in_turn() -> None:
    order = SampleOrder(10, seed=7, global_batch_size=4)
    in_turn = [order.of_step(step).tolist() for step in range(1, 9)]
    alone = [sample_ids(s, seed=7, num_samples=10, global_batch_size=4).tolist() for s in range(1, 9)]
    assert in_turn == alone


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 8])
def test_the_shares_of_all_ranks_are_the_batch(world_size: int, micro_batch_size: int) -> None:
    ids = np.arange(24) * 3
    shares = [
        batch
        for rank in range(world_size)
        for batch in rank_share(ids, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
    ]
    assert np.concatenate(shares).tolist() == ids.tolist()
    assert all(len(batch) <= micro_batch_size for batch in shares)
    assert len({len(batch) for batch in shares}) == 1


def test_one_changed_token_changes_one_hash_and_the_combined_one() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    before = content_hashes({"tokens": tokens})
    changed = tokens.clone()
    changed[1, 2] += 1
    after = content_hashes({"tokens": changed})
    assert (before == after).tolist() == [True, False, True]
    assert combined_hash(before) != combined_hash(after)
    assert combined_hash(before) != combined_hash(before[::-1])
