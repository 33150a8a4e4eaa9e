"""What attention scores are multiplied by, against transformers: whole, cached, in one function for all blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import torch

from convert.verification.reference_forward import CheckpointReference
from tests.helpers.huggingface import IDS, SIZES, random_model
from tests.helpers.in_memory import InMemory
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.stacked_blocks import StackedBlocks

SCALES = {
    "GPT-2's": {},
    "none": {"scale_attn_weights": False},
    "by layer": {"scale_attn_by_inverse_layer_idx": True},
    "by layer only": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "none, other sizes": {"scale_attn_weights": False, "n_head": 6, "n_layer": 2, "layer_norm_epsilon": 1e-3},
}
Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def _models(scale: str) -> tuple[GPT2, GPT2Config, dict[str, np.ndarray], np.ndarray]:
    """The Keras model, its weights by canonical names, and transformers' float64 logits of ``IDS``."""
    theirs = random_model(**SCALES[scale])
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".c_" in name:
                parameter.mul_(0.4)  # a softmax that is not just one position
    values = {name: tensor.numpy() for name, tensor in theirs.transformer.state_dict().items()}
    values = {n: np.ascontiguousarray(v.T) if ".c_" in n and n.endswith("weight") else v for n, v in values.items()}
    sizes = {key: value for key, value in SIZES.items() if key.startswith("n_") or key == "vocab_size"}
    config = GPT2Config(**{**sizes, **SCALES[scale]})
    ours = GPT2(config)
    for name, variable in ours.canonical_variables().items():
        variable.assign(values[name])
    with torch.inference_mode():
        return ours, config, values, theirs.double()(torch.tensor(IDS)).logits.numpy()[0]


@pytest.mark.parametrize(
    "scale", [pytest.param(scale, marks=[pytest.mark.slow] * (number > 1)) for number, scale in enumerate(SCALES)]
)
def test_every_way_through_the_model_scales_attention_as_transformers(scale: str) -> None:
    model, config, values, expected = _models(scale)
    size = len(IDS[0])
    tokens, capacity = tf.constant(IDS, tf.int32), tf.constant(size)
    stacks = StackedBlocks(model)
    stacks.assign()

    @tf.function(autograph=False)
    def by_one_function(start: tf.Tensor) -> tf.Tensor:
        cache = model.allocate(tf.constant(1), capacity)
        read, cache = model.forward(tokens[:, :start], tf.constant([0]), start[None], cache, capacity, stacks.blocks())
        rows = [read]
        for position in range(size - 5, size):  # one token at a time
            at, one = tf.constant([position]), tf.constant([1])
            row, cache = model.forward(tokens[:, position : position + 1], at, one, cache, capacity, stacks.blocks())
            rows.append(row)
        return model.logits(tf.concat(rows, 0))

    tolerance = 1e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(model(tokens)[0], expected, atol=tolerance)
    np.testing.assert_allclose(by_one_function(tf.constant(size - 5)), expected, atol=tolerance)
    reference = CheckpointReference(InMemory(config, values))
    np.testing.assert_allclose(reference.project(reference.rows_of(IDS)[0]), expected, atol=tolerance)


def test_the_scales_make_other_logits() -> None:
    """Else the test above would compare nothing."""
    logits = [_models(scale)[3] for scale in list(SCALES)[:4]]
    for i, one in enumerate(logits):
        assert all(np.abs(one - other).max() > 0.1 for other in logits[:i])
