"""Samples are what the model itself would write, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.tiny_training import KINDS, FitOptions, Observers, tf, train, weights_hash
from tests.training.test_callbacks import Recorder
from tf_model.config import GPT2Config
from tf_model.gpt2 import GPT2
from training.model.lora import Adapters, LoraConfig
from training.run.samples import SampleOptions, TextSampler

SIZES = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
ADAPTED = ("attn.c_attn", "mlp.c_proj")
GREEDY = SampleOptions(new_tokens=8, temperature=0.0)


def numbers(ids: Any) -> str:
    return " ".join(map(str, ids))


def random_gpt2(seed: int = 1) -> GPT2:
    gpt2, random = GPT2(SIZES), np.random.default_rng(seed)
    for variable in gpt2.trainable_variables:
        variable.assign(random.normal(0, 0.3, variable.shape))
    return gpt2


def most_probable(gpt2: GPT2, prompt: list[int], count: int) -> str:
    """The continuation by the plain forward pass, without a cache."""
    ids = [*prompt]
    for _ in range(count):
        ids.append(int(np.argmax(gpt2(tf.constant([ids]))[0, -1])))
    return numbers(ids)


def test_samples_follow_the_weights_as_they_are_now() -> None:
    gpt2 = random_gpt2()
    sampler = TextSampler(gpt2, numbers, [[1, 2, 3], [4]], GREEDY)
    before = [most_probable(gpt2, prompt, 8) for prompt in ([1, 2, 3], [4])]
    assert sampler.draw() == before
    gpt2.wte.table.weight.assign(random_gpt2(seed=2).wte.table.weight)
    after = [most_probable(gpt2, prompt, 8) for prompt in ([1, 2, 3], [4])]
    assert after != before
    assert sampler.draw() == after


def test_adapters_count_as_if_they_were_merged() -> None:
    gpt2, random = random_gpt2(), np.random.default_rng(0)
    adapters = Adapters(gpt2, LoraConfig(r=2, targets=ADAPTED))
    for variable in adapters.trainable_variables:
        variable.assign(random.normal(0, 0.5, variable.shape))
    without = most_probable(gpt2, [1, 2, 3], 8)
    adapted = TextSampler(gpt2, numbers, [[1, 2, 3]], GREEDY, adapters).draw()
    for index, block in enumerate(gpt2.h):
        for target in ADAPTED:
            a, b = (matrix.numpy() for matrix in adapters.pair(index, target))
            part, name = target.split(".")
            kernel = getattr(getattr(block, part), name).kernel.weight
            kernel.assign(kernel.numpy() + adapters.scale * b @ a)
    assert adapted == [most_probable(gpt2, [1, 2, 3], 8)]
    assert adapted != [without]


@pytest.mark.parametrize("ends_lines", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_text_ends_at_its_end_or_goes_on_in_a_new_line(ends_lines: bool) -> None:
    gpt2 = random_gpt2()
    text = most_probable(gpt2, [1, 2, 3], 8).split()
    end = int(text[5])
    options = SampleOptions(new_tokens=8, temperature=0.0, eos_token_id=end, ends_lines=ends_lines)
    drawn = TextSampler(gpt2, numbers, [[1, 2, 3]], options).draw()[0]
    whole = text if ends_lines else text[: text.index(str(end), 3)]
    assert drawn.split() == [token for token in whole if token != str(end)]
    assert ("\n" in drawn) == ends_lines


@pytest.mark.slow
def test_training_with_samples_is_training_without_them_bit_for_bit(tmp_path: Path) -> None:
    class Shown(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.texts: list[tuple[int, list[str]]] = []

        def samples(self, step: int, texts: Any) -> None:
            self.texts.append((step, list(texts)))

    options = FitOptions(6, 3)
    without, _ = train(tmp_path / "without", options, **KINDS["gpt2"]())
    parts = KINDS["gpt2"]()
    sampler = TextSampler(parts["model"].gpt2, numbers, [[1, 2], [3]], SampleOptions(new_tokens=5))
    watcher = Shown()
    with_samples, _ = train(tmp_path / "run", options, observers=Observers(watcher, sampler), **parts)
    assert weights_hash(with_samples) == weights_hash(without)
    assert [step for step, _ in watcher.texts] == [0, 3, 6]
    for step, texts in watcher.texts:
        assert (tmp_path / "run" / "samples" / f"step-{step}.txt").read_text("utf-8") == "\n\n".join(texts) + "\n"
