"""AdamW against PyTorch's, with the gradients of a small function, and what is Keras's about it."""

from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from training.optimizers.adamw import AdamW, make_optimizer

SHAPES = [(30, 8), (8,), (8, 5), (5,)]
NORMS = [170.0, 0.02, 1.5, 170.0, 3.0]
"""Of the gradients of each update: clipped, not clipped, ..."""


class Case(NamedTuple):
    """A variable of each shape in both libraries, with the same values."""

    variables: list[keras.Variable]
    parameters: list[torch.nn.Parameter]

    @classmethod
    def make(cls) -> "Case":
        random = np.random.default_rng(0)
        values = [random.normal(size=shape).astype(np.float32) for shape in SHAPES]
        return cls([keras.Variable(value) for value in values], [torch.nn.Parameter(torch.tensor(v)) for v in values])

    def groups(self, decay: float) -> list[dict[str, object]]:
        return [{"params": [p for p in self.parameters if (p.ndim == 2) is matrix], "weight_decay": matrix * decay}
                for matrix in (True, False)]  # fmt: skip


def gradients(step: int) -> list[np.ndarray]:
    random = np.random.default_rng([1, step])
    found = [random.normal(size=shape) for shape in SHAPES]
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in found))
    return [(gradient * NORMS[step] / norm).astype(np.float32) for gradient in found]


def stepper(optimizer: AdamW, variables: list[keras.Variable]):
    optimizer.build(variables)
    return tf.function(lambda gradients: optimizer.apply(gradients, variables), autograph=False)


def torch_step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], step: int, clip: float) -> None:
    for parameter, gradient in zip(parameters, gradients(step), strict=True):
        parameter.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


@pytest.mark.parametrize(("beta_2", "clip", "epsilon"), [(0.999, 1.0, 1e-8), (0.95, 0.5, 1e-5), (0.999, 1e9, 1e-8)])
def test_weights_and_moments_are_those_of_torch(beta_2, clip, epsilon):
    ours, theirs = Case.make()
    optimizer = AdamW(1e-3, 0.1, beta_2=beta_2, epsilon=epsilon, global_clipnorm=clip)
    oracle = torch.optim.AdamW(
        Case(ours, theirs).groups(0.1), lr=1e-3, betas=(0.9, beta_2), eps=epsilon, weight_decay=0.0
    )
    step = stepper(optimizer, ours)
    for number in range(5):
        torch_step(oracle, theirs, number, clip)
        step([tf.constant(gradient) for gradient in gradients(number)])
        for variable, parameter in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(variable.numpy(), parameter.detach().numpy(), atol=1e-6, rtol=0)
    for moments, key in ((optimizer._momentums, "exp_avg"), (optimizer._velocities, "exp_avg_sq")):
        for moment, parameter in zip(moments, theirs, strict=True):
            expected = oracle.state[parameter][key].numpy()
            # 1 - 0.999 has four digits in float32, which bias correction divides by, too.
            np.testing.assert_allclose(moment.numpy(), expected, rtol=2e-5, atol=1e-6 * np.abs(expected).max())


def test_every_matrix_decays_and_no_vector():
    variables, _ = Case.make()
    before = [variable.numpy() for variable in variables]
    step = stepper(AdamW(0.5, 0.5), variables)
    step([tf.zeros(shape) for shape in SHAPES])
    for variable, old in zip(variables, before, strict=True):
        np.testing.assert_allclose(variable.numpy(), old * 0.75 if old.ndim == 2 else old, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("clip", [1.0, None])
def test_an_update_with_a_gradient_that_is_no_number_is_left_out_and_reported(bad, clip):
    variables, _ = Case.make()
    optimizer = AdamW(1e-3, 0.1, global_clipnorm=clip)
    step = stepper(optimizer, variables)
    step([tf.constant(gradient) for gradient in gradients(0)])
    state = [*variables, *optimizer._momentums, *optimizer._velocities]
    before = [variable.numpy() for variable in state]
    broken = gradients(1)
    broken[2][3, 4] = bad
    step([tf.constant(gradient) for gradient in broken])
    assert not np.isfinite(optimizer.gradient_norm.numpy())
    for variable, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)
    assert int(optimizer.iterations) == 2
    step([tf.constant(gradient) for gradient in gradients(2)])
    assert np.isfinite(optimizer.gradient_norm.numpy())
    assert not np.array_equal(variables[0].numpy(), before[0])


def test_rows_of_a_gradient_that_come_twice_are_summed_before_the_norm_is_taken():
    table = keras.Variable(np.ones((4, 2), np.float32))
    optimizer = AdamW(1e-3)
    step = stepper(optimizer, [table])
    step([tf.IndexedSlices(tf.constant([[3.0, 0.0], [1.0, 0.0]]), tf.constant([2, 2]), tf.constant([4, 2]))])
    assert float(optimizer.gradient_norm) == 4.0
    assert np.argwhere(table.numpy()[:, 0] < 0.9995).tolist() == [[2]]


def test_the_schedule_is_asked_for_each_update():
    variable = keras.Variable(np.zeros(1, np.float32))
    optimizer = make_optimizer(1e-2, 4, schedule="constant", warmup=0.5, clip=None)
    step = stepper(optimizer, [variable])
    values = [0.0]
    for _ in range(4):
        step([tf.ones(1)])
        values.append(float(variable.numpy()[0]))
    # A gradient that stays as it is makes Adam step by the rate: thirds of it first, with two updates of warm-up.
    np.testing.assert_allclose(-np.diff(values), [1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2], rtol=1e-4)


def test_keras_writes_and_reads_the_optimizer():
    optimizer = make_optimizer(3e-4, 50, schedule="cosine", warmup=0.2, weight_decay=0.05, clip=0.5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(again, AdamW)
    assert again.get_config() == optimizer.get_config()


def test_state_is_restored_in_order():
    first, second = (stepper_state() for _ in range(2))
    for number in range(3):
        first.step([tf.constant(gradient) for gradient in gradients(number)])
    for source, target in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        assert source.path == target.path
        target.assign(source)
    for source, target in zip(first.variables, second.variables, strict=True):
        target.assign(source)
    for state in (first, second):
        state.step([tf.constant(gradient) for gradient in gradients(3)])
    for source, target in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(source.numpy(), target.numpy())


class State(NamedTuple):
    optimizer: AdamW
    variables: list[keras.Variable]
    step: object


def stepper_state() -> State:
    values = Case.make().variables
    variables = [keras.Variable(value, name=f"weight_{i}") for i, value in enumerate(values)]
    optimizer = make_optimizer(1e-2, 10)
    return State(optimizer, variables, stepper(optimizer, variables))
