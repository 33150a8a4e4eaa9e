"""Beam search against transformers' own: the same weights in both, texts equal and scores within 1e-4."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from transformers.generation import GenerationMode

from tests.helpers.checkpoints import State, fill_transformers, random_state
from tf_model import beam, cache
from tf_model.beam import BeamRequest, Beams, beam_search
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from tf_model.logits_processors import Constraints

CONFIG = GPT2Config(vocab_size=60, n_positions=32, n_embd=24, n_layer=2, n_head=3)
PAD = 59
NAMES = {
    "ln_1": "input_layernorm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.dense",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.dense_h_to_4h",
    "mlp.c_proj": "mlp.dense_4h_to_h",
}
EARLY_STOPPING: dict[bool | str, int] = {False: beam.HEURISTIC, True: beam.WHEN_FULL, "never": beam.NEVER}


def assign(model: GPT2, state: State) -> None:
    """Puts the weights of ``state``, Megatron's names, into the Keras model."""
    names = {
        "wte.weight": "word_embeddings.weight",
        "wpe.weight": "position_embeddings.weight",
        "ln_f.weight": "transformer.final_layernorm.weight",
        "ln_f.bias": "transformer.final_layernorm.bias",
    }
    for i, (ours, theirs), kind in itertools.product(range(model.config.n_layer), NAMES.items(), ("weight", "bias")):
        names[f"h.{i}.{ours}.{kind}"] = f"transformer.layers.{i}.{theirs}.{kind}"
    variables = model.canonical_variables()
    assert variables.keys() == names.keys()
    for name, variable in variables.items():
        variable.assign(state[names[name]].numpy())


def vivid(state: State) -> State:
    """Weights that do not make a model repeat its last token, as those of ``state`` do: texts then vary, and depend on
    all that was before."""
    factors = {"word_": 0.5, "position_": 6, "query_key_value.weight": 4, "dense.weight": 4, "4h_to_h.weight": 4}
    return {
        name: tensor * math.prod(factor for part, factor in factors.items() if part in name)
        for name, tensor in state.items()
    }


class Pair:
    """One set of random weights at a time, in the Keras model and in transformers'; one traced graph for all."""

    def __init__(self, config: GPT2Config) -> None:
        self.config = config
        self.model = GPT2(config)
        self.theirs: transformers.GPT2LMHeadModel
        ids, row, scalar = (tf.TensorSpec([None] * rank, tf.int32) for rank in (2, 1, 0))
        real = tf.TensorSpec([None], tf.float32)
        self.search = tf.function(
            lambda request: beam_search(self.model.step, self.model.allocate, config.n_positions, request, PAD),
            input_signature=[
                BeamRequest(ids, row, row, scalar, scalar, real, row, Constraints(real, row, row, ids, ids))
            ],
            autograph=False,
        )

    def draw(self, seed: int) -> np.random.Generator:
        rng = np.random.default_rng(seed)
        state = vivid(random_state(self.config, rng))
        assign(self.model, state)
        self.theirs = fill_transformers(state, self.config)
        return rng


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(CONFIG)


def lists(rows: Sequence[Sequence[int]], fill: int) -> tf.Tensor:
    """Ragged rows as one int32 matrix of at least one column."""
    width = max(1, *map(len, rows))
    return tf.constant([[*row, *[fill] * (width - len(row))] for row in rows], tf.int32)


def request(
    prompts: Sequence[Sequence[int]], *, num_beams: int, max_new_tokens: Any = 12, num_return_sequences: int = 1,
    length_penalty: Any = 1.0, early_stopping: Any = 0, repetition_penalty: Any = 1.0, no_repeat_ngram_size: Any = 0,
    min_new_tokens: Any = 0, eos: Sequence[Sequence[int]] = ((),), suppress: Sequence[Sequence[int]] = ((),),
) -> BeamRequest:  # fmt: skip
    batch = len(prompts)

    def rows(values: Any, dtype: tf.DType = tf.int32) -> tf.Tensor:
        return tf.constant(np.broadcast_to(values, batch), dtype)

    def each(values: Sequence[Sequence[int]]) -> tf.Tensor:
        return lists(values if len(values) == batch else [values[0]] * batch, -1)

    return BeamRequest(
        lists(prompts, 7),
        tf.constant([len(prompt) for prompt in prompts]),
        rows(max_new_tokens),
        tf.constant(num_beams),
        tf.constant(num_return_sequences),
        rows(length_penalty, tf.float32),
        rows(early_stopping),
        Constraints(
            rows(repetition_penalty, tf.float32), rows(no_repeat_ngram_size), rows(min_new_tokens),
            each(eos), each(suppress),
        ),
    )  # fmt: skip


Found = list[tuple[list[int], float]]
"""Sequences without padding, and their scores."""


def found(beams: Beams) -> Found:
    rows = zip(beams.sequences.numpy(), beams.lengths.numpy(), beams.scores.numpy(), strict=True)
    result = []
    for sequence, length, score in rows:
        assert (sequence[length:] == PAD).all()
        result.append((sequence[:length].tolist(), float(score)))
    return result


def whole(prompt: Sequence[int]) -> dict[str, torch.Tensor]:
    """The inputs of transformers; without the mask it would take padding ids in a prompt for padding."""
    return {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}


def expected(
    model: transformers.GPT2LMHeadModel, prompt: Sequence[int], *, eos: Sequence[int] = (),
    suppress: Sequence[int] = (), max_new_tokens: int = 12, **options: Any,
) -> Found:  # fmt: skip
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(eos) or None,
        pad_token_id=PAD,
        suppress_tokens=list(suppress) or None,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    # With one beam transformers would be greedy, which is something else.
    config.get_generation_mode = lambda *_: GenerationMode.BEAM_SEARCH
    with torch.inference_mode():
        out = model.generate(**whole(prompt), generation_config=config)
    lengths = len(prompt) + (out.beam_indices >= 0).sum(dim=1)
    return [
        (sequence[:length].tolist(), float(score))
        for sequence, length, score in zip(out.sequences, lengths, out.sequences_scores, strict=True)
    ]


def assert_equal(ours: Found, theirs: Found, case: object) -> None:
    assert [sequence for sequence, _ in ours] == [sequence for sequence, _ in theirs], case
    # A length_penalty of -1 multiplies sums, and their rounding, by the length: hence also a relative bound.
    np.testing.assert_allclose(
        [score for _, score in ours], [score for _, score in theirs], rtol=1e-5, atol=1e-4, err_msg=str(case)
    )


def ends(pair: Pair, prompt: Sequence[int], number: int, rng: np.random.Generator) -> list[int]:
    """Tokens that likely continuations of the prompt have."""
    out = pair.theirs.generate(
        **whole(prompt), max_new_tokens=8, num_beams=4, num_return_sequences=4, do_sample=False, pad_token_id=PAD
    )
    tokens = np.unique(out[:, len(prompt) :].numpy())
    return rng.choice(tokens, min(number, len(tokens)), replace=False).tolist()


@pytest.mark.parametrize("num_beams", [1, 2, 4, 5])
@pytest.mark.parametrize("number_of_ends", [0, 1, 3])
def test_equals_transformers(pair: Pair, num_beams: int, number_of_ends: int) -> None:
    stopped = 0
    for i, (length_penalty, (theirs, ours)) in enumerate(
        itertools.product((-1.0, 0.0, 1.0, 2.0), EARLY_STOPPING.items())
    ):
        rng = pair.draw(1000 * num_beams + 100 * number_of_ends + i)
        prompt = rng.integers(0, 60, rng.integers(1, 12)).tolist()
        options: dict[str, Any] = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "num_return_sequences": int(rng.integers(1, num_beams + 1)),
            "max_new_tokens": int(rng.integers(1, 20)),
        }
        eos = ends(pair, prompt, number_of_ends, rng)
        result = found(pair.search(request([prompt], early_stopping=ours, eos=[eos], **options)))
        assert_equal(
            result, expected(pair.theirs, prompt, early_stopping=theirs, eos=eos, **options), (theirs, options)
        )
        stopped += sum(len(sequence) < len(prompt) + options["max_new_tokens"] for sequence, _ in result)
    assert (stopped > 0) == (number_of_ends > 0)


def test_more_ends_than_beams_equal_transformers(pair: Pair) -> None:
    """The most probable tokens all end a text: the beams must find others to go on with."""
    for seed in range(8):
        rng = pair.draw(300 + seed)
        prompt = rng.integers(0, 60, 5).tolist()
        with torch.inference_mode():
            eos = pair.theirs(torch.tensor([prompt])).logits[0, -1].topk(10).indices.tolist()
        options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0}
        result = found(pair.search(request([prompt], early_stopping=beam.NEVER, eos=[eos], **options)))
        assert_equal(result, expected(pair.theirs, prompt, early_stopping="never", eos=eos, **options), seed)


@pytest.mark.parametrize("early_stopping", EARLY_STOPPING)
@pytest.mark.parametrize("length_penalty", [-1.5, -0.7, 1.3, 2.5])
def test_when_a_row_stops_equals_transformers(pair: Pair, early_stopping: bool | str, length_penalty: float) -> None:
    """Enough ends that a row has all its results early, and goes on or not for better ones."""
    for seed in range(8):
        rng = pair.draw(400 + seed)
        prompt = rng.integers(0, 60, 3).tolist()
        eos = rng.integers(0, 60, 8).tolist()
        options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 24, "length_penalty": length_penalty}
        ours = found(
            pair.search(request([prompt], early_stopping=EARLY_STOPPING[early_stopping], eos=[eos], **options))
        )
        theirs = expected(pair.theirs, prompt, early_stopping=early_stopping, eos=eos, **options)
        assert_equal(ours, theirs, (seed, options))


def test_never_with_a_negative_penalty_by_hand() -> None:
    """Scores that get worse with the length: what a running beam may reach is its score now, not that at the limit.

    A model whose next token depends on the last one only, 0 the end of text: from 1 it is 2 (0.74) or 0 (0.02), from 2
    it is 3 (0.97) or 0 (0.02), from 3 it is 0 (0.998). After two turns both results are bad, [0] and [2, 0] with
    log(0.02) = -3.9 and 2 * log(0.74 * 0.02) = -8.4; the beam [2, 3] then has 2 * log(0.74 * 0.97) = -0.7, but were it
    28 tokens long, -9.3. [2, 3, 0] is what has to be found.
    """
    table = np.full((40, 40), 0.0, np.float32)
    for token, likely in ((1, {2: 0.74, 0: 0.02}), (2, {3: 0.97, 0: 0.02}), (3, {0: 0.998})):
        table[token] = (1 - sum(likely.values())) / (40 - len(likely))
        table[token, list(likely)] = list(likely.values())
    table[4:] = 1 / 40

    def step(tokens: tf.Tensor, start: tf.Tensor, count: tf.Tensor, cache: Any, capacity: tf.Tensor) -> Any:
        last = tf.gather(tokens, tf.maximum(count, 1) - 1, axis=1, batch_dims=1)
        return tf.math.log(tf.gather(table, last)), cache

    def allocate(batch: tf.Tensor, capacity: tf.Tensor) -> tf.Tensor:
        return tf.zeros([2, batch, 1])

    asked = request([[1]], num_beams=2, max_new_tokens=28, length_penalty=-1.0, early_stopping=beam.NEVER, eos=[[0]])
    ((sequence, score),) = found(beam_search(step, allocate, 64, asked, PAD))
    assert sequence == [1, 2, 3, 0]
    assert score == pytest.approx(3 * math.log(0.74 * 0.97 * 0.998), abs=1e-3)


def test_constraints_equal_transformers(pair: Pair) -> None:
    for seed in range(24):
        rng = pair.draw(seed)
        prompt = rng.integers(0, 60, rng.integers(1, 12)).tolist()
        eos = ends(pair, prompt, 2, rng)
        options: dict[str, Any] = {
            "num_beams": int(rng.integers(1, 6)),
            "repetition_penalty": float(rng.choice([0.8, 1.0, 1.3])),
            "no_repeat_ngram_size": int(rng.integers(0, 4)),
            "min_new_tokens": int(rng.integers(0, 8)),
            "suppress": rng.integers(0, 60, rng.integers(0, 20)).tolist(),
        }
        theirs = expected(pair.theirs, prompt, eos=eos, **options)
        options["suppress"] = [options["suppress"]]
        assert_equal(found(pair.search(request([prompt], eos=[eos], **options))), theirs, (seed, options))


def test_rows_of_a_batch_equal_transformers_on_each_alone(pair: Pair) -> None:
    """Prompts, numbers of tokens, penalties and ends of text of their own; a row without new tokens among them."""
    for seed in range(12):
        rng = pair.draw(100 + seed)
        num_beams = int(rng.integers(2, 6))
        prompts = [rng.integers(0, 60, rng.integers(1, 14)).tolist() for _ in range(6)]
        eos = [ends(pair, prompt, int(rng.integers(0, 4)), rng) for prompt in prompts]
        new = [0, *rng.integers(1, 18, 5).tolist()]
        penalty = rng.choice([-1.0, 0.0, 1.0, 2.0], 6).tolist()
        early = rng.choice(len(EARLY_STOPPING), 6).tolist()
        repetition = rng.choice([1.0, 1.2], 6).tolist()
        beams = pair.search(
            request(
                prompts, num_beams=num_beams, num_return_sequences=2, max_new_tokens=new, length_penalty=penalty,
                early_stopping=early, eos=eos, repetition_penalty=repetition,
            )
        )  # fmt: skip
        assert beams.sequences.shape == (12, max(map(len, prompts)) + max(new))
        rows = found(beams)
        assert rows[:2] == [(prompts[0], 0.0)] * 2
        for i in range(1, 6):
            alone = expected(
                pair.theirs, prompts[i], num_beams=num_beams, num_return_sequences=2, max_new_tokens=new[i],
                length_penalty=penalty[i], early_stopping=[False, True, "never"][early[i]], eos=eos[i],
                repetition_penalty=repetition[i],
            )  # fmt: skip
            assert_equal(rows[2 * i : 2 * i + 2], alone, (seed, i))


def test_a_full_model_and_calls_that_leave_nothing_behind(pair: Pair) -> None:
    """Prompt and continuation fill all positions; another request in between changes nothing."""
    rng = pair.draw(5)
    prompts = [rng.integers(0, 60, 20).tolist(), rng.integers(0, 60, 3).tolist()]
    full = request(prompts, num_beams=4, num_return_sequences=4, max_new_tokens=[12, 29])
    first = found(pair.search(full))
    pair.search(request([prompts[1]] * 3, num_beams=5, max_new_tokens=20))
    assert found(pair.search(full)) == first
    for i, new in enumerate((12, 29)):
        theirs = expected(pair.theirs, prompts[i], num_beams=4, num_return_sequences=4, max_new_tokens=new)
        assert_equal(first[4 * i : 4 * i + 4], theirs, i)


def test_nothing_to_generate(pair: Pair) -> None:
    beams = pair.search(request([[1, 2, 3], [4]], num_beams=3, num_return_sequences=2, max_new_tokens=0))
    assert found(beams) == [([1, 2, 3], 0.0)] * 2 + [([4], 0.0)] * 2


def test_one_beam_that_stops_at_its_first_end_is_greedy(pair: Pair) -> None:
    for seed in range(6):
        rng = pair.draw(200 + seed)
        prompt = rng.integers(0, 60, 4).tolist()
        eos = ends(pair, prompt, 1, rng)
        ours = found(pair.search(request([prompt], num_beams=1, early_stopping=beam.WHEN_FULL, eos=[eos])))
        greedy = pair.theirs.generate(
            **whole(prompt), max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=PAD
        )
        assert ours[0][0] == greedy[0].tolist()


def test_constraints_that_leave_nothing(pair: Pair) -> None:
    """One token is left of the vocabulary: finite results of full length, or what says that there is none."""
    pair.draw(7)
    beams = found(
        pair.search(
            request([[1, 2]], num_beams=3, num_return_sequences=3, max_new_tokens=4, suppress=[list(range(1, 60))])
        )
    )
    assert beams[0][0] == [1, 2, 0, 0, 0, 0]
    assert beams[1:] == [([1, 2], -1e9)] * 2


REORDER = cache.reorder_rows


def without_reordering(values: tf.Tensor, source: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Spreads the prompt over the beams, and then leaves every cache where it is."""
    number = tf.shape(source)[0]
    texts = tf.shape(values)[1] // rows
    return REORDER(values, tf.repeat(tf.range(texts), number // texts), rows)


def test_the_cache_must_follow_its_beam(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests above can fail: without the reordering a good part of the texts is wrong."""
    monkeypatch.setattr(cache, "reorder_rows", without_reordering)
    broken = Pair(CONFIG)
    wrong = 0
    for seed in range(8):
        prompt = broken.draw(seed).integers(0, 60, 5).tolist()
        ours = found(broken.search(request([prompt], num_beams=4)))
        wrong += ours[0][0] != expected(broken.theirs, prompt, num_beams=4)[0][0]
    assert wrong >= 4
