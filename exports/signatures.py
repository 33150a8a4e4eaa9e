"""The signatures of the SavedModel, as traced functions of the model."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_model.generation import Request, generate, random_seeds
from tf_model.gpt2 import GPT2
from tf_model.processors import Constraints
from tf_model.sampling import Sampling
from tf_model.window import Window


def build(model: GPT2, pad_token_id: int) -> dict[str, Any]:
    """Concrete functions by signature name.

    ``serving_default`` has the inputs and the output of CPM-LM-TF2's SavedModel: ``inp`` int64 ``[B, S]``, ``length``
    int64, ``top_p`` and ``temperature`` float32 -> ``output_0`` int64 ``[B, S + length]``. The last three are scalars,
    or have shape [1] or [B]: TF Serving's row format needs one value per row. Exactly ``length`` tokens are added.

    ``logits`` maps ``input_ids`` int64 ``[B, S]`` to ``logits`` float32 ``[B, S, V]``.
    """
    ids = tf.TensorSpec([None, None], tf.int64)

    @tf.function(
        autograph=False,
        input_signature=[
            _named(ids, "inp"),
            tf.TensorSpec(None, tf.int64, name="length"),
            tf.TensorSpec(None, tf.float32, name="top_p"),
            tf.TensorSpec(None, tf.float32, name="temperature"),
        ],
    )
    def serving_default(inp: tf.Tensor, length: tf.Tensor, top_p: tf.Tensor, temperature: tf.Tensor) -> dict[str, Any]:
        batch = tf.shape(inp)[0]
        length, top_p, temperature = (
            _per_row(value, batch, name)
            for value, name in ((length, "length"), (top_p, "top_p"), (temperature, "temperature"))
        )
        limit = model.config.n_positions
        with tf.control_dependencies(
            [
                *_check_ids(inp, model, "inp"),
                _check(length >= 0, "length must be 0 or more; found", length),
                _check(
                    tf.shape(inp, tf.int64)[1] + length <= limit,
                    f"prompt and length together exceed the model's {limit} positions: prompt",
                    tf.shape(inp)[1],
                    "length",
                    length,
                ),
                _check((top_p >= 0) & (top_p <= 1), "top_p must lie between 0 and 1; found", top_p),
                _check(
                    (temperature >= 0) & tf.math.is_finite(temperature),
                    "temperature must be 0 (greedy) or more; found",
                    temperature,
                ),
            ]
        ):
            off = tf.zeros([batch], tf.int32)
            request = Request(
                input_ids=tf.cast(inp, tf.int32),
                input_lengths=tf.fill([batch], tf.shape(inp)[1]),
                max_new_tokens=tf.cast(length, tf.int32),
                sampling=Sampling(
                    temperature=temperature,
                    top_k=off,
                    top_p=top_p,
                    min_p=tf.zeros([batch]),
                    typical_p=tf.ones([batch]),
                    seed=random_seeds(batch),
                ),
                constraints=Constraints(
                    repetition_penalty=tf.ones([batch]),
                    no_repeat_ngram_size=off,
                    min_new_tokens=off,
                    eos_token_id=off[:, tf.newaxis] - 1,
                    suppress_tokens=off[:, tf.newaxis] - 1,
                ),
                window=Window(tokens=off + limit // 2, line_token_id=off - 1),
            )
            output = generate(model.step, model.allocate, limit, request, pad_token_id).sequences
        return {"output_0": tf.cast(output, tf.int64)}

    @tf.function(autograph=False, input_signature=[_named(ids, "input_ids")])
    def logits(input_ids: tf.Tensor) -> dict[str, Any]:
        limit = model.config.n_positions
        size = tf.shape(input_ids)[1]
        with tf.control_dependencies(
            [
                *_check_ids(input_ids, model, "input_ids"),
                _check(size <= limit, f"the model has {limit} positions; tokens in a row:", size),
            ]
        ):
            return {"logits": model(input_ids)}

    return {
        "serving_default": serving_default.get_concrete_function(),
        "logits": logits.get_concrete_function(),
    }


def _named(spec: tf.TensorSpec, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(spec.shape, spec.dtype, name=name)


def _per_row(value: tf.Tensor, batch: tf.Tensor, name: str) -> tf.Tensor:
    """A scalar, one value, or one value per row -> ``[B]``."""
    flat = tf.reshape(value, [-1])
    size = tf.shape(flat)[0]
    with tf.control_dependencies(
        [_check((size == 1) | (size == batch), f"{name} must be one value or one per row; rows", batch, "values", size)]
    ):
        return tf.broadcast_to(flat, [batch])


def _check(condition: tf.Tensor, *message: Any) -> tf.Operation:
    """An assertion that becomes an InvalidArgumentError with the message and the values in it."""
    return tf.debugging.Assert(tf.reduce_all(condition), list(message), summarize=8)


def _check_ids(ids: tf.Tensor, model: GPT2, name: str) -> list[tf.Operation]:
    vocabulary = model.config.vocab_size
    return [
        _check(tf.size(ids) > 0, f"{name} is empty: a prompt needs at least one token; its shape is", tf.shape(ids)),
        _check(
            (ids >= 0) & (ids < vocabulary),
            f"{name} has a token id outside the vocabulary (0 to {vocabulary - 1}):",
            ids,
        ),
    ]
