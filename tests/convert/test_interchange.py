"""The Hugging Face folder written here, in other programs: the same greedy text in transformers and CTranslate2.

CTranslate2 is no dependency: ``pip install ctranslate2``, then ``make test-slow``. The last result is in
docs/formats.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
import torch
import transformers

from convert.__main__ import main
from tests.convert.formats.test_uer import random_state, save
from tests.helpers.huggingface import random_model
from tests.tokenization.test_tokenizer_json import bpe
from tokenization import load_tokenizer

NEW = 16
PROMPT = [5, 9, 60]


def greedy(model: transformers.GPT2LMHeadModel, prompt: list[int]) -> list[int]:
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0)
    return [int(i) for i in ids[0]]


def convert(*words: object) -> None:
    assert main([*map(str, words), "--quiet"]) == 0


def source_of(kind: str, folder: Path, demo: Path) -> list[object]:
    """A checkpoint of some ecosystem, as options of the command line; with the vocabularies that its users have."""
    if kind == "cpm":
        return ["--checkpoint", demo, "--heads", 4, "--tokenizer", demo / "tokenizer"]
    if kind == "uer":
        words = bert(folder / "words")
        return ["--checkpoint", save(folder / "theirs", random_state()), "--heads", 4, "--tokenizer", words]
    tokenizer = bpe(folder / "words")
    random_model(vocab_size=len(tokenizer)).save_pretrained(folder / "theirs")
    tokenizer.save_pretrained(folder / "theirs")
    return ["--checkpoint", folder / "theirs"]


def bert(folder: Path) -> Path:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(91))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), "utf-8")
    return folder


@pytest.mark.parametrize("source", ["huggingface", "uer", "cpm"])
def test_the_same_greedy_text_everywhere(source: str, demo: Path, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    convert("to-huggingface", *source_of(source, tmp_path, demo), "--output", tmp_path / "hf")
    prompt = PROMPT if source != "cpm" else load_tokenizer(tmp_path / "hf").encode("浣溪沙\n")
    expected = greedy(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval(), prompt)
    assert len(set(expected)) > 3

    convert("to-tf", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "tf")
    model = tf.saved_model.load(str(tmp_path / "tf"))
    ours = model.generate(tf.constant([prompt], tf.int64), tf.constant([len(prompt)], tf.int64), max_new_tokens=NEW,
                    temperature=0.0, eos_token_id=-1)  # fmt: skip
    assert ours["sequences"].numpy()[0].tolist() == expected

    converter = [sys.executable, "-m", "ctranslate2.converters.transformers", "--model", tmp_path / "hf"]
    subprocess.run([*converter, "--output_dir", tmp_path / "ct2"], check=True, capture_output=True)
    generator = ctranslate2.Generator(str(tmp_path / "ct2"))
    pieces = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").convert_ids_to_tokens(prompt)
    (result,) = generator.generate_batch(
        [pieces], max_length=len(prompt) + NEW, min_length=NEW, sampling_topk=1, end_token=[]
    )
    assert result.sequences_ids[0][: len(expected)] == expected  # it counts one more
