"""Every command of the table of real models, run on a small random model that has the layout of the real one."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.__main__ import main
from convert.cli import PROGRAM
from convert.commands.options import checkpoint_spec
from convert.formats.tokenizer_files import tokenizer_for
from tests.conftest import ROOT
from tests.convert.formats import test_openai_tf1, test_uer
from tests.helpers import tf2_port
from tests.helpers.checkpoints import random_state, shards
from tests.helpers.huggingface import random_model
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config

PAGES = [(ROOT / "docs" / name).read_text("utf-8") for name in ("formats.md", "formats.zh-CN.md")]
CPM_TOKENIZER = ROOT / "demo" / "song-ci" / "tokenizer"
CPM_CONFIG = GPT2Config(6100, 16, 768, 1, 12)
BERT_SIZE, BPE_SIZE = 76, 262


def commands(page: str) -> list[list[str]]:
    """Return the words of the commands in the table, without the program's name."""
    found = re.findall(r"^\|.*\| `gpt2-savedmodel (.*)` \|$", page, re.MULTILINE)
    return [shlex.split(command) for command in found]


def cpm(layout: str, ranks: int) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        state = random_state(CPM_CONFIG, np.random.default_rng(1))
        (folder / layout).mkdir(parents=True)
        (folder / "latest_checkpointed_iteration.txt").write_text(layout)
        for rank, shard in enumerate(shards(state, ranks)):
            half = {name: tensor.half() for name, tensor in shard.items()}
            torch.save({"module": half}, folder / layout / f"mp_rank_{rank:02d}_model_states.pt")

    return make


def hugging_face(kind: str, size: int, **options: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        random_model(vocab_size=size, **options).save_pretrained(folder)
        for file in write_tokenizer(kind, folder / "tokenizer").iterdir() if kind else ():
            shutil.copy(file, folder)

    return make


def cpm_hub(folder: Path) -> None:
    """Make the copy on the hub: another name of the vocabulary, an end of text that is not in it."""
    hugging_face("", 6100, eos_token_id=50256, bos_token_id=50256)(folder)
    shutil.copy(CPM_TOKENIZER / "chinese_vocab.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CpmTokenizer"}))


def uer_file(path: Path) -> None:
    state = test_uer.random_state()
    rows = {"embedding.word.embedding.weight", "target.lm.output_layer.weight"}
    wide = {name: _widen(tensor) for name, tensor in state.items() if name not in rows}
    wide["embedding.word.embedding.weight"] = torch.randn(BERT_SIZE, 768)
    torch.save({**wide, "target.lm.output_layer.weight": wide["embedding.word.embedding.weight"]}, path)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    """Repeat a tensor of UER's small model until its hidden size, 48, is 768."""
    return tensor.repeat(*(16 if size % 48 == 0 else 1 for size in tensor.shape))


def gpt2_chinese(folder: Path) -> None:
    """Make what transformers 2.1 saved: masks, a config of its time, no tokenizer."""
    model = random_model(vocab_size=BERT_SIZE)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 24, 24) for layer in range(3)}
    folder.mkdir()
    torch.save({**model.state_dict(), **masks}, folder / "pytorch_model.bin")
    sizes = {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_ctx": 24, "n_positions": 24, "vocab_size": BERT_SIZE}
    (folder / "config.json").write_text(json.dumps({**sizes, "layer_norm_epsilon": 1e-5, "num_labels": 1}))


def openai(folder: Path) -> None:
    test_openai_tf1.save(folder, test_openai_tf1.random_tensors(), "model-1000")


def tf2(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf2_port, "V", 6100)
        patch.setattr(tf2_port, "H", 768)
        patch.setattr(tf2_port, "LINEAR", tuple((n, 24 * i, 24 * o) for n, i, o in tf2_port.LINEAR))
        tf2_port.save(tf2_port.keras_model(tf2_port.random_tensors()), folder)


def nanogpt(file: Path) -> None:
    model = random_model(vocab_size=96, activation_function="gelu")
    linear = re.compile(r".*\.c_(attn|proj|fc)\.weight")
    state = {f"_orig_mod.{n}": t.t().contiguous() if linear.fullmatch(n) else t for n, t in model.state_dict().items()}
    args = {"n_layer": 3, "n_head": 4, "n_embd": 48, "block_size": 24, "bias": True, "vocab_size": 96, "dropout": 0.0}
    torch.save({"model": state, "model_args": args, "iter_num": 5, "config": {}}, file)


MAKERS: dict[str, Callable[[Path], object]] = {
    "CPM-Generate": cpm("80000", 2),
    "CPM-distill": cpm("80000", 1),
    "results/lyric/epoch-11_step-2000": cpm("2000", 2),
    "TsinghuaAI-CPM-Generate": cpm_hub,
    "cpm-lm-tf2_v2": tf2,
    **{f"gpt2-chinese-{name}": hugging_face("bert", BERT_SIZE) for name in ("lyric", "couplet", "cluecorpussmall")},
    **{f"gpt2-chinese-{name}": hugging_face("bert", BERT_SIZE) for name in ("poem", "ancient")},
    "lyric_gpt2_model.bin-100000": uer_file,
    "Wenzhong-GPT2-110M": hugging_face("gpt2", BPE_SIZE),
    "Wenzhong2.0-GPT2-3.5B-chinese": hugging_face("gpt2", BPE_SIZE),
    "gpt2-base-chinese": hugging_face("bert", BERT_SIZE),
    "final_model": gpt2_chinese,
    "checkpoint/run1": openai,
    "ckpt.pt": nanogpt,
}
"""The path in the table -> what makes a small model of that layout there."""
QUICK = ("CPM-Generate", "final_model")
"""Seconds for every graph that is made: the others run with the slow tests."""


def test_both_languages_have_the_same_commands_and_each_has_a_model() -> None:
    english, chinese = map(commands, PAGES)
    assert english == chinese
    assert {words[words.index("--checkpoint") + 1] for words in english} == MAKERS.keys()


def checkpoint_of(words: list[str]) -> str:
    return words[words.index("--checkpoint") + 1]


def make_what_the_command_names(words: list[str]) -> list[str]:
    """Make the model and the vocabularies in the current folder; return the words with the small model's size."""
    path = Path(checkpoint_of(words))
    path.parent.mkdir(parents=True, exist_ok=True)
    MAKERS[str(path)](path)
    Path("CPM-1-Generate").mkdir()
    shutil.copytree(CPM_TOKENIZER, "CPM-1-Generate/bpe_3w_new")
    bert = (write_tokenizer("bert", Path("bert")) / "vocab.txt").read_text("utf-8")
    for vocabulary in (Path("UER-py/models/google_zh_vocab.txt"), Path("GPT2-Chinese/cache/vocab_small.txt")):
        vocabulary.parent.mkdir(parents=True)
        vocabulary.write_text(bert, "utf-8")
    return ["96" if word == "50257" else word for word in words]


@pytest.mark.parametrize("words", commands(PAGES[0]), ids=checkpoint_of)
def test_the_checkpoint_and_the_tokenizer_of_a_real_model_are_read(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = make_what_the_command_names(words)
    args = PROGRAM.command_parser(command).parse_args(options)
    checkpoint = checkpoint_spec(args).open()
    tokenizer, _ = tokenizer_for(args.tokenizer, checkpoint)
    assert (tokenizer is None) == (checkpoint_of(words) in ("ckpt.pt", "checkpoint/run1"))


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=[] if checkpoint_of(words) in QUICK else [pytest.mark.slow], id=checkpoint_of(words))
        for words in commands(PAGES[0])
    ],
)
def test_the_command_for_a_real_model_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*make_what_the_command_names(words), "--signatures", "logits"]) == 0, capsys.readouterr().err
    assert "load it with" in capsys.readouterr().out
