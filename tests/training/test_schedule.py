"""The learning rate of each update, against transformers' schedules and nanoGPT's warm-up."""

import itertools
import math
from decimal import Decimal

import keras
import numpy as np
import pytest
import torch
import transformers

from training.optimizers.schedule import SHAPES, Schedule
from training.setting import round_up

STEPS = 57
RISING = 6  # a tenth of the steps, rounded up


def rates(schedule: Schedule) -> list[float]:
    return [float(schedule(step)) for step in range(STEPS)]


def transformers_rates(name: str, **steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = getattr(transformers, f"get_{name}_schedule_with_warmup")(optimizer, num_warmup_steps=RISING, **steps)
    found = []
    for _ in range(STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", SHAPES)
def test_after_the_warm_up_the_rates_are_those_of_transformers(kind):
    expected = transformers_rates(kind, **({} if kind == "constant" else {"num_training_steps": STEPS}))
    np.testing.assert_allclose(
        rates(Schedule(3e-4, STEPS, kind=kind))[RISING:], expected[RISING:], rtol=2e-6, atol=1e-10
    )


@pytest.mark.parametrize("kind", SHAPES)
def test_the_warm_up_is_the_one_of_nanogpt(kind):
    # train.py, get_lr: learning_rate * (it + 1) / (warmup_iters + 1)
    expected = [3e-4 * (it + 1) / (RISING + 1) for it in range(RISING)]
    np.testing.assert_allclose(rates(Schedule(3e-4, STEPS, kind=kind))[:RISING], expected, rtol=2e-6)


def test_with_an_end_the_linear_rate_is_that_of_cpm():
    # CPM-1-Finetune, learning_rates.py: start_lr * (end_iter - (num_iters - warmup_iter)) / end_iter after the warm-up
    steps, rising = 50, 5
    schedule = Schedule(1e-5, steps, warmup=0.1, end=0.1)
    expected = [1e-5 * (steps - (done - rising)) / steps for done in range(rising, steps)]
    np.testing.assert_allclose([float(schedule(done)) for done in range(rising, steps)], expected, rtol=2e-6)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_no_update_has_no_rate(kind, warmup, steps):
    schedule = Schedule(1.0, steps, warmup, kind)
    assert all(0 < float(schedule(step)) <= 1 for step in range(steps))


def test_a_share_of_steps_is_rounded_up_without_the_errors_of_floating_point():
    """The oracle is decimal arithmetic: 1.1 * 50 is 55.00000000000001 in floating point."""
    for tenths, steps in itertools.product(range(1, 40), range(1, 80)):
        assert round_up(tenths / 10, steps) == math.ceil(Decimal(tenths) / 10 * steps)
    assert round_up(1e-9, 50) == 1
    peak = max(range(70), key=lambda step: float(Schedule(1.0, 70, 0.1)(step)))
    assert peak == 7  # 0.1 * 70 is 7.000000000000001


@pytest.mark.parametrize(("kind", "end"), [("linear", 0.0), ("cosine", 0.2), ("constant", 0.3)])
def test_the_rate_stays_after_the_last_update(kind, end):
    schedule = Schedule(1.0, 10, kind=kind, end=end)
    assert float(schedule(10)) == float(schedule(1000)) == pytest.approx(1.0 if kind == "constant" else end)


def test_keras_writes_and_reads_a_schedule():
    schedule = Schedule(3e-4, STEPS, 0.2, "cosine", 0.1)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert isinstance(again, Schedule)
    assert rates(again) == rates(schedule)
