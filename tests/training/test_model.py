"""``TrainedGPT2``: losses and gradients against transformers in float64, and what ``fit`` and ``evaluate`` report."""

from __future__ import annotations

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.reference import (
    SMALL,
    batch_of,
    micro_batches,
    random_documents,
    random_gpt2,
    reference,
    reference_model,
)
from tf_model.config import ACTIVATIONS, UER
from training.model.trained_gpt2 import TrainedGPT2

pytestmark = pytest.mark.usefixtures("graphs_as_in_training")

VARIANTS = {
    "standard": {},
    **{name: {"activation_function": name} for name in ACTIVATIONS[1:]},
    "UER": {"layer_norm": UER, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": False},
    "untied": {"tie_word_embeddings": False},
    "not scaled": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "epsilon and width": {"layer_norm_epsilon": 1e-2, "n_inner": 40},
}
ROWS = random_documents()
DOCUMENTS = list(itertools.chain(*ROWS))


def assert_close(found: np.ndarray, expected: np.ndarray, share: float, name: str) -> None:
    """Within ``share`` of the tensor's largest value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max(), err_msg=name)


def gradients_by_name(model: TrainedGPT2, data: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    gradients, loss = tf.function(model.gradients, autograph=False)(data)
    names = {id(value): name for name, value in model.gpt2.canonical_variables().items()}
    return loss.numpy(), {
        names[id(variable.value)]: gradient.numpy()
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_of_packed_rows_are_those_of_each_document_alone_in_transformers(variant: str) -> None:
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    gpt2 = random_gpt2(config)
    weights = {name: value.numpy() for name, value in gpt2.canonical_variables().items()}
    expected_loss, expected = reference(reference_model(config, weights), DOCUMENTS)
    loss, gradients = gradients_by_name(TrainedGPT2(gpt2, dropout=0), micro_batches(batch_of(ROWS)))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(gradients) == set(config.tensor_shapes())
    for name, gradient in gradients.items():
        if name.endswith("c_attn.bias"):  # the key's third is 0 in theory
            keys = slice(config.n_embd, 2 * config.n_embd)
            np.testing.assert_allclose(gradient[keys], 0, atol=1e-5 * np.abs(expected[name]).max())
        np.testing.assert_allclose(
            gradient, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max(), err_msg=name
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_model_itself(variant: str) -> None:
    gpt2 = random_gpt2(dataclasses.replace(SMALL, **VARIANTS[variant]))
    batch = batch_of([random_documents()[0]] * 2)
    logits = TrainedGPT2(gpt2)(batch)
    np.testing.assert_allclose(logits, tf.reshape(gpt2(batch["ids"]), logits.shape), atol=1e-5 * np.abs(logits).max())


def test_micro_batches_of_any_number_give_the_same_gradients() -> None:
    rows = [[document] for document in DOCUMENTS[:8]]
    model = TrainedGPT2(random_gpt2(), dropout=0)
    results = []
    for size in (8, 2, 1):
        data = micro_batches(*(batch_of(rows[at : at + size]) for at in range(0, 8, size)))
        results.append(gradients_by_name(model, data)[1])
    for name, whole in results[0].items():
        for other in results[1:]:
            assert_close(other[name], whole, 1e-6, name)


def test_fit_learns_and_evaluate_weighs_each_predicted_token_alike() -> None:
    gpt2 = random_gpt2()
    weights = {name: value.numpy() for name, value in gpt2.canonical_variables().items()}
    model = TrainedGPT2(gpt2)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), jit_compile=False)
    singles = [micro_batches(batch_of([row, ROWS[-1]])) for row in ROWS[:4]]
    data = tf.data.Dataset.from_generator(
        lambda: iter(singles),
        output_signature={name: tf.TensorSpec([1, 2, 16], v.dtype) for name, v in singles[0].items()},
    )
    before = model.evaluate(data, verbose=0)
    documents = [document for row in ROWS[:4] for document in (*row, *ROWS[-1])]
    expected, _ = reference(reference_model(SMALL, weights), documents)
    assert (
        before["loss"]
        if isinstance(before, dict)
        else before == pytest.approx(expected / sum(sum(document.predicted) for document in documents), rel=1e-5)
    )
    history = model.fit(data.repeat(), epochs=3, steps_per_epoch=8, verbose=0).history["loss"]
    assert history[2] < history[1] < history[0]
