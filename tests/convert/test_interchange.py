"""The Hugging Face folder written here, in other programs: the same greedy text in transformers and CTranslate2.

CTranslate2 is no dependency: ``pip install ctranslate2``, then ``make test-slow``. The last result is in
docs/formats.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
import torch
import transformers

from convert.__main__ import main
from tests.convert.test_huggingface import SIZES, random_model
from tests.convert.test_uer import random_state, save

NEW = 16
PROMPT = [5, 9, 60]


def greedy(model: transformers.GPT2LMHeadModel) -> list[int]:
    ids = model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)
    return [int(i) for i in ids[0]]


def convert(*words: object) -> None:
    assert main([*map(str, words), "--quiet"]) == 0


def with_vocabulary(folder: Path) -> None:
    """A byte-level vocabulary of as many pieces as the model has, for a converter that wants one."""
    pieces = {f"t{i}": i for i in range(SIZES["vocab_size"] - 1)} | {"<|endoftext|>": SIZES["vocab_size"] - 1}
    (folder / "vocab.json").write_text(json.dumps(pieces))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')


@pytest.mark.parametrize("source", ["huggingface", "uer"])
def test_the_same_greedy_text_everywhere(source: str, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    if source == "uer":
        checkpoint, options = save(tmp_path / "theirs", random_state()), ["--heads", 4]
    else:
        random_model().save_pretrained(tmp_path / "theirs")
        checkpoint, options = tmp_path / "theirs", []
    convert("to-huggingface", "--checkpoint", checkpoint, "--output", tmp_path / "hf", *options)
    expected = greedy(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval())
    assert len(set(expected)) > 3

    convert("to-tf", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "tf")
    model = tf.saved_model.load(str(tmp_path / "tf"))
    ours = model.generate(tf.constant([PROMPT], tf.int64), tf.constant([len(PROMPT)], tf.int64), max_new_tokens=NEW,
                    temperature=0.0, eos_token_id=-1)  # fmt: skip
    assert ours["sequences"].numpy()[0].tolist() == expected

    with_vocabulary(tmp_path / "hf")
    converter = [sys.executable, "-m", "ctranslate2.converters.transformers", "--model", tmp_path / "hf"]
    subprocess.run([*converter, "--output_dir", tmp_path / "ct2"], check=True, capture_output=True)
    generator = ctranslate2.Generator(str(tmp_path / "ct2"))
    pieces = [f"t{i}" for i in PROMPT]
    (result,) = generator.generate_batch([pieces], max_length=len(PROMPT) + NEW, min_length=NEW, sampling_topk=1)
    assert result.sequences_ids[0][: len(expected)] == expected  # it counts one more
