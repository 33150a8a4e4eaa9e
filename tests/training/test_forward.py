"""The forward pass of training: documents apart, dropout by its key, recomputing, types of products, and the graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.training.reference import SMALL, batch_of, micro_batches, random_documents, random_gpt2
from tf_model.gpt2 import GPT2
from training.model.forward import Forward
from training.model.trained_gpt2 import TrainedGPT2

pytestmark = pytest.mark.usefixtures("graphs_as_in_training")

ROWS = random_documents()
BATCH = batch_of(ROWS)


def gradients(model: TrainedGPT2, step: int | None = None, batch: dict[str, np.ndarray] = BATCH) -> list[np.ndarray]:
    found, _ = tf.function(model.gradients, autograph=False)(micro_batches(batch), step)
    return [gradient.numpy() for gradient in found]


def gradients_by_path(gpt2: GPT2) -> dict[str, np.ndarray]:
    model = TrainedGPT2(gpt2, dropout=0)
    return dict(zip([variable.path for variable in model.trainable_variables], gradients(model), strict=True))


def hidden(step: int | None = None, micro: int = 0, **options: Any) -> np.ndarray:
    result: np.ndarray = Forward(random_gpt2(), **options).hidden(BATCH, step, micro).numpy()
    return result


def test_documents_of_a_packed_row_do_not_see_each_other() -> None:
    packed = hidden().reshape(len(ROWS), -1, SMALL.n_embd)
    forward = Forward(random_gpt2())
    for number, row in enumerate(ROWS):
        start = 0
        for document in row:
            alone = forward.hidden(batch_of([[document]])).numpy()
            stop = min(start + len(document.ids), packed.shape[1])
            np.testing.assert_allclose(packed[number, start:stop], alone[: stop - start], atol=1e-5)
            start = stop


def test_a_recomputed_block_is_bit_for_bit_the_kept_one_with_dropout_on() -> None:
    kept, recomputed = (gradients(TrainedGPT2(random_gpt2(), dropout=0.3, recompute=r), 5) for r in (False, True))
    assert all(map(np.array_equal, kept, recomputed))
    assert not np.array_equal(kept[0], gradients(TrainedGPT2(random_gpt2(), dropout=0.3), 6)[0])


def test_dropout_is_a_function_of_seed_step_and_micro_batch_alone() -> None:
    usual = hidden(3, 1, dropout=0.3, seed=7)
    assert np.array_equal(usual, hidden(3, 1, dropout=0.3, seed=7))
    for other in (
        hidden(4, 1, dropout=0.3, seed=7),
        hidden(3, 2, dropout=0.3, seed=7),
        hidden(3, 1, dropout=0.3, seed=8),
    ):
        assert not np.isclose(usual, other).any(axis=1).all()


def test_no_two_places_drop_the_same_values() -> None:
    forward = Forward(random_gpt2(dataclasses.replace(SMALL, n_layer=3)), dropout=0.5)
    x = tf.ones([64, 24])
    masks = [forward.maths.drop(x, tf.constant([0, 2**32 + 2**16], tf.int64), place).numpy() for place in range(7)]
    agreement = np.mean([masks[a] == masks[b] for a in range(7) for b in range(a)])
    assert agreement == pytest.approx(0.5, abs=0.02)


def test_dropout_sets_its_share_to_0_and_keeps_the_mean() -> None:
    forward = Forward(random_gpt2(), dropout=0.1)
    dropped = forward.maths.drop(tf.ones([400, 400]), tf.constant([0, 0], tf.int64), 1)
    assert np.mean(dropped.numpy() == 0) == pytest.approx(0.1, abs=0.005)
    assert np.unique(dropped) == pytest.approx([0, 1 / 0.9])


def test_nothing_is_dropped_without_a_step() -> None:
    assert np.array_equal(hidden(dropout=0.5), hidden())


def test_bfloat16_products_train_float32_weights_with_gradients_of_nearly_the_same_direction() -> None:
    exact, rounded = (gradients(TrainedGPT2(random_gpt2(), dropout=0, products=p)) for p in ("float32", "bfloat16"))
    for ours, wanted in zip(rounded, exact, strict=True):
        assert ours.dtype == np.float32
        cosine = np.sum(ours * wanted) / np.linalg.norm(ours) / np.linalg.norm(wanted)
        assert cosine > 0.99
        assert not np.array_equal(ours, wanted)


def test_frozen_weights_have_no_gradient_and_no_block_below_the_lowest_trained_one_is_computed_backwards() -> None:
    gpt2 = random_gpt2(dataclasses.replace(SMALL, n_layer=3))
    for layer in (gpt2.wte, gpt2.wpe, *gpt2.h[:2]):
        layer.trainable = False
    whole = random_gpt2(dataclasses.replace(SMALL, n_layer=3))
    found, wanted = gradients_by_path(gpt2), gradients_by_path(whole)
    assert len(found) == 14
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted[name], atol=1e-6 * np.abs(wanted[name]).max(), err_msg=name)
    assert block_calls(gpt2) == 2 * 3 + 1
    assert block_calls(whole) == 2 * 3 + 3


def block_calls(gpt2: GPT2) -> int:
    """How often the graph of the gradients calls a function of blocks."""
    model = TrainedGPT2(gpt2, dropout=0)
    graph = tf.function(model.gradients, autograph=False).get_concrete_function(micro_batches(BATCH)).graph
    return sum(operation.type in ("PartitionedCall", "StatefulPartitionedCall") for operation in graph.get_operations())


def test_the_functions_of_a_graph_do_not_grow_with_the_number_of_blocks() -> None:
    def functions(layers: int) -> int:
        model = TrainedGPT2(random_gpt2(dataclasses.replace(SMALL, n_layer=layers)), dropout=0.1)
        function = tf.function(model.gradients, autograph=False).get_concrete_function(micro_batches(BATCH), 1)
        return len(function.graph.as_graph_def().library.function)

    assert functions(2) == functions(4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_embeddings_of_a_frozen_output_matrix_and_the_reverse_have_their_gradients(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tie_word_embeddings=tied)
    gpt2 = random_gpt2(config)
    gpt2.lm_head.trainable = False
    found, wanted = gradients_by_path(gpt2), gradients_by_path(random_gpt2(config))
    assert set(wanted) - set(found) == {"wte/weight" if tied else "lm_head/weight"}
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted[name], atol=1e-6 * np.abs(wanted[name]).max(), err_msg=name)
