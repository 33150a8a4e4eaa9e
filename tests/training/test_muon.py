"""Muon against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.tensorflow

SHAPES = {
    "h_0/attn/c_attn/kernel": (24, 8),
    "h_0/mlp/c_proj/kernel": (8, 32),
    "wte/weight": (20, 8),
    "h_0/ln_1/gamma": (8,),
}


def test_five_updates_are_those_of_torch_muon_and_torch_adamw() -> None:
    import keras
    import tensorflow as tf

    from training.optimizers.muon import Muon

    random = np.random.default_rng(0)
    start = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in start.items()}
    matrices = [value for name, value in theirs.items() if name.endswith("/kernel")]
    optimizers = [
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs["wte/weight"]], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98)),
        torch.optim.AdamW([theirs["h_0/ln_1/gamma"]], lr=1e-2, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    layer = keras.layers.Layer(name="")
    ours = {}
    for name, value in start.items():
        ours[name] = layer.add_weight(name="weight", shape=value.shape)
        ours[name].assign(value)
        ours[name]._path = name
    optimizer = Muon(1e-2, 0.1, global_clipnorm=None)
    optimizer.build(list(ours.values()))
    for _ in range(5):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(random.standard_normal(SHAPES[name]))
        gradients = [tf.constant(parameter.grad.numpy(), tf.float32) for parameter in theirs.values()]
        optimizer.apply_gradients(zip(gradients, ours.values(), strict=True))
        for other in optimizers:
            other.step()
    for name, variable in ours.items():
        # torch's Newton-Schulz is in bfloat16
        tolerance = 2e-3 if name.endswith("/kernel") else 1e-5
        moved = np.abs(theirs[name].detach().numpy() - start[name]).max()
        assert moved > 1e-2
        np.testing.assert_allclose(variable.numpy(), theirs[name].detach().numpy(), atol=tolerance)


def test_an_update_with_a_nan_is_left_out() -> None:
    import keras
    import tensorflow as tf

    from training.optimizers.muon import Muon

    variable = keras.layers.Layer(name="").add_weight(name="kernel", shape=(4, 6), initializer="ones")
    optimizer = Muon(1e-2, 0.1)
    optimizer.build([variable])
    for value in (1.0, float("nan")):
        before = variable.numpy()
        optimizer.apply_gradients([(tf.fill([4, 6], value), variable)])
        assert np.array_equal(before, variable.numpy()) == np.isnan(value)
