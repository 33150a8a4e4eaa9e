"""Batches of packed rows: a function of seed and step, with every row once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.texts.batches import Batch, Batches, ValidationBatches
from training.texts.packing import PackedRows, pack
from training.texts.presets import EncodedDocument


def rows_of(count: int, length: int = 3) -> PackedRows:
    """Rows that are known by their first token, the number of the row from 1."""
    return pack([EncodedDocument((number, *[9] * length)) for number in range(1, count + 1)], length)


def numbers(batch: Batch) -> list[int]:
    """The numbers of the rows of a batch that count."""
    return [int(ids[0]) for ids, weights in zip(*_flat(batch), strict=True) if weights.any()]


def _flat(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    ids, weights = batch["ids"], batch["weights"]
    return ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, weights.shape[-1])


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_has_every_row_once(count: int, batch_size: int, micro_batch: int, seed: int) -> None:
    batches = Batches(rows_of(count), batch_size, micro_batch, seed)
    for epoch in range(2):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        seen = [numbers(batches.batch(step)) for step in steps]
        assert Counter(number for batch in seen for number in batch) == Counter(range(1, count + 1))
        sizes = [len(batch) for batch in seen]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
    assert batches.steps_per_epoch == -(-count // batch_size)


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    first, second = (Batches(rows_of(50), 8, 2, seed=3) for _ in range(2))
    for step in (9, 0, 20, 9):
        assert all(np.array_equal(first.batch(step)[key], second.batch(step)[key]) for key in first.batch(step))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = Batches(rows_of(50), 50, 50, seed=3)
    orders = [numbers(batches.batch(0)), numbers(batches.batch(1)), numbers(Batches(rows_of(50), 50, 50, 4).batch(0))]
    assert len({*map(tuple, orders)}) == 3


def test_a_batch_is_micro_batches_of_rows_with_labels_one_further() -> None:
    rows = pack([EncodedDocument(tuple(range(10 * n, 10 * n + 5)), 2) for n in range(1, 6)], 4)
    batch = Batches(rows, 5, 2, seed=0).batch(0)
    assert {key: value.shape for key, value in batch.items()} == dict.fromkeys(
        ("ids", "labels", "segments", "positions", "weights"), (3, 2, 4)
    )
    assert {str(batch[key].dtype) for key in ("ids", "labels", "segments", "positions")} == {"int32"}
    assert batch["weights"].dtype == np.float32
    real = batch["segments"] > 0
    assert (batch["labels"][real] == batch["ids"][real] + 1).all()
    assert (batch["positions"][real] == batch["ids"][real] % 10).all()
    assert batch["weights"][real.any(-1)].tolist() == [[0, 1, 1, 1]] * 5
    assert not batch["weights"][~real.any(-1)].any()


def test_rows_fewer_than_a_batch_are_one_batch() -> None:
    batches = Batches(rows_of(3), 8, 4, seed=0)
    assert batches.steps_per_epoch == 1
    assert sorted(numbers(batches.batch(0))) == [1, 2, 3]
    assert batches.batch(0)["ids"].shape[:2] == (1, 3)


@given(st.integers(1, 20), st.integers(1, 8))
def test_validation_has_every_row_once_in_order(count: int, micro_batch: int) -> None:
    rows = rows_of(count)
    batches = ValidationBatches(rows, micro_batch)
    parts = [batches.batch(step) for step in range(batches.steps)]
    assert [number for part in parts for number in numbers(part)] == rows.ids[:, 0].tolist()
    assert {part["ids"].shape[0] for part in parts} == {1}
    assert len({part["ids"].shape for part in parts}) == 1


@pytest.mark.tensorflow
def test_a_data_set_has_the_batches_of_its_steps_and_knows_how_many() -> None:
    batches = Batches(rows_of(10), 4, 2, seed=1)
    dataset = batches.dataset(2, 7)
    assert int(dataset.cardinality()) == 5
    assert not dataset.options().autotune.enabled
    for step, batch in enumerate(dataset.as_numpy_iterator(), 2):
        assert all(np.array_equal(batch[key], value) for key, value in batches.batch(step).items())
    assert [*ValidationBatches(rows_of(10), 4).dataset().as_numpy_iterator()][2]["ids"].shape == (1, 4, 3)
