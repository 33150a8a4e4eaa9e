"""Texts that the model writes while it is trained: the loop of ``tf_model.generation`` over the weights as they are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from tf_model.generation import Request, generate
from tf_model.gpt2 import GPT2, last_rows
from tf_model.layers import MLP, ApplyBlock, Attention, Block
from tf_model.logits_processors import Constraints
from tf_model.sampling import Sampling
from tf_model.window import Window
from training.model.lora import Adapters


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How samples are drawn; the defaults are those of a SavedModel.

    Attributes:
        new_tokens: at most.
        temperature, top_p: see ``tf_model.sampling``.
        seed: of the first sample; the next ones have the numbers after it. The same at each evaluation, so that the
            texts differ by what was learned.
        eos_token_id: the end of a text; None where there is none.
        ends_lines: whether an end of text ends a line only, as in lyrics (``Preset.ends_lines``).
    """

    new_tokens: int = 100
    temperature: float = 0.9
    top_p: float = 0.9
    seed: int = 0
    eos_token_id: int | None = None
    ends_lines: bool = False


class TextSampler:
    """Continues the same prompts whenever it is asked.

    Args:
        gpt2: the model; its variables are read at each call.
        decode: ids -> text.
        prompts: ids of each prompt, at least one.
        options: how to draw.
        adapters: LoRA's; None without them.
    """

    def __init__(
        self,
        gpt2: GPT2,
        decode: Callable[[Iterable[int]], str],
        prompts: Sequence[Sequence[int]],
        options: SampleOptions,
        adapters: Adapters | None = None,
    ) -> None:
        self._decode, self._prompts, self._options = decode, prompts, options
        blocks = adapted_blocks(gpt2, adapters)

        def step(
            tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: tf.Tensor, capacity: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            rows, cache = gpt2.forward(tokens, start, count, cache, capacity, blocks)
            return gpt2.logits(last_rows(rows, tokens, count)), cache

        def draw(input_ids: tf.Tensor, input_lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            request = _request(input_ids, input_lengths, options, gpt2.config.n_positions)
            texts = generate(step, gpt2.allocate, gpt2.config, request, pad_token_id=0)
            return texts.sequences, texts.lengths

        specs = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]
        self._draw = tf.function(draw, input_signature=specs)

    def draw(self) -> list[str]:
        """Return each prompt with its continuation."""
        lengths = np.array([len(prompt) for prompt in self._prompts], np.int32)
        ids = np.zeros((len(lengths), lengths.max()), np.int32)
        for row, prompt in zip(ids, self._prompts, strict=True):
            row[: len(prompt)] = prompt
        sequences, ends = (tensor.numpy() for tensor in self._draw(ids, lengths))
        return [self._text(row[:end].tolist()) for row, end in zip(sequences, ends, strict=True)]

    def _text(self, ids: list[int]) -> str:
        """Return the text of ids; an end of text within it ends a line."""
        lines: list[list[int]] = [[]]
        for token in ids:
            if token == self._options.eos_token_id:
                lines.append([])
            else:
                lines[-1].append(token)
        return "\n".join(map(self._decode, lines)).removesuffix("\n")


def _request(input_ids: tf.Tensor, input_lengths: tf.Tensor, options: SampleOptions, n_positions: int) -> Request:
    """Return the request for a continuation of each row."""
    batch = tf.shape(input_ids)[0]

    def rows(value: float, dtype: tf.DType = tf.int32) -> tf.Tensor:
        return tf.fill([batch], tf.constant(value, dtype))

    end = -1 if options.eos_token_id is None or options.ends_lines else options.eos_token_id
    return Request(
        input_ids=input_ids,
        input_lengths=input_lengths,
        max_new_tokens=rows(options.new_tokens),
        sampling=Sampling(
            temperature=rows(options.temperature, tf.float32),
            top_k=rows(0),
            top_p=rows(options.top_p, tf.float32),
            min_p=rows(0.0, tf.float32),
            typical_p=rows(1.0, tf.float32),
            seed=tf.range(tf.cast(batch, tf.int64)) + options.seed,
        ),
        constraints=Constraints(
            repetition_penalty=rows(1.0, tf.float32),
            no_repeat_ngram_size=rows(0),
            min_new_tokens=rows(0),
            eos_token_id=rows(end)[:, tf.newaxis],
            suppress_tokens=rows(-1)[:, tf.newaxis],
        ),
        window=Window(tokens=rows(max(1, n_positions // 2)), line_token_id=rows(-1)),
    )


def adapted_blocks(gpt2: GPT2, adapters: Adapters | None) -> list[ApplyBlock]:
    """Return the blocks of ``gpt2`` with adapters, as functions; an empty list without adapters."""
    return [] if adapters is None else [_adapted(block, index, adapters) for index, block in enumerate(gpt2.h)]


def _adapted(block: Block, index: int, adapters: Adapters) -> ApplyBlock:
    """Return ``Block.call`` of a block whose products have adapters: the same code, over other products."""

    def product(part: Any, target: str) -> Callable[[tf.Tensor], tf.Tensor]:
        layer, pair = getattr(part, target), adapters.pair(index, f"{part.name}.{target}")
        if pair is None:
            return layer  # type: ignore[no-any-return]

        def apply(x: tf.Tensor) -> tf.Tensor:
            y, (a, b) = layer(x), (tf.cast(matrix.value, tf.float32) for matrix in pair)
            inner = tf.matmul(tf.cast(x, tf.float32), a, transpose_b=True)
            return y + tf.cast(adapters.scale * tf.matmul(inner, b, transpose_b=True), y.dtype)

        return apply

    attn, mlp = block.attn, block.mlp
    attention: Any = SimpleNamespace(
        config=attn.config, scale=attn.scale, c_attn=product(attn, "c_attn"), c_proj=product(attn, "c_proj")
    )
    feed_forward: Any = SimpleNamespace(
        activation=mlp.activation, c_fc=product(mlp, "c_fc"), c_proj=product(mlp, "c_proj")
    )
    view: Any = SimpleNamespace(
        ln_1=block.ln_1,
        ln_2=block.ln_2,
        attn=functools.partial(Attention.call, attention),
        mlp=functools.partial(MLP.call, feed_forward),
    )
    return functools.partial(Block.call, view)
