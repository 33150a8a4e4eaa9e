"""The functions that the graph of a SavedModel holds once, for all signatures to call.

Without them the graph would hold the forward pass, the loop and the checks of options once for each signature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from exports import graph_inputs
from exports.generation_options import COMMON_OPTIONS, SAMPLING_OPTIONS
from exports.graph_inputs import IDS, ROW, Tensors
from tf_model.cache import capacity_for
from tf_model.generation import PREFILL_CHUNK, Context, Generated, Request, generate_from
from tf_model.gpt2 import GPT2, last_rows
from tf_model.logits_processors import Constraints
from tf_model.precision import stack_name
from tf_model.sampling import Sampling
from tf_model.stacked_blocks import StackedBlocks
from tf_model.window import Window
from tokenization.special_tokens import SpecialTokens

PROMPT = {"input_ids": IDS, "input_lengths": ROW}
"""The inputs that give prompts of any lengths."""


class SharedFunctions:
    """A model's functions, each of which is in the graph once. B rows, S tokens, h the hidden size.

    Attributes:
        model: the model; its blocks are replaced by ``stacks``.
        tokens: the padding id, the end of text and the ids without a piece are part of the graph.
        stacks: the weights of all blocks, in variables that the SavedModel has under ``stacks``.
        weights: the other weights, by canonical name, which the SavedModel has under ``weights``.
    """

    def __init__(self, model: GPT2, tokens: SpecialTokens) -> None:
        self.model = model
        self.config = config = model.config
        self.tokens = tokens
        self._blank = np.isin(np.arange(config.vocab_size), tokens.blank_ids) if tokens.blank_ids else None
        self.stacks = StackedBlocks(model)
        self.weights = {n: v for n, v in model.canonical_variables().items() if stack_name(n) is None}
        ids, row, number = (tf.TensorSpec([None] * rank, tf.int32) for rank in (2, 1, 0))
        cache = tf.TensorSpec([2 * config.n_layer, None, config.head_dim], model.compute_dtype)
        options = {name: graph_inputs.spec(option) for name, option in {**COMMON_OPTIONS, **SAMPLING_OPTIONS}.items()}
        common = {name: options[name] for name in COMMON_OPTIONS}
        self._forward = tf.function(
            self._trace_forward, input_signature=[ids, row, row, cache, number], autograph=False
        )
        self._generate_from = tf.function(
            self._trace_generate_from,
            input_signature=[_request_spec(), Context(cache, row, row, {}), number],
            autograph=False,
        )
        self._read_prompt = tf.function(
            lambda inputs: graph_inputs.read_prompt(inputs, config),
            input_signature=[{**PROMPT, **common}],
            autograph=False,
        )
        self._read_request = tf.function(
            lambda inputs: graph_inputs.generation_request(self.read_prompt(inputs), inputs, config),
            input_signature=[{**PROMPT, **options}],
            autograph=False,
        )

    def _trace_forward(
        self, tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: tf.Tensor, capacity: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return self.model.forward(tokens, start, count, cache, capacity, self.stacks.blocks())

    def _trace_generate_from(
        self, request: Request, context: Context, capacity: tf.Tensor
    ) -> tuple[Generated, Context, tf.Tensor]:
        return generate_from(self.step, capacity, self.config.vocab_size, request, context, self.tokens.pad_token_id)

    def step(
        self, tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: tf.Tensor, capacity: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Call the forward pass as ``GPT2.step`` does. Consumes ``cache``."""
        rows, cache = self._forward(tokens, start, count, cache, capacity)
        return self.logits(last_rows(rows, tokens, count)), cache

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Return the logits float32 ``[N, V]`` of what can be drawn: ids without a piece have -inf."""
        logits = self.model.logits(hidden)
        return logits if self._blank is None else tf.where(self._blank, float("-inf"), logits)

    def generate_from(
        self, request: Request, context: Context, capacity: tf.Tensor
    ) -> tuple[Generated, Context, tf.Tensor]:
        """Call the loop, ``tf_model.generation.generate_from``. Consumes ``context``."""
        found: tuple[Generated, Context, tf.Tensor] = self._generate_from(request, context, capacity)
        return found

    def read_prompt(self, inputs: Tensors) -> graph_inputs.Prompt:
        """Return the prompt in the inputs of a signature, checked; other inputs are ignored."""
        prompt: graph_inputs.Prompt = self._read_prompt({name: inputs[name] for name in (*PROMPT, *COMMON_OPTIONS)})
        return prompt

    def read_request(self, inputs: Tensors) -> Request:
        """Return the request in the inputs of a signature, checked; other inputs are ignored."""
        names = (*PROMPT, *COMMON_OPTIONS, *SAMPLING_OPTIONS)
        request: Request = self._read_request({name: inputs[name] for name in names})
        return request

    def hidden(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Return the hidden states ``[B * S, h]`` of whole texts, int32 ``[B, S]`` and ``[B]``.

        They are read ``PREFILL_CHUNK`` tokens at a time: attention takes memory for each pair of tokens.
        """
        batch, size = tf.unstack(tf.shape(ids))
        width = self.config.n_embd
        capacity = capacity_for(size, self.config.n_positions)

        def read(start: tf.Tensor, found: tf.Tensor, cache: tf.Tensor) -> tuple[Any, ...]:
            part = ids[:, start : start + PREFILL_CHUNK]
            count = tf.clip_by_value(lengths - start, 0, tf.shape(part)[1])
            rows, cache = self._forward(part, tf.fill([batch], start), count, cache, capacity)
            return start + PREFILL_CHUNK, tf.concat([found, tf.reshape(rows, [batch, -1, width])], 1), cache

        state = (tf.constant(0), tf.zeros([batch, 0, width]), self.model.allocate(batch, capacity))
        invariants = (tf.TensorShape([]), tf.TensorShape([None, None, width]), state[2].shape)
        _, found, _ = tf.while_loop(
            lambda start, *_: start < size, read, state, shape_invariants=invariants, parallel_iterations=1
        )
        return tf.reshape(found, [-1, width])


def _request_spec() -> Request:
    ids, row = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
    real, seed = tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.int64)
    return Request(
        input_ids=ids,
        input_lengths=row,
        max_new_tokens=row,
        sampling=Sampling(temperature=real, top_k=row, top_p=real, min_p=real, typical_p=real, seed=seed),
        constraints=Constraints(
            real, no_repeat_ngram_size=row, min_new_tokens=row, eos_token_id=ids, suppress_tokens=ids
        ),
        window=Window(row, row),
    )
