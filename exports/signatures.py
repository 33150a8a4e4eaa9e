"""The signatures of the SavedModel, as traced functions of the model.

They share functions, which the graph holds once: the one that reads tokens (which calls one for all blocks), the loop
that generates them, and the one that checks options. So the graph hardly grows with the number of signatures. Each is a
table of inputs and a body; an input with a default may be left out by whoever calls the function of the loaded object
(``model.generate(...)``), and in requests to TensorFlow Serving.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from exports import graph_inputs as requests
from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, MAX_NEW_TOKENS, SAMPLING_OPTIONS, Option
from exports.graph_inputs import IDS, ROW, check, check_ids, checked, checked_prompt, per_row
from tf_model import quantization
from tf_model.beam import beam_search
from tf_model.cache import capacity_for
from tf_model.generation import PREFILL_CHUNK, Context, Request, empty_context, generate_from, random_seeds
from tf_model.gpt2 import GPT2, last_rows
from tf_model.logits_processors import Constraints
from tf_model.precision import PRECISIONS, stack_name
from tf_model.sampling import Sampling
from tf_model.stacked_blocks import StackedBlocks
from tf_model.window import Window
from tokenization.special_tokens import SpecialTokens

Tensors = dict[str, tf.Tensor]

_SCORED = 256
"""Tokens whose logits are in memory at a time when texts are scored."""

_PORT = {
    "length": Option(20, 0, MAX_NEW_TOKENS, ""),
    "top_p": Option(0.9, 0, 1, ""),
    "temperature": Option(0.9, 0, float("inf"), ""),
}
"""The options of ``serving_default``: CPM-LM-TF2's, with the defaults of its Python code."""

_WINDOW = {name: SAMPLING_OPTIONS[name] for name in ("window_tokens", "window_line_token_id")}


class Signatures:
    """What the SavedModel of ``model`` can do; ``functions`` has a ``tf.function`` for each signature.

    They compute with the variables in ``weights``, by canonical name, which are the model's, and with those of
    ``stacks``, which have the weights of all blocks and are to be written.

    B rows, S tokens, V the vocabulary. ``input_ids`` is int64 ``[B, S]``, right-padded with anything; ``input_lengths``
    int64 ``[B]``; options are as ``generation_options.py`` and ``graph_inputs.py`` say. All whole numbers are int64.

    - ``serving_default``: inputs and output of CPM-LM-TF2's SavedModel: ``inp`` ``[B, S]``, ``length``, ``top_p`` (0 is
      greedy), ``temperature`` -> ``output_0`` ``[B, S + length]``. Exactly ``length`` tokens are added.
    - ``generate``: ``input_ids``, ``input_lengths``, options (``eos_token_id`` is the model's by default) ->
      ``sequences`` ``[B, S + N]``, N the largest ``max_new_tokens``: prompt and continuation without a gap, then
      padding; ``lengths`` ``[B]``; ``logprobs`` float32 ``[B, N]``, the model's own for each new token. A text that
      outgrows the positions goes on in a window that moves.
    - ``beam_search``: the same inputs with the options of beams -> ``sequences`` ``[B, R, S + N]``, R the
      ``num_return_sequences``, the best one first; ``lengths`` ``[B, R]``; ``scores`` float32 ``[B, R]``.
    - ``score``: ``input_ids``, ``input_lengths`` -> ``logprobs`` float32 ``[B, S]``, of each token after those before
      it; 0 for the first one and for padding.
    - ``logits``: ``input_ids`` -> ``logits`` float32 ``[B, S, V]``.
    - ``prefill``: ``input_ids``, ``input_lengths``, ``capacity`` (positions of the cache; 0 is all of the model's),
      window -> ``logits`` float32 ``[B, V]`` of the next token, and the state: ``cache_00_keys``, ``cache_00_values``
      ... ``[B, heads, capacity + 1, head_dim]``, ``window_start`` and ``cache_lengths`` ``[B]``.
    - ``decode``: as ``generate``, and the state of an earlier call; ``input_ids`` is all of the text so far
      -> as ``generate`` and ``prefill``. The state has all tokens but the last one generated; ``logits`` are those
      after the last token that it has. So with ``max_new_tokens`` 0 it reads what is new and gives the next
      distribution. It copies the state: that of an earlier call stays good.
    """

    def __init__(self, model: GPT2, tokens: SpecialTokens) -> None:
        self._model = model
        self._config = model.config
        self._pad_token_id = tokens.pad_token_id
        self._cache_names = [
            f"cache_{layer:02d}_{part}" for layer in range(model.config.n_layer) for part in ("keys", "values")
        ]
        ids, row, number = (tf.TensorSpec([None] * rank, tf.int32) for rank in (2, 1, 0))
        cache = tf.TensorSpec([2 * self._config.n_layer, None, self._config.head_dim], model.compute_dtype)
        self.stacks = StackedBlocks(model)
        self.weights = {n: v for n, v in model.canonical_variables().items() if stack_name(n) is None}
        self._forward = tf.function(
            lambda tokens, start, count, cache, capacity: model.forward(
                tokens, start, count, cache, capacity, self.stacks.blocks()
            ),
            input_signature=[ids, row, row, cache, number],
            autograph=False,
        )
        real = tf.TensorSpec([None], tf.float32)
        seed = tf.TensorSpec([None], tf.int64)
        request = Request(
            ids,
            row,
            row,
            Sampling(temperature=real, top_k=row, top_p=real, min_p=real, typical_p=real, seed=seed),
            Constraints(real, no_repeat_ngram_size=row, min_new_tokens=row, eos_token_id=ids, suppress_tokens=ids),
            Window(row, row),
        )
        self._resume = tf.function(
            lambda request, context, capacity: generate_from(
                self._step, capacity, self._config.vocab_size, request, context, tokens.pad_token_id
            ),
            input_signature=[request, Context(cache, row, row, {}), number],
            autograph=False,
        )
        prompt = {"input_ids": IDS, "input_lengths": ROW}
        common, more = (
            {name: requests.spec(option) for name, option in table.items()}
            for table in (COMMON_OPTIONS, SAMPLING_OPTIONS)
        )
        self._prompt = tf.function(
            lambda inputs: requests.read_prompt(inputs, self._config),
            input_signature=[{**prompt, **common}],
            autograph=False,
        )
        self._request = tf.function(
            lambda inputs: requests.generation_request(self._read_prompt(inputs), inputs, self._config),
            input_signature=[{**prompt, **common, **more}],
            autograph=False,
        )
        ends = () if tokens.eos_token_id is None else (tokens.eos_token_id,)
        shared = {**COMMON_OPTIONS, "eos_token_id": dataclasses.replace(COMMON_OPTIONS["eos_token_id"], default=ends)}
        sampled = {**shared, **SAMPLING_OPTIONS}
        self.functions: dict[str, Any] = {
            "serving_default": self._function(self._serving_default, "serving_default", {"inp": IDS}, _PORT),
            "generate": self._function(self._generate, "generate", prompt, sampled),
            "beam_search": self._function(self._beam_search, "beam_search", prompt, {**shared, **BEAM_OPTIONS}),
            "score": self._function(self._score, "score", prompt, {}),
            "logits": self._function(self._logits, "logits", {"input_ids": IDS}, {}),
            "prefill": self._function(self._prefill, "prefill", prompt, {"capacity": _CAPACITY, **_WINDOW}),
            "decode": self._function(self._decode, "decode", {**prompt, **self._state_specs()}, sampled),
        }

    def _function(
        self,
        body: Callable[[Tensors], Tensors],
        name: str,
        inputs: Mapping[str, tf.TensorSpec],
        options: Mapping[str, Option],
    ) -> Any:
        """A ``tf.function`` whose parameters are ``inputs`` and ``options``, those with their defaults."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(key, kind) for key in inputs]
        parameters += [inspect.Parameter(key, kind, default=requests.default(o)) for key, o in options.items()]
        names = [parameter.name for parameter in parameters]

        def call(*args: tf.Tensor, **more: tf.Tensor) -> Tensors:
            given = {**dict(zip(names, args, strict=False)), **more}
            precision = PRECISIONS[self._model.weight_dtype]
            if precision.matrices == "int8" and not precision.transposed:
                ids = names[0]
                given[ids] = checked(given[ids], check(quantization.is_exact(), _NO_VNNI))
            return body(given)

        call.__name__ = name
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        specs = {**inputs, **{key: requests.spec(option) for key, option in options.items()}}
        named = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in specs.items()]
        return tf.function(call, input_signature=named, autograph=False)

    def _step(
        self, tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: tf.Tensor, capacity: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As the model's ``step``, through the shared function."""
        rows, cache = self._forward(tokens, start, count, cache, capacity)
        return self._model.logits(last_rows(rows, tokens, count)), cache

    def _rows(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Hidden rows ``[B * S, h]`` of whole texts, in pieces: attention takes memory for each pair of tokens."""
        batch, size = tf.unstack(tf.shape(ids))
        width = self._config.n_embd
        capacity = capacity_for(size, self._config.n_positions)

        def read(start: tf.Tensor, found: tf.Tensor, cache: tf.Tensor) -> tuple[Any, ...]:
            part = ids[:, start : start + PREFILL_CHUNK]
            count = tf.clip_by_value(lengths - start, 0, tf.shape(part)[1])
            rows, cache = self._forward(part, tf.fill([batch], start), count, cache, capacity)
            return start + PREFILL_CHUNK, tf.concat([found, tf.reshape(rows, [batch, -1, width])], 1), cache

        state = (tf.constant(0), tf.zeros([batch, 0, width]), self._model.allocate(batch, capacity))
        invariants = (
            tf.TensorShape([]),
            tf.TensorShape([None, None, width]),
            state[2].shape,
        )
        _, found, _ = tf.while_loop(
            lambda start, *_: start < size, read, state, shape_invariants=invariants, parallel_iterations=1
        )
        return tf.reshape(found, [-1, width])

    def _read_prompt(self, inputs: Tensors) -> requests.Prompt:
        prompt: requests.Prompt = self._prompt(
            {name: inputs[name] for name in ("input_ids", "input_lengths", *COMMON_OPTIONS)}
        )
        return prompt

    def _serving_default(self, inputs: Tensors) -> Tensors:
        ids, limit = inputs["inp"], self._config.n_positions
        batch, size = tf.unstack(tf.shape(ids))
        ids = checked(ids, *check_ids(ids, self._config.vocab_size, "inp"))
        values = requests.validated_options(_PORT, inputs, batch, self._config.vocab_size)
        length = values["length"]
        fits = check(
            size + length <= limit, f"prompt and length together exceed the {limit} positions of the model: prompt",
            size, "length", length,
        )  # fmt: skip
        off, none = tf.zeros([batch], tf.int32), tf.fill([batch, 1], -1)
        request = Request(
            input_ids=tf.cast(ids, tf.int32),
            input_lengths=tf.fill([batch], size),
            max_new_tokens=checked(length, fits),
            sampling=Sampling(
                temperature=values["temperature"],
                top_k=off,
                top_p=tf.maximum(values["top_p"], 1e-30),
                min_p=tf.zeros([batch]),
                typical_p=tf.ones([batch]),
                seed=random_seeds(batch),
            ),
            constraints=Constraints(
                repetition_penalty=tf.ones([batch]),
                no_repeat_ngram_size=off,
                min_new_tokens=off,
                eos_token_id=none,
                suppress_tokens=none,
            ),
            window=Window(tokens=off + limit, line_token_id=off - 1),
        )
        return {"output_0": self._generated(request)["sequences"]}

    def _generate(self, inputs: Tensors) -> Tensors:
        return self._generated(self._request(inputs))

    def _generated(self, request: Request) -> Tensors:
        capacity, context = empty_context(self._model.allocate, self._config.n_positions, request)
        return _outputs(self._resume(request, context, capacity)[0]._asdict())

    def _beam_search(self, inputs: Tensors) -> Tensors:
        request = requests.beam_request(self._read_prompt(inputs), inputs, self._config)
        limit = self._config.n_positions
        beams = beam_search(self._step, self._model.allocate, limit, request, self._pad_token_id)
        outer = tf.stack([tf.shape(inputs["input_ids"])[0], request.num_return_sequences])
        return _outputs(
            {name: tf.reshape(x, tf.concat([outer, tf.shape(x)[1:]], 0)) for name, x in beams._asdict().items()}
        )

    def _score(self, inputs: Tensors) -> Tensors:
        ids, lengths = checked_prompt(inputs, self._config, self._config.n_positions)
        width = tf.shape(ids)[1]
        ids = ids[:, : tf.reduce_max(lengths)]  # the padding may be of any width
        batch, size = tf.unstack(tf.shape(ids))
        rows = self._rows(ids, lengths)
        targets = tf.reshape(tf.roll(ids, -1, axis=1), [-1])

        def some(start: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            part = slice(start, start + _SCORED)
            logprobs = -tf.nn.sparse_softmax_cross_entropy_with_logits(targets[part], self._model.logits(rows[part]))
            return start + _SCORED, tf.concat([found, logprobs], 0)

        _, logprobs = tf.while_loop(
            lambda start, _: start < batch * size,
            some,
            (tf.constant(0), tf.zeros([0])),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
            parallel_iterations=1,
        )
        after = tf.reshape(logprobs, [batch, size])[:, :-1]
        column = tf.range(1, size)
        own = tf.where(column < lengths[:, tf.newaxis], after, 0.0)
        return {"logprobs": tf.pad(own, [[0, 0], [1, width - size]])}

    def _logits(self, inputs: Tensors) -> Tensors:
        ids = inputs["input_ids"]
        size = tf.shape(ids)[1]
        limit = self._config.n_positions
        few = check(size <= limit, f"the model has {limit} positions; tokens in a row:", size)
        ids = tf.cast(checked(ids, few, *check_ids(ids, self._config.vocab_size, "input_ids")), tf.int32)
        rows = self._rows(ids, tf.fill([tf.shape(ids)[0]], size))
        return {"logits": tf.reshape(self._model.logits(rows), [-1, size, self._config.vocab_size])}

    def _prefill(self, inputs: Tensors) -> Tensors:
        # Everything that only matters when tokens are drawn has its default.
        unused = {name: requests.default(option) for name, option in {**COMMON_OPTIONS, **SAMPLING_OPTIONS}.items()}
        nothing = {"max_new_tokens": tf.constant(0, tf.int64)}
        request = self._request({**unused, **_without(inputs, "capacity"), **nothing})
        batch = tf.shape(request.input_ids)[0]
        limit = self._config.n_positions
        capacity = requests.require_uniform(per_row(inputs["capacity"], batch, "capacity"), "capacity")
        fits = check((capacity >= 0) & (capacity <= limit), f"capacity: expected 0 to {limit}; found", capacity)
        capacity = tf.cast(checked(tf.where(capacity > 0, capacity, limit), fits), tf.int32)
        zeros = tf.zeros([batch], tf.int32)
        context = Context(self._model.allocate(batch, capacity), zeros, zeros, {})
        _, context, logits = self._resume(request, context, capacity)
        return {"logits": logits, **self._state(context, batch)}

    def _decode(self, inputs: Tensors) -> Tensors:
        request = self._request(_without(inputs, *self._state_specs()))
        batch = tf.shape(inputs["input_ids"])[0]
        capacity, context = self._context(inputs, request)
        generated, context, logits = self._resume(request, context, capacity)
        return {**_outputs(generated._asdict()), "logits": logits, **self._state(context, batch)}

    def _state_specs(self) -> dict[str, tf.TensorSpec]:
        config = self._config
        part = tf.TensorSpec([None, config.n_head, None, config.head_dim], self._model.compute_dtype)
        return {**dict.fromkeys(self._cache_names, part), "window_start": ROW, "cache_lengths": ROW}

    def _state(self, context: Context, batch: tf.Tensor) -> Tensors:
        """A context as outputs."""
        config = self._config
        shape = [2 * config.n_layer, batch, config.n_head, -1, config.head_dim]
        state = dict(zip(self._cache_names, tf.unstack(tf.reshape(context.cache, shape)), strict=True))
        return {**state, **_outputs({"window_start": context.start, "cache_lengths": context.cached_length})}

    def _context(self, inputs: Tensors, request: Request) -> tuple[tf.Tensor, Context]:
        """Capacity and context from inputs: a copy, because the cache is written in place."""
        parts = [inputs[name] for name in self._cache_names]
        batch, capacity = tf.shape(inputs["input_ids"])[0], tf.shape(parts[0])[2] - 1
        start, cached_length = (per_row(inputs[name], batch, name) for name in ("window_start", "cache_lengths"))
        length = tf.cast(request.input_lengths, tf.int64)
        limit = self._config.n_positions
        checks = [
            check(
                (capacity >= 1) & (capacity <= limit), f"cache: expected 1 to {limit} positions and a spare one; found",
                capacity,
            ),
            check((start >= 0) & (start < length), "window_start: expected 0 to input_lengths - 1; found", start),
            check(
                (cached_length >= 0)
                & (cached_length <= tf.cast(capacity, tf.int64))
                & (start + cached_length <= length),
                "cache_lengths: expected no more than the cache has, and than input_ids has behind window_start "
                "(input_ids is all of the text so far, from its beginning); found", cached_length,
            ),
        ]  # fmt: skip
        shapes = tf.stack([tf.shape(part) for part in parts])
        checks.append(
            check(
                shapes[:, ::2] == tf.stack([batch, capacity + 1]),
                "cache: expected one capacity for all parts, and as many rows as input_ids has,",
                batch,
                "; found the shapes",
                shapes,
            )
        )  # fmt: skip
        with tf.control_dependencies(checks):
            # A stateful op, so that grappler does not make a constant of a state that is one, to be written to.
            first = tf.raw_ops.DeepCopy(x=parts[0])
            cache = tf.reshape(tf.stack([first, *parts[1:]]), [len(parts), -1, self._config.head_dim])
        # The last token is read again if need be: the distribution of the next one follows from it.
        start, cached_length = (
            tf.cast(checked(x, *checks), tf.int32) for x in (start, tf.minimum(cached_length, length - start - 1))
        )
        return checked(capacity, *checks), Context(cache, start, cached_length, {})


_NO_VNNI = (
    "this processor has no VNNI instructions, without which the int8 products of TensorFlow are wrong: convert the "
    "checkpoint or this SavedModel with --dtype int8-avx2 or float32"
)
_CAPACITY = Option(0, 0, 2**31 - 1, "")


def _without(inputs: Tensors, *names: str) -> Tensors:
    return {name: x for name, x in inputs.items() if name not in names}


def _outputs(values: Mapping[str, tf.Tensor]) -> Tensors:
    """int32 is the model's own; what goes out is int64."""
    return {name: tf.cast(x, tf.int64) if x.dtype == tf.int32 else x for name, x in values.items()}
