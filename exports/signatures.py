"""The signatures of the SavedModel: for each a table of inputs and options, and a body.

B rows, S tokens, V the vocabulary. ``input_ids`` is int64 ``[B, S]``, right-padded with anything; ``input_lengths``
int64 ``[B]``; options are as ``generation_options.py`` and ``graph_inputs.py`` say. All whole numbers are int64.

- ``serving_default``: inputs and output of CPM-LM-TF2's SavedModel: ``inp`` ``[B, S]``, ``length``, ``top_p`` (0 is
  greedy), ``temperature`` -> ``output_0`` ``[B, S + length]``. Exactly ``length`` tokens are added.
- ``generate``: ``input_ids``, ``input_lengths``, options (``eos_token_id`` is the model's by default) -> ``sequences``
  ``[B, S + N]``, N the largest ``max_new_tokens``: prompt and continuation without a gap, then padding; ``lengths``
  ``[B]``; ``logprobs`` float32 ``[B, N]``, the model's own for each new token. A text that outgrows the positions goes
  on in a window that moves.
- ``beam_search``: the same inputs with the options of beams -> ``sequences`` ``[B, R, S + N]``, R the
  ``num_return_sequences``, the best one first; ``lengths`` ``[B, R]``; ``scores`` float32 ``[B, R]``.
- ``score``: ``input_ids``, ``input_lengths`` -> ``logprobs`` float32 ``[B, S]``, of each token after those before it; 0
  for the first one and for padding.
- ``logits``: ``input_ids`` -> ``logits`` float32 ``[B, S, V]``.
- ``prefill``: ``input_ids``, ``input_lengths``, ``capacity`` (positions of the cache; 0 is all of the model's), window
  -> ``logits`` float32 ``[B, V]`` of the next token, and the state (``decode_state.py``).
- ``decode``: as ``generate``, and the state of an earlier call; ``input_ids`` is all of the text so far -> as
  ``generate`` and ``prefill``. The state has all tokens but the last one generated; ``logits`` are those after the last
  token that it has. So with ``max_new_tokens`` 0 it reads what is new and gives the next distribution. It copies the
  state, and an earlier state stays good; with ``donate_state`` it uses the state up instead.

An input with a default may be left out by a caller of the loaded object's function (``model.generate(...)``), and in
requests to TensorFlow Serving.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from exports import graph_inputs
from exports.decode_state import DONATE_STATE, DecodeState
from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, MAX_NEW_TOKENS, SAMPLING_OPTIONS, Option
from exports.graph_inputs import IDS, Tensors, check, check_ids, checked, checked_prompt, per_row, to_int64
from exports.saved_model_folder import SIGNATURES
from exports.shared_functions import PROMPT, SharedFunctions
from tf_model import quantization
from tf_model.beam import beam_search
from tf_model.generation import Request, empty_context, new_context, random_seeds
from tf_model.logits_processors import Constraints
from tf_model.precision import PRECISIONS
from tf_model.sampling import Sampling
from tf_model.window import Window

SCORE_CHUNK = 256
"""Tokens whose logits are in memory at a time when texts are scored."""

_CPM_LM_TF2_OPTIONS = {
    "length": Option(20, 0, MAX_NEW_TOKENS, ""),
    "top_p": Option(0.9, 0, 1, ""),
    "temperature": Option(0.9, 0, float("inf"), ""),
}
"""The options of ``serving_default``: CPM-LM-TF2's, with the defaults of its Python code."""

_PREFILL_OPTIONS = {
    "capacity": Option(0, 0, 2**31 - 1, ""),
    **{name: SAMPLING_OPTIONS[name] for name in ("window_tokens", "window_line_token_id")},
}

_NO_VNNI = (
    "this processor has no VNNI instructions, without which the int8 products of TensorFlow are wrong: convert the "
    "checkpoint or this SavedModel with --dtype int8-avx2 or float32"
)


@dataclasses.dataclass(frozen=True)
class Signature:
    """One function of the SavedModel.

    Attributes:
        name: what callers call it.
        inputs: those without a default, by name.
        options: the other inputs, by name.
        body: makes the outputs from the inputs, all of which are there.
    """

    name: str
    inputs: Mapping[str, tf.TensorSpec]
    options: Mapping[str, Option]
    body: Callable[[SharedFunctions, Tensors], Tensors]

    def function(self, shared: SharedFunctions) -> Any:
        """Return a ``tf.function`` whose parameters are the inputs and options, those with their defaults."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(key, kind) for key in self.inputs]
        defaults = {key: graph_inputs.default(option) for key, option in self.options.items()}
        parameters += [inspect.Parameter(key, kind, default=value) for key, value in defaults.items()]
        names = [parameter.name for parameter in parameters]

        def call(*args: tf.Tensor, **more: tf.Tensor) -> Tensors:
            given = {**dict(zip(names, args, strict=False)), **more}
            precision = PRECISIONS[shared.model.weight_dtype]
            if precision.matrices == "int8" and not precision.transposed:
                ids = names[0]
                given[ids] = checked(given[ids], check(quantization.is_exact(), _NO_VNNI))
            return self.body(shared, given)

        call.__name__ = self.name
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # TensorFlow reads it
        specs = {**self.inputs, **{key: graph_inputs.spec(option) for key, option in self.options.items()}}
        named = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in specs.items()]
        return tf.function(call, input_signature=named, autograph=False)


def signature_functions(shared: SharedFunctions, names: Sequence[str] = SIGNATURES) -> dict[str, Any]:
    """Return a ``tf.function`` for each signature in ``names``; it is traced when it is saved or called first."""
    table = {signature.name: signature for signature in signatures_of(shared)}
    return {name: table[name].function(shared) for name in names}


def signatures_of(shared: SharedFunctions) -> tuple[Signature, ...]:
    """Return all signatures of a model."""
    eos = shared.tokens.eos_token_id
    ends = dataclasses.replace(COMMON_OPTIONS["eos_token_id"], default=() if eos is None else (eos,))
    common = {**COMMON_OPTIONS, "eos_token_id": ends}
    sampled = {**common, **SAMPLING_OPTIONS}
    state = _state_of(shared).specs
    return (
        Signature("serving_default", {"inp": IDS}, _CPM_LM_TF2_OPTIONS, _serving_default),
        Signature("generate", PROMPT, sampled, _generate),
        Signature("beam_search", PROMPT, {**common, **BEAM_OPTIONS}, _beam_search),
        Signature("score", PROMPT, {}, _score),
        Signature("logits", {"input_ids": IDS}, {}, _logits),
        Signature("prefill", PROMPT, _PREFILL_OPTIONS, _prefill),
        Signature("decode", {**PROMPT, **state}, {**sampled, **DONATE_STATE}, _decode),
    )


def _serving_default(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    ids, limit = inputs["inp"], shared.config.n_positions
    batch, size = tf.unstack(tf.shape(ids))
    ids = checked(ids, *check_ids(ids, shared.config.vocab_size, "inp"))
    values = graph_inputs.validated_options(_CPM_LM_TF2_OPTIONS, inputs, batch, shared.config.vocab_size)
    length = values["length"]
    words = f"prompt and length together exceed the {limit} positions of the model: prompt"
    fits = check(size + length <= limit, words, size, "length", length)
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
    return {"output_0": _generated(shared, request)["sequences"]}


def _generate(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    return _generated(shared, shared.read_request(inputs))


def _generated(shared: SharedFunctions, request: Request) -> Tensors:
    capacity, context = empty_context(shared.model.allocate, shared.config.n_positions, request)
    return to_int64(shared.generate_from(request, context, capacity)[0]._asdict())


def _beam_search(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    request = graph_inputs.beam_request(shared.read_prompt(inputs), inputs, shared.config)
    limit = shared.config.n_positions
    beams = beam_search(shared.step, shared.model.allocate, limit, request, shared.tokens.pad_token_id)
    outer = tf.stack([tf.shape(inputs["input_ids"])[0], request.num_return_sequences])
    return to_int64(
        {name: tf.reshape(x, tf.concat([outer, tf.shape(x)[1:]], 0)) for name, x in beams._asdict().items()}
    )


def _score(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    ids, lengths = checked_prompt(inputs, shared.config, shared.config.n_positions)
    width = tf.shape(ids)[1]
    ids = ids[:, : tf.reduce_max(lengths)]  # the padding may be of any width
    batch, size = tf.unstack(tf.shape(ids))
    hidden = shared.hidden(ids, lengths)
    targets = tf.reshape(tf.roll(ids, -1, axis=1), [-1])

    def score_chunk(start: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        part = slice(start, start + SCORE_CHUNK)
        logits = shared.logits(hidden[part])
        logprobs = -tf.nn.sparse_softmax_cross_entropy_with_logits(targets[part], logits)
        return start + SCORE_CHUNK, tf.concat([found, logprobs], 0)

    _, logprobs = tf.while_loop(
        lambda start, _: start < batch * size,
        score_chunk,
        (tf.constant(0), tf.zeros([0])),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
        parallel_iterations=1,
    )
    after = tf.reshape(logprobs, [batch, size])[:, :-1]
    column = tf.range(1, size)
    own = tf.where(column < lengths[:, tf.newaxis], after, 0.0)
    return {"logprobs": tf.pad(own, [[0, 0], [1, width - size]])}


def _logits(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    ids, limit = inputs["input_ids"], shared.config.n_positions
    size = tf.shape(ids)[1]
    few = check(size <= limit, f"the model has {limit} positions; tokens in a row:", size)
    ids = tf.cast(checked(ids, few, *check_ids(ids, shared.config.vocab_size, "input_ids")), tf.int32)
    hidden = shared.hidden(ids, tf.fill([tf.shape(ids)[0]], size))
    return {"logits": tf.reshape(shared.model.logits(hidden), [-1, size, shared.config.vocab_size])}


def _prefill(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    # Everything that only matters when tokens are drawn has its default.
    unused = {name: graph_inputs.default(option) for name, option in {**COMMON_OPTIONS, **SAMPLING_OPTIONS}.items()}
    request = shared.read_request({**unused, **inputs, "max_new_tokens": tf.constant(0, tf.int64)})
    batch, limit = tf.shape(request.input_ids)[0], shared.config.n_positions
    capacity = graph_inputs.require_uniform(per_row(inputs["capacity"], batch, "capacity"), "capacity")
    fits = check((capacity >= 0) & (capacity <= limit), f"capacity: expected 0 to {limit}; found", capacity)
    capacity = tf.cast(checked(tf.where(capacity > 0, capacity, limit), fits), tf.int32)
    context = new_context(shared.model.allocate(batch, capacity), request)
    _, context, logits = shared.generate_from(request, context, capacity)
    return {"logits": logits, **_state_of(shared).to_outputs(context, batch)}


def _decode(shared: SharedFunctions, inputs: Tensors) -> Tensors:
    request = shared.read_request(inputs)
    state = _state_of(shared)
    capacity, context = state.from_inputs(inputs, request)
    generated, context, logits = shared.generate_from(request, context, capacity)
    outputs = state.to_outputs(context, tf.shape(inputs["input_ids"])[0])
    return {**to_int64(generated._asdict()), "logits": logits, **outputs}


def _state_of(shared: SharedFunctions) -> DecodeState:
    return DecodeState(shared.config, shared.model.compute_dtype)
