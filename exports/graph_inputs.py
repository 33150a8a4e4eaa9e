"""From the inputs of a signature to a request for the model, checked inside the graph.

An option has unknown rank: a scalar or one value for all rows, or one per row, as TF Serving's row format and its
batching need them. A list of tokens is one token, a list for all rows ``[K]``, or one per row ``[B, K]``, -1 for none:
in the row format and in batching that is ``[K]`` an instance and ``[1, K]`` a request, because single tokens, once they
are joined, are a list for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, MAX_NEW_TOKENS, SAMPLING_OPTIONS, Option
from tf_model.beam import BeamRequest
from tf_model.config import GPT2Config
from tf_model.generation import Request, random_seeds
from tf_model.logits_processors import Constraints
from tf_model.sampling import Sampling
from tf_model.window import Window

Tensors = dict[str, tf.Tensor]

IDS = tf.TensorSpec([None, None], tf.int64)
ROW = tf.TensorSpec([None], tf.int64)


def spec(option: Option) -> tf.TensorSpec:
    """Return the input that an option is: int64, float32 or bool, of unknown rank."""
    if option.is_flag:
        return tf.TensorSpec(None, tf.bool)
    return tf.TensorSpec(None, tf.float32 if option.is_real else tf.int64)


def default(option: Option) -> tf.Tensor:
    """Return what an input is when it is left out."""
    value = option.default if not isinstance(option.default, tuple) else [*option.default] or -1
    return tf.constant(value, spec(option).dtype)


def to_int64(values: Mapping[str, tf.Tensor]) -> Tensors:
    """Return the outputs of a signature: int32 is the model's own type, outputs are int64."""
    return {name: tf.cast(x, tf.int64) if x.dtype == tf.int32 else x for name, x in values.items()}


def check(condition: tf.Tensor, *message: Any) -> tf.Operation:
    """Return an assertion that becomes an InvalidArgumentError with the message and the values in it."""
    # The bare op: tf.debugging.Assert would add two functions to the graph for each.
    data = [tf.convert_to_tensor(part) for part in message]
    return tf.raw_ops.Assert(condition=tf.reduce_all(condition), data=data, summarize=8)


def check_ids(ids: tf.Tensor, vocab_size: int, name: str) -> list[tf.Operation]:
    """Check that there are ids, of shape ``[B, S]``, and that they are tokens of the vocabulary."""
    return [
        check(tf.size(ids) > 0, f"{name} is empty: a prompt needs at least one token; its shape is", tf.shape(ids)),
        check(
            (ids >= 0) & (ids < vocab_size),
            f"{name} has a token id outside the vocabulary (0 to {vocab_size - 1}):",
            ids,
        ),
    ]


def checked(value: tf.Tensor, *checks: tf.Operation) -> tf.Tensor:
    """``value``, for those who come after the checks."""
    with tf.control_dependencies(checks):
        return tf.identity(value)


def per_row(value: tf.Tensor, batch: tf.Tensor, name: str) -> tf.Tensor:
    """Make ``[B]`` of a scalar, one value, or one value per row."""
    flat = tf.reshape(value, [-1])
    size = tf.size(flat)
    fits = check((size == 1) | (size == batch), f"{name} must be one value or one per row; rows", batch, "values", size)
    return tf.broadcast_to(checked(flat, fits), [batch])


def _tokens(value: tf.Tensor, batch: tf.Tensor, name: str) -> tf.Tensor:
    """Make ``[B, K]``, K at least 1, of a scalar, ``[K]`` for all rows, or ``[B, K]``."""
    rank = tf.rank(value)
    with tf.control_dependencies(
        [check(rank <= 2, f"{name} must be a list of tokens, or one per row; its rank is", rank)]
    ):
        rows = tf.cond(rank == 2, lambda: tf.reshape(value, tf.shape(value)[:2]), lambda: tf.reshape(value, [1, -1]))
    size = tf.shape(rows)[0]
    fits = check((size == 1) | (size == batch), f"{name} must be one list or one per row; rows", batch, "lists", size)
    lists = tf.ensure_shape(checked(rows, fits), [None, None])
    return tf.pad(tf.broadcast_to(lists, tf.stack([batch, tf.shape(lists)[1]])), [[0, 0], [0, 1]], constant_values=-1)


def validated_options(
    options: Mapping[str, Option], inputs: Mapping[str, tf.Tensor], batch: tf.Tensor, vocab_size: int
) -> dict[str, tf.Tensor]:
    """Return the options of a table, each checked and one per row, in the types that the model wants."""
    result = {}
    for name, option in options.items():
        rows = (_tokens if option.is_list else per_row)(inputs[name], batch, name)
        high = vocab_size - 1 if option.is_list else option.high
        # Whole numbers are compared as such: float32 does not tell 2**31 - 1 from 2**31.
        low, high = (tf.cast(bound, rows.dtype) if option.is_real else tf.constant(int(bound), rows.dtype)
                     for bound in (option.low, high))  # fmt: skip
        inside = ((rows > low) if option.exclusive_low else (rows >= low)) & (rows <= high)
        if option.is_real:
            inside &= tf.math.is_finite(rows)
        expected = option.expected + (f", at most {vocab_size - 1}" if option.is_list else "")
        rows = checked(rows, check(inside, f"{name}: expected {expected}; found", inputs[name]))
        result[name] = rows if option.is_real or name == "seed" else tf.cast(rows, tf.int32)
    return result


def checked_prompt(
    inputs: Mapping[str, tf.Tensor], config: GPT2Config, limit: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """``input_ids`` ``[B, S]`` and ``input_lengths`` ``[B]`` of a request as int32; the padding may be any number.

    Args:
        inputs: of the signature.
        config: the sizes.
        limit: most tokens that a row may have; None for any number.
    """
    ids, lengths = inputs["input_ids"], inputs["input_lengths"]
    batch, size = tf.unstack(tf.shape(ids, tf.int64))
    shape = [
        check(tf.size(ids) > 0, "input_ids is empty: a prompt needs at least one token; its shape is", tf.shape(ids)),
        check(
            tf.size(lengths, tf.int64) == batch, "input_lengths needs one value per row; rows", batch, "values",
            tf.size(lengths),
        ),
    ]  # fmt: skip
    lengths = checked(lengths, *shape)
    inside = check(
        (lengths >= 1) & (lengths <= size),
        "input_lengths: expected 1 to the width of input_ids,",
        size,
        "; found",
        lengths,
    )
    lengths = checked(lengths, inside)
    ids = tf.where(tf.range(size) < lengths[:, tf.newaxis], ids, 0)
    checks = check_ids(ids, config.vocab_size, "input_ids")
    if limit is not None:
        checks.append(check(lengths <= limit, f"the model has {limit} positions; tokens in a row:", lengths))
    return tf.cast(checked(ids, *checks), tf.int32), tf.cast(lengths, tf.int32)


def _part(kind: Any, values: Mapping[str, tf.Tensor]) -> Any:
    return kind(**{field: values[field] for field in kind._fields})


class Prompt(NamedTuple):
    """What every request for texts has, checked: int32 ``[B, S]`` and ``[B]``, and the options ``COMMON_OPTIONS``."""

    ids: tf.Tensor
    lengths: tf.Tensor
    options: dict[str, tf.Tensor]


def read_prompt(inputs: Mapping[str, tf.Tensor], config: GPT2Config) -> Prompt:
    """From ``input_ids``, ``input_lengths`` and the inputs named in ``COMMON_OPTIONS``."""
    ids, lengths = checked_prompt(inputs, config)
    return Prompt(ids, lengths, validated_options(COMMON_OPTIONS, inputs, tf.shape(ids)[0], config.vocab_size))


def generation_request(prompt: Prompt, inputs: Mapping[str, tf.Tensor], config: GPT2Config) -> Request:
    """Return the request that a prompt and the inputs named in ``SAMPLING_OPTIONS`` make."""
    ids = prompt.ids
    batch = tf.shape(ids)[0]
    given = {**prompt.options, **validated_options(SAMPLING_OPTIONS, inputs, batch, config.vocab_size)}
    seed, window, line = (given[name] for name in ("seed", "window_tokens", "window_line_token_id"))
    fits = check(
        window <= config.n_positions,
        f"window_tokens: expected 0 to {config.n_positions}, the positions of the model; found",
        window,
    )
    known = check(
        line < config.vocab_size,
        f"window_line_token_id: expected a token id, at most {config.vocab_size - 1}, or -1 for none; found",
        line,
    )
    # All rows get the room that the longest needs, and their places, one row after the other, are int32.
    new = given["max_new_tokens"]
    room = tf.cast(batch, tf.int64) * tf.cast(tf.shape(ids)[1] + tf.reduce_max(new), tf.int64)
    small = check(
        room <= MAX_NEW_TOKENS,
        f"rows * (width of input_ids + largest max_new_tokens): expected at most {MAX_NEW_TOKENS}; found",
        room,
    )
    return Request(
        input_ids=ids,
        input_lengths=prompt.lengths,
        max_new_tokens=checked(new, small),
        sampling=_part(Sampling, {**given, "seed": tf.where(seed < 0, random_seeds(batch), seed)}),
        constraints=_part(Constraints, given),
        window=Window(
            tokens=checked(tf.where(window > 0, window, max(1, config.n_positions // 2)), fits),
            line_token_id=checked(line, known),
        ),
    )


def require_uniform(values: tf.Tensor, name: str) -> tf.Tensor:
    """One value per row, all of them equal -> a scalar."""
    equal = check(values == values[:1], f"{name} must be the same for all rows; found", values)
    return tf.reduce_max(checked(values, equal))  # not [0], which has a message of its own about an empty batch


def beam_request(prompt: Prompt, inputs: Mapping[str, tf.Tensor], config: GPT2Config) -> BeamRequest:
    """Return the request that a prompt and the inputs named in ``BEAM_OPTIONS`` make."""
    ids, lengths, shared = prompt
    given = {**shared, **validated_options(BEAM_OPTIONS, inputs, tf.shape(ids)[0], config.vocab_size)}
    beams, results = (require_uniform(given[name], name) for name in ("num_beams", "num_return_sequences"))
    limit = config.n_positions
    most = min(config.vocab_size, (2**31 - 1) // config.vocab_size)  # all continuations of a row are numbered in int32
    checks = [
        check(beams <= most, f"num_beams: expected 1 to {most}; found", beams),
        check(results <= beams, "num_return_sequences: expected at most num_beams,", beams, "; found", results),
        check(
            lengths + given["max_new_tokens"] <= limit,
            f"prompt and max_new_tokens together exceed the {limit} positions of the model; beam search has no window; "
            "prompt",
            lengths,
            "max_new_tokens",
            given["max_new_tokens"],
        ),
    ]
    ids = checked(ids, *checks)
    return BeamRequest(
        input_ids=ids,
        input_lengths=lengths,
        max_new_tokens=given["max_new_tokens"],
        num_beams=beams,
        num_return_sequences=results,
        length_penalty=given["length_penalty"],
        early_stopping=given["early_stopping"],
        constraints=_part(Constraints, given),
    )
