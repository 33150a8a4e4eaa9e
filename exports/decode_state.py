"""The state that ``prefill`` and ``decode`` hand out and take: a ``Context`` as named tensors, checked on its way in.

- ``cache``: ``[2 L, B, heads, capacity + 1, head_dim]`` in the type that the model computes in: the keys of layer 0,
  its values, the keys of layer 1, and so on.
- ``window_start``: int64 ``[B]``, where in the row's text the window begins: the token at position 0 of the cache.
- ``cache_lengths``: int64 ``[B]``, how many tokens from there are in the cache.
- ``constraint_<name>``: what the constraints remember of each row, ``[B, ...]``. The constraints of today remember
  nothing.

``decode`` writes the cache in place. So it copies the cache that comes in, and an earlier state stays good. A caller
that needs the earlier state no longer gives it away (``donate_state``): ``decode`` then writes into the caller's
memory, and the tensors that were given away must not be used again, whether or not the call succeeds. A constant of a
graph must not be given away: the next call of that graph would find it changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from exports.generation_options import Option
from exports.graph_inputs import ROW, Tensors, check, checked, per_row, to_int64
from tf_model.config import GPT2Config
from tf_model.generation import Context, Request

DONATE_STATE = {"donate_state": Option(False, 0, 1, "")}
"""The option of ``decode`` that gives the state away."""

_CONSTRAINT = "constraint_"


class DecodeState:
    """The layout of the state of one model.

    Attributes:
        specs: the inputs and outputs that the state consists of, by name.
    """

    def __init__(
        self, config: GPT2Config, compute_dtype: str, constraint_specs: Mapping[str, tf.TensorSpec] | None = None
    ) -> None:
        """Describe the state.

        Args:
            config: the sizes.
            compute_dtype: of the cache.
            constraint_specs: of the constraints' state, ``[B, ...]`` by name; whole numbers are int32.
        """
        self._config = config
        self._constraint_specs = dict(constraint_specs or {})
        cache = [2 * config.n_layer, None, config.n_head, None, config.head_dim]
        own = {
            _CONSTRAINT + name: tf.TensorSpec(spec.shape, tf.int64 if spec.dtype == tf.int32 else spec.dtype)
            for name, spec in self._constraint_specs.items()
        }
        self.specs = {"cache": tf.TensorSpec(cache, compute_dtype), "window_start": ROW, "cache_lengths": ROW, **own}

    def to_outputs(self, context: Context, batch: tf.Tensor) -> Tensors:
        """Return the named tensors of a context of ``batch`` rows."""
        config = self._config
        shape = [2 * config.n_layer, batch, config.n_head, -1, config.head_dim]
        rows = {"window_start": context.start, "cache_lengths": context.cached_length}
        rows |= {_CONSTRAINT + name: context.constraint_state[name] for name in self._constraint_specs}
        return {"cache": tf.reshape(context.cache, shape), **to_int64(rows)}

    def from_inputs(self, inputs: Mapping[str, tf.Tensor], request: Request) -> tuple[tf.Tensor, Context]:
        """Return the capacity and the context of named tensors, which a request's texts continue.

        The context's cache is a copy, or the caller's own memory if ``donate_state`` is true.

        Raises:
            tf.errors.InvalidArgumentError: in the graph, where the state does not belong to the request.
        """
        given = inputs["cache"]
        batch, capacity = tf.shape(request.input_ids)[0], tf.shape(given)[3] - 1
        start, cached_length = (per_row(inputs[name], batch, name) for name in ("window_start", "cache_lengths"))
        length = tf.cast(request.input_lengths, tf.int64)
        checks = self._checks(given, batch, capacity, start, cached_length, length)
        with tf.control_dependencies(checks):
            # DeepCopy is a stateful op: grappler makes no constant of a state that is one, which would be written to.
            cache = tf.cond(tf.reduce_all(inputs["donate_state"]), lambda: given, lambda: tf.raw_ops.DeepCopy(x=given))
            cache = tf.reshape(cache, [2 * self._config.n_layer, -1, self._config.head_dim])
        # The last token is read again if need be: the distribution of the next one follows from it.
        cached_length = tf.minimum(cached_length, length - start - 1)
        start, cached_length = (tf.cast(checked(x, *checks), tf.int32) for x in (start, cached_length))
        memory = {
            name: tf.cast(self._rows(inputs[_CONSTRAINT + name], batch, name), spec.dtype)
            for name, spec in self._constraint_specs.items()
        }
        return checked(capacity, *checks), Context(cache, start, cached_length, memory)

    def _checks(
        self,
        cache: tf.Tensor,
        batch: tf.Tensor,
        capacity: tf.Tensor,
        start: tf.Tensor,
        cached_length: tf.Tensor,
        length: tf.Tensor,
    ) -> list[tf.Operation]:
        limit = self._config.n_positions
        fits = (cached_length >= 0) & (cached_length <= tf.cast(capacity, tf.int64)) & (start + cached_length <= length)
        return [
            check(
                tf.shape(cache)[1] == batch,
                "cache: expected as many rows as input_ids has,",
                batch,
                "; found the shape",
                tf.shape(cache),
            ),
            check(
                (capacity >= 1) & (capacity <= limit),
                f"cache: expected 1 to {limit} positions and a spare one; found",
                capacity,
            ),
            check((start >= 0) & (start < length), "window_start: expected 0 to input_lengths - 1; found", start),
            check(
                fits,
                "cache_lengths: expected no more than the cache has, and than input_ids has after window_start "
                "(input_ids is all of the text so far, from its beginning); found",
                cached_length,
            ),
        ]

    @staticmethod
    def _rows(value: tf.Tensor, batch: tf.Tensor, name: str) -> tf.Tensor:
        fits = check(
            tf.shape(value)[0] == batch, f"{_CONSTRAINT}{name} needs one value per row; rows", batch, "values",
            tf.shape(value)[0],
        )  # fmt: skip
        return checked(value, fits)
