"""A vocabulary with rows that no text becomes: no signature of the SavedModel draws them, however high their logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import inference
from convert.formats.registry import open_checkpoint
from convert.savedmodel_conversion import to_savedmodel
from convert.verification.compare import verify
from tests.helpers.huggingface import random_model

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"白日依山尽黄河入海流欲穷千里目更上一层楼"]
BLANK = 9
PIECES[BLANK] = ""
"""A blank line of ``vocab.txt``: an id without a piece."""
ROWS = 96
NEW = 9


@dataclasses.dataclass(frozen=True)
class Padded:
    """A folder whose embedding has more rows than its vocabulary has pieces, and the SavedModel made of it."""

    source: Path
    saved_model: Path
    notes: tuple[str, ...]
    oracle: Any
    """transformers' model, whole."""

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Return transformers' most probable tokens among those that have pieces, one after the other."""
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(count):
                logits = self.oracle(torch.tensor([ids])).logits[0, -1].double()
                assert int(logits.argmax()) == BLANK, "what has no text has the highest logits"
                logits[BLANK] = -np.inf
                assert int(logits.argmax()) >= len(PIECES)
                ids.append(int(logits[: len(PIECES)].argmax()))
        return ids[len(prompt) :]


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Padded:
    root = tmp_path_factory.mktemp("padded")
    model = random_model(5, eos_token_id=3, bos_token_id=2)
    with torch.no_grad():  # the last rows are what every hidden state looks like most
        model.transformer.ln_f.bias.add_(3.0)
        model.transformer.wte.weight[len(PIECES) :] = 5 * model.transformer.ln_f.bias
        model.transformer.wte.weight[BLANK] = 6 * model.transformer.ln_f.bias
    model.save_pretrained(root / "source")
    (root / "source" / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES), "utf-8")
    result = to_savedmodel(root / "source", root / "saved_model")
    return Padded(root / "source", root / "saved_model", result.notes, model)


PROMPT = [2, 6, 7, 11]


def drawn_by(signatures: Any, name: str) -> list[int]:
    """Return the tokens that a signature draws greedily after ``PROMPT``."""
    ids, lengths = tf.constant([PROMPT], tf.int64), tf.constant([len(PROMPT)], tf.int64)
    prompt = {"input_ids": ids, "input_lengths": lengths}
    if name == "serving_default":
        length, zero = tf.constant(NEW, tf.int64), tf.constant(0.0)
        output = signatures.signatures[name](inp=ids, length=length, top_p=zero, temperature=zero + 1.0)
        return [int(token) for token in output["output_0"][0, len(PROMPT) :]]
    greedy = {"max_new_tokens": tf.constant(NEW, tf.int64), "eos_token_id": tf.constant(-1, tf.int64)}
    if name == "beam_search":
        output = signatures.beam_search(**prompt, num_beams=tf.constant(1, tf.int64), **greedy)
        return [int(token) for token in output["sequences"][0, 0, len(PROMPT) :]]
    greedy["temperature"] = tf.constant(0.0)
    if name == "decode":
        state = signatures.prefill(**prompt)
        logits = state.pop("logits")
        assert logits.shape[-1] == len(PIECES)
        output = signatures.decode(**prompt, **state, **greedy)
    else:
        output = signatures.generate(**prompt, **greedy)
    return [int(token) for token in output["sequences"][0, len(PROMPT) :]]


@pytest.fixture(scope="module")
def loaded(padded: Padded) -> Any:
    return tf.saved_model.load(str(padded.saved_model))


@pytest.mark.parametrize("name", ["serving_default", "generate", "decode", "beam_search"])
def test_no_signature_draws_padding(name: str, padded: Padded, loaded: Any) -> None:
    drawn = drawn_by(loaded, name)
    assert drawn == padded.greedy(PROMPT, NEW)


def test_probabilities_are_those_among_the_tokens_that_have_pieces(padded: Padded) -> None:
    model = tf.saved_model.load(str(padded.saved_model))
    ids = [*PROMPT, *padded.greedy(PROMPT, NEW)]
    found = model.score(tf.constant([ids], tf.int64), tf.constant([len(ids)], tf.int64))["logprobs"][0, 1:].numpy()
    with torch.inference_mode():
        logits = padded.oracle(torch.tensor([ids])).logits[0, :-1, : len(PIECES)].double()
        logits[:, BLANK] = -np.inf
    expected = torch.log_softmax(logits, -1).numpy()[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_texts_have_no_padding_in_them(padded: Padded) -> None:
    generator = inference.load(padded.saved_model)
    text = generator.generate("日依", max_new_tokens=NEW, temperature=0, eos_token_id=[])[0].text
    ids = [2, *generator.tokenizer.encode("日依")]
    assert text.endswith(generator.tokenizer.decode(padded.greedy(ids, NEW)))


def test_the_conversion_says_which_rows_are_left_out(padded: Padded) -> None:
    (note,) = [note for note in padded.notes if "no text becomes" in note]
    assert f"rows {len(PIECES)} to {ROWS - 1} are left out" in note
    assert f"--vocab-size {ROWS} keeps them" in note


def test_verify_compares_the_tokens_that_both_have(padded: Padded) -> None:
    report = verify(padded.source, padded.saved_model)
    report.check(padded.saved_model)
    (note,) = report.notes
    assert f"has {len(PIECES)} tokens, that of {padded.source} {ROWS}: the logits of the first {len(PIECES)}" in note
    again = verify(open_checkpoint(padded.source, vocab_size=len(PIECES)), padded.saved_model)
    again.check(padded.saved_model)
    assert again.notes == ()


def test_a_trimmed_savedmodel_is_a_source_with_the_same_rows(padded: Padded) -> None:
    found = open_checkpoint(padded.saved_model)
    assert found.config.vocab_size == len(PIECES)
    expected = padded.oracle.transformer.wte.weight[: len(PIECES)].detach().numpy()
    assert np.array_equal(found.read("wte.weight", np.dtype(np.float32)), expected)
