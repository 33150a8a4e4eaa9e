"""Texts far longer than the positions, with the demo checkpoint: every token against passes without a cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert.__main__ import main
from demo.__main__ import CHECKPOINT, HEADS
from tests.helpers.checkpoints import fill_transformers
from tests.helpers.loaded import slide, warpers
from tests.tf_model.test_sampling import splitmix
from tf_model.config import GPT2Config

POSITIONS = 256
LINE_FEED = 3
PROMPT = [1200, 431, 87, LINE_FEED]
RUN = """
import json, resource, sys, time
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
options = {key: tf.constant(value) for key, value in json.loads(sys.argv[3]).items()}
def run(prompt, number):
    started = time.perf_counter()
    result = model.generate(tf.constant([prompt], tf.int64), tf.constant([len(prompt)], tf.int64),
        max_new_tokens=tf.constant(number, tf.int64), eos_token_id=-1, **{
        key: tf.cast(value, tf.float32 if value.dtype.is_floating else tf.int64) for key, value in options.items()})
    return result, time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
prompt = json.loads(sys.argv[2])
run(prompt, 300)
figures = [run(prompt, 1000)[1:]]
result, *of_all = run(prompt, 10000)
text = result["sequences"][0].numpy()
figures += [of_all, run(text[:-1000].tolist(), 1000)[1:]]
np.savez(sys.argv[4], text=text, logprobs=result["logprobs"][0])
print(json.dumps(figures))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "model"
    arguments = ["--checkpoint", str(CHECKPOINT), "--tokenizer", str(CHECKPOINT / "tokenizer"), "--heads", str(HEADS)]
    assert main(["pytorch-to-tf", *arguments, "--output", str(folder), "--quiet"]) == 0
    return folder


def joined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """A tensor from its ranks' parts: the inverse of what ``shards`` of the tests' checkpoints does."""
    module, kind = name.split(".")[-2:]
    if module == "query_key_value":
        return torch.cat([chunk for third in zip(*(part.chunk(3) for part in parts), strict=True) for chunk in third])
    if module in ("word_embeddings", "dense_h_to_4h"):
        return torch.cat(parts)
    return torch.cat(parts, dim=1) if module in ("dense", "dense_4h_to_h") and kind == "weight" else parts[0]


@pytest.fixture(scope="module")
def theirs() -> transformers.GPT2LMHeadModel:
    """The checkpoint's weights, read by torch alone."""
    files = sorted(CHECKPOINT.glob("*/mp_rank_*_model_states.pt"))
    ranks = [torch.load(file, map_location="cpu", weights_only=True)["module"] for file in files]
    state = {name: joined(name, [rank[name] for rank in ranks]) for name in ranks[0]}
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")})
    vocabulary, width = state["word_embeddings.weight"].shape
    return fill_transformers(
        state, GPT2Config(vocab_size=vocabulary, n_positions=POSITIONS, n_embd=width, n_layer=layers, n_head=HEADS)
    )


def check_every_token(
    theirs: transformers.GPT2LMHeadModel, text: list[int], logprobs: np.ndarray, options: dict[str, Any]
) -> tuple[int, list[float]]:
    """Each token against the distribution that its own window gives: the draw by the published numbers, the logarithm.

    As the texts are equal token for token, each window of the reference is one of ours. All texts of one window are
    read in one pass, because its mask lets no token see a later one. A number nearer to the bound between two tokens
    than float32 can tell may fall on its other side. Returns how often the window has moved, and those near-ties.
    """
    size, start, moves, ties = len(PROMPT), 0, 0, []
    filtered = warpers(**{name: options[name] for name in ("temperature", "top_k", "top_p") if name in options})
    while size < len(text):
        moved = slide(text[:size], start, options.get("window_tokens") or POSITIONS // 2,
                      options.get("window_line_token_id", -1), POSITIONS)  # fmt: skip
        moves += moved != start
        start = moved
        end = min(start + POSITIONS + 1, len(text))  # the last token that this window gives, and one more
        with torch.inference_mode():
            logits = theirs(torch.tensor([text[start : end - 1]])).logits[0, size - start - 1 :]
        expected = torch.log_softmax(logits.double(), dim=-1)[torch.arange(end - size), text[size:end]]
        np.testing.assert_allclose(logprobs[size - len(PROMPT) : end - len(PROMPT)], expected, atol=1e-3)
        cumulated = torch.softmax(filtered(None, logits).double(), dim=-1).cumsum(dim=-1).numpy()
        for place, row in enumerate(cumulated, size):
            number = splitmix(options["seed"], place) * row[-1]
            drawn = int(np.searchsorted(row, number, side="right"))
            if drawn != text[place]:
                first, last = sorted((drawn, text[place]))
                ties.append(float(np.abs(row[first:last] - number).max()))
                assert ties[-1] < 2e-6, (place, drawn, text[place], ties[-1])
        size = end
    return moves, ties


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "top_p": 0.95, "seed": 1, "window_line_token_id": LINE_FEED},
        {"temperature": 1.0, "seed": 2},
        {"temperature": 1.0, "top_k": 5, "seed": 3, "window_tokens": 200},
    ],
    ids=str,
)
def test_10000_tokens_are_those_of_their_windows(
    model: Path, theirs: transformers.GPT2LMHeadModel, options: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In a process of its own, whose memory and time are no other test's."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(model), json.dumps(PROMPT), json.dumps(options), str(tmp_path / "text.npz")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (first, before), (whole, after), (last, _) = json.loads(result.stdout)
    found = np.load(tmp_path / "text.npz")
    text = found["text"].tolist()
    assert len(text) == len(PROMPT) + 10_000
    moves, ties = check_every_token(theirs, text, found["logprobs"], options)
    with capsys.disabled():
        print(
            f"\n{options}: {moves} windows; first 1,000 tokens {first:.2f} s, all 10,000 {whole:.2f} s, "
            f"1,000 after 9,000 {last:.2f} s; near-ties {[f'{tie:.1e}' for tie in ties]}; "
            f"memory {before / 2**20:.0f} MB after 1,000, {after / 2**20:.0f} MB after 10,000"
        )
    assert moves > 40
    assert len(ties) < 5
    assert max(last, whole / 10) < 2.5 * first
    assert after - before < 30 * 2**20
