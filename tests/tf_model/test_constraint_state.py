"""Constraints that remember something of each row: through the loop, from call to call, and from beam to beam."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from transformers.generation.configuration_utils import GenerationMode

from tests.helpers.checkpoints import fill_transformers, random_state
from tests.tf_model.test_beam import PAD, assign, lists, vivid, whole
from tf_model.beam import BeamRequest, beam_search
from tf_model.config import GPT2Config
from tf_model.generation import Context, Generated, Request, generate, generate_from, new_context
from tf_model.gpt2 import GPT2
from tf_model.logits_processors import ConstraintState
from tf_model.sampling import Sampling
from tf_model.window import Window

CONFIG = GPT2Config(vocab_size=60, n_positions=32, n_embd=24, n_layer=2, n_head=3)


class Alternating(NamedTuple):
    """Even and odd tokens take turns, and a text has at most ``most`` ``[B]`` new tokens of each kind.

    The state is all that is known of the row: ``kind`` ``[B]``, that of the last new token, 2 before the first, and
    ``counts`` ``[B, 2]``.
    """

    eos_token_id: tf.Tensor
    most: tf.Tensor

    def initial_state(self, history: tf.Tensor, length: tf.Tensor) -> ConstraintState:
        return {"kind": tf.ones_like(length) * 2, "counts": tf.zeros(tf.stack([tf.size(length), 2]), tf.int32)}

    def apply(
        self, state: ConstraintState, logits: tf.Tensor, history: tf.Tensor, length: tf.Tensor, new: tf.Tensor
    ) -> tf.Tensor:
        kinds = tf.range(2)
        allowed = (kinds != state["kind"][:, tf.newaxis]) & (state["counts"] < self.most[:, tf.newaxis])
        every = tf.tile(allowed, [1, CONFIG.vocab_size // 2])  # token 0, 1, 2, 3, ...
        return tf.ensure_shape(tf.where(every, logits, -float("inf")), logits.shape)

    def update(self, state: ConstraintState, token: tf.Tensor) -> ConstraintState:
        kind = tf.where(state["kind"] == 2, token % 2, 1 - state["kind"])  # from the state, for the rows that draw
        return {"kind": kind, "counts": state["counts"] + tf.one_hot(kind, 2, dtype=tf.int32)}


class Alternation(transformers.LogitsProcessor):
    """The same from the text alone, for transformers."""

    def __init__(self, size: int, most: int) -> None:
        self.size, self.most = size, most

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, text in zip(scores, input_ids.tolist(), strict=True):
            kinds = [token % 2 for token in text[self.size :]]
            for kind in (0, 1):
                if kinds[-1:] == [kind] or kinds.count(kind) >= self.most:
                    row[kind::2] = -float("inf")
        return scores


class Models(NamedTuple):
    ours: GPT2
    theirs: transformers.GPT2LMHeadModel


@pytest.fixture(scope="module")
def models() -> Models:
    state = vivid(random_state(CONFIG, np.random.default_rng(0)))
    assign(ours := GPT2(CONFIG), state)
    return Models(ours, fill_transformers(state, CONFIG))


PROMPTS = [[1, 2, 3, 4, 5], [7], [8, 9, 10], [11, 12, 13, 14, 15, 16, 17, 18]]
MOST = [3, 100, 5, 100]
NEW = 12


def alternating(most: Sequence[int]) -> Alternating:
    return Alternating(tf.fill([len(most), 1], -1), tf.constant(most))


def request(prompts: Sequence[Sequence[int]], most: Sequence[int], new: int, seeds: Sequence[int]) -> Request:
    """Greedy where the seed is 0."""
    rows = len(prompts)
    ones, off = tf.ones([rows]), tf.zeros([rows], tf.int32)
    temperature = tf.constant([float(seed > 0) for seed in seeds])
    return Request(
        lists(prompts, 3),
        tf.constant([len(prompt) for prompt in prompts]),
        tf.fill([rows], new),
        Sampling(temperature, off, ones, tf.zeros([rows]), ones, tf.constant(seeds, tf.int64)),
        alternating(most),
        Window(off + 10, off - 1),
    )


def texts(result: Generated) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(result.sequences.numpy(), result.lengths.numpy(), strict=True)]


def in_one_call(models: Models, asked: Request) -> list[list[int]]:
    call = tf.function(lambda asked: generate(models.ours.step, models.ours.allocate, CONFIG, asked, PAD))
    return texts(call(asked))


def greedy(models: Models, prompt: Sequence[int], most: int) -> list[int]:
    text, processor = [*prompt], Alternation(len(prompt), most)
    while len(text) < len(prompt) + NEW:
        with torch.inference_mode():
            logits = processor(torch.tensor([text]), models.theirs(torch.tensor([text])).logits[:, -1])
        if torch.isinf(logits).all():
            break
        text.append(int(logits.argmax()))
    return text


def test_the_loop_carries_a_state_for_each_row(models: Models) -> None:
    """Rows that read prompts of different lengths, and two that run out of tokens."""
    found = in_one_call(models, request(PROMPTS, MOST, NEW, [0] * 4))
    assert found == [greedy(models, prompt, most) for prompt, most in zip(PROMPTS, MOST, strict=True)]
    assert [len(text) - len(prompt) for text, prompt in zip(found, PROMPTS, strict=True)] == [6, NEW, 10, NEW]


def test_a_row_with_a_state_does_not_depend_on_its_batch(models: Models) -> None:
    seeds = [5, 6, 0, 8]
    together = in_one_call(models, request(PROMPTS, MOST, 40, seeds))  # windows move
    for i, text in enumerate(together):
        assert in_one_call(models, request(PROMPTS[i : i + 1], MOST[i : i + 1], 40, seeds[i : i + 1])) == [text]
        kinds = [token % 2 for token in text[len(PROMPTS[i]) :]]
        assert all(a != b for a, b in itertools.pairwise(kinds))
        assert max(kinds.count(0), kinds.count(1)) <= MOST[i]


@pytest.mark.parametrize("calls", [[1] * NEW, [5, 4, 3]])
def test_the_state_goes_from_prefill_to_decode_and_on(models: Models, calls: list[int]) -> None:
    seeds = [0, 6, 0, 8]
    capacity = tf.constant(CONFIG.n_positions)

    @tf.function(reduce_retracing=True)
    def resume(asked: Request, context: Context) -> tuple[Generated, Context]:
        unread = tf.minimum(context.cached_length, asked.input_lengths - context.start - 1)  # one token at least
        context = context._replace(cached_length=unread)
        generated, context, _ = generate_from(models.ours.step, capacity, CONFIG.vocab_size, asked, context, PAD)
        return generated, context

    asked = request(PROMPTS, MOST, 0, seeds)
    _, context = resume(asked, new_context(models.ours.allocate(tf.constant(4), capacity), asked))
    rows: list[list[int]] = PROMPTS
    for new in calls:
        generated, context = resume(request(rows, MOST, new, seeds), context)
        rows = texts(generated)
    assert {name: x.shape.as_list() for name, x in context.constraint_state.items()} == {"kind": [4], "counts": [4, 2]}
    assert rows == in_one_call(models, request(PROMPTS, MOST, NEW, seeds))
    forgotten = context._replace(constraint_state=asked.constraints.initial_state(asked.input_ids, asked.input_lengths))
    generated, _ = resume(request(rows, MOST, 1, seeds), forgotten)
    assert len(texts(generated)[0]) == len(rows[0]) + 1  # with its state the first row had no token left


def test_each_beam_has_the_state_of_the_beam_that_it_continues(models: Models) -> None:
    """Against transformers, which looks at each beam's text."""
    rng, beams, count = np.random.default_rng(2), 5, 16
    prompts = [rng.integers(0, 60, rng.integers(1, 12)).tolist() for _ in range(count)]
    most = rng.choice([3, 5, 100], count).tolist()
    new = [int(min(rng.integers(2, 10), 2 * each)) for each in most]  # no beam runs out of tokens
    asked = BeamRequest(
        input_ids=lists(prompts, 3),
        input_lengths=tf.constant([len(prompt) for prompt in prompts]),
        max_new_tokens=tf.constant(new),
        num_beams=tf.constant(beams),
        num_return_sequences=tf.constant(beams),
        length_penalty=tf.ones([count]),
        early_stopping=tf.zeros([count], tf.int32),
        constraints=alternating(most),
    )
    search = tf.function(
        lambda asked: beam_search(models.ours.step, models.ours.allocate, 32, asked, PAD),
        input_signature=[tf.nest.map_structure(lambda x: tf.TensorSpec([None] * x.shape.rank, x.dtype), asked)],
        autograph=False,
    )
    found = search(asked)
    sequences, lengths, scores = (x.numpy() for x in found)
    several_kinds = False
    for i, prompt in enumerate(prompts):
        config: Any = transformers.GenerationConfig(
            max_new_tokens=new[i], do_sample=False, num_beams=beams, num_return_sequences=beams, pad_token_id=PAD,
            eos_token_id=None, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        config.get_generation_mode = lambda *_: GenerationMode.BEAM_SEARCH
        processors = transformers.LogitsProcessorList([Alternation(len(prompt), most[i])])
        with torch.inference_mode():
            out = models.theirs.generate(**whole(prompt), generation_config=config, logits_processor=processors)
        own = range(beams * i, beams * (i + 1))
        assert [sequences[r][: lengths[r]].tolist() for r in own] == out.sequences[:, : len(prompt) + new[i]].tolist()
        np.testing.assert_allclose(scores[beams * i : beams * (i + 1)], out.sequences_scores, atol=1e-4)
        several_kinds |= len({sequences[r][len(prompt)] % 2 for r in own}) == 2
    assert several_kinds  # else all beams of a row had the same state
