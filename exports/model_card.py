"""The model card: what a stranger needs to know who finds the SavedModel without the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, SAMPLING_OPTIONS, Option
from tf_model.config import GPT2Config

_CARD = """\
# GPT-2 as a TensorFlow SavedModel

{parameters:,} parameters as {dtype}: {n_layer} layers, hidden size {n_embd}, {n_head} heads, {vocab_size:,} tokens,
{n_positions:,} positions. Converted from {source} by {program}.

```python
import tensorflow as tf, tensorflow_hub as hub

model = hub.load("this folder")
tokens = model.signatures["serving_default"](
    inp=tf.constant([[...]], tf.int64), length=100, top_p=0.9, temperature=0.9)["output_0"]
```

It needs `pip install tensorflow tensorflow_hub "setuptools<82"`, and nothing of the program that wrote it.

| signature | inputs -> outputs |
|---|---|
| `serving_default` | `inp` int64 [B, S], `length`, `top_p`, `temperature` -> `output_0` int64 [B, S + length] |
| `generate` | `input_ids` int64 [B, S], `input_lengths` int64 [B], options -> `sequences`, `lengths`, `logprobs` |
| `beam_search` | `input_ids`, `input_lengths`, options of beams -> `sequences` [B, R, S + N], `lengths`, `scores` |
| `score` | `input_ids`, `input_lengths` -> `logprobs` float32 [B, S] |
| `logits` | `input_ids` -> `logits` float32 [B, S, V] |
| `prefill` | prompt -> `logits` and a state: `cache`, `cache_lengths`, `window_start` |
| `decode` | text so far and a state -> some tokens more and the next state; `donate_state` uses the state up |

The options of `generate`, one number or one per row: {sampling}; of `beam_search`: {beams}.
In Python `model.generate(input_ids, input_lengths, ...)` may leave out what has a default, and so may TF Serving's
requests. Temperature 0 is greedy, -1 as `seed` picks a new one each time. Texts end at {end} unless
`eos_token_id` says otherwise, -1 for no end. It runs in stock TensorFlow on a CPU, without XLA or custom ops.{note}

`assets/` holds {contents}. `assets.extra/manifest.json` lists the SHA-256 of every
input and output file; `python -m convert check` compares them.

## Is it the same model?

{parity}
"""

_INT8 = " int8 needs TensorFlow\nfor x86-64, whose other builds do not have the kernel and refuse to load it"
_VNNI = (
    f"{_INT8}, and a processor with VNNI\ninstructions (Intel since Cascade Lake, Ice Lake and Alder Lake, AMD since "
    "Zen 4): on others every call\nrefuses, and --dtype int8-avx2 is for them."
)
_COPY = "Each\nsignature that is called keeps a copy of the matrices in the kernel's own order."
_NOTES = {
    "float16": " float16 is meant for\nGPUs: most CPUs compute it several times more slowly than float32.",
    "int8": f"{_VNNI} {_COPY}",
    "int8-low-memory": _VNNI,
    "int8-avx2": f"{_INT8}.\nIt is made for processors without VNNI instructions, with weights of 7 bits; on others "
    f"--dtype int8 is\ncloser and faster. {_COPY}",
}


def model_card(
    config: GPT2Config,
    dtype: str,
    *,
    source: str,
    program: str,
    eos_token_id: int | None,
    pieces: Mapping[str, Any],
    has_tokenizer: bool,
    parity: Mapping[str, Any] | None,
) -> str:
    """Markdown.

    Args:
        config, dtype, source, program: what was written, of what, and by what.
        eos_token_id: the end of a text.
        pieces: those of ``exports.generation_config.PIECE_NAMES`` that ``generation_config.json`` has.
        has_tokenizer: whether there is one in ``assets/``.
        parity: the report of the comparison with the source, None when there was none.
    """
    return _CARD.format(
        **dataclasses.asdict(config),
        parameters=config.parameter_count,
        dtype=dtype,
        source=source,
        program=program,
        end="no token" if eos_token_id is None else f"token {eos_token_id}",
        sampling=_names({**COMMON_OPTIONS, **SAMPLING_OPTIONS}),
        beams=_names(BEAM_OPTIONS),
        note=_pieces(pieces) + _NOTES.get(dtype, ""),
        contents="sizes, generation defaults and the tokenizer" if has_tokenizer else "sizes and generation defaults",
        parity=_parity(parity),
    )


def _pieces(pieces: Mapping[str, Any]) -> str:
    """Say what the graph does not know: it takes and gives tokens."""
    start, line = pieces.get("start_token_ids"), pieces.get("line_token_id")
    begins = f" A text begins with the tokens {start}, which are part of `input_ids`." if start else ""
    return begins + ("" if line is None else f" A line ends with token {line}.")


def _names(options: Mapping[str, Option]) -> str:
    """With their defaults."""
    return ", ".join(
        f"`{name}`" + ("" if option.is_list else f" ({option.default})") for name, option in options.items()
    )


def _parity(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "It was not compared with its source when it was converted; `python -m convert verify` does that."
    rows = "\n".join(
        f"| {prompt['tokens']} | {prompt['max_abs_diff']:.3g} | {prompt['kl']:.3g} | {prompt['top1']:.2%} |"
        for prompt in report["prompts"]
    )
    return (
        "Logits of this model against the source, run in its own shards without merging them (PyTorch, float32):\n\n"
        "| tokens | largest difference | KL divergence (nats) | same top token |\n|---|---|---|---|\n" + rows
    )
