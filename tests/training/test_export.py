"""What is written after a training, in which format, and what a format refuses before it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

import training
from convert.formats.registry import open_checkpoint
from convert.output.manifest import check
from support.errors import UserError
from support.progress import no_progress
from tests.helpers.huggingface import IDS, random_model
from tests.helpers.small_vocabularies import write_tokenizer
from tokenization import load_tokenizer
from tokenization.special_tokens import SpecialTokens
from training.export import Destination
from training.model.new_model import NewModel, parse_sizes
from training.preparation import model_tokenizer, open_with_tokenizer
from training.settings import Settings
from training.texts.presets import PRESETS

SIZES = "layers=1,hidden=8,heads=1,positions=16"
FAST = {"sample": 0, "validation": 0, "batch_size": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tokenizer."""
    root = tmp_path_factory.mktemp("source")
    tokenizer = write_tokenizer("bpe", root / "tokenizer")
    random_model(vocab_size=262, n_positions=32).save_pretrained(root / "model")
    for file in tokenizer.iterdir():
        shutil.copy(file, root / "model" / file.name)
    (root / "text.txt").write_text("hello world\n\ngood day\n")
    return root


def load(folder: Path) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.slow
def test_no_steps_write_the_weights_of_the_source(source: Path, tmp_path: Path) -> None:
    training.finetune(source / "model", source / "text.txt", tmp_path / "out", steps=0, format="huggingface", **FAST)
    after = load(tmp_path / "out").state_dict()
    for name, tensor in load(source / "model").state_dict().items():
        assert torch.equal(tensor, after[name]), name
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["trained_steps"], record["steps"]) == (0, 0)
    assert check(tmp_path / "out").intact


@pytest.mark.slow
def test_merged_adapters_are_those_that_peft_loads(source: Path, tmp_path: Path) -> None:
    settings = {"lora": 2, "steps": 3, "learning_rate": 0.05, "format": "huggingface", **FAST}
    result = training.finetune(source / "model", source / "text.txt", tmp_path / "out", **settings)
    base, merged = load(source / "model"), load(tmp_path / "out")
    unadapted = logits(base)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "out.training" / "adapter")).eval()
    np.testing.assert_allclose(logits(merged), logits(adapted), rtol=0, atol=1e-4)
    assert np.abs(logits(merged) - unadapted).max() > 1e-2
    assert result.trainable == sum(weight.numel() for name, weight in adapted.named_parameters() if "lora_" in name)


REFUSED = {
    "a dtype": ({"dtype": "float64"}, "--dtype float64: expected one of float32"),
    "a dtype of a checkpoint": ({"format": "uer", "dtype": "int8"}, "dtype 'int8': expected one of float16"),
    "ranks": ({"format": "megatron", "tensor_parallel": 3}, "--tensor-parallel 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_said_before_the_training(case: str, source: Path, tmp_path: Path) -> None:
    settings, expected = REFUSED[case]
    checkpoint = open_checkpoint(source / "model")
    with pytest.raises(UserError) as error:
        Destination.of(tmp_path / "out", Settings.of(settings), overwrite=False).check(checkpoint, [])
    assert expected in str(error.value)


def test_a_disk_that_is_too_small_for_state_and_result_is_said_before_the_training(tmp_path: Path) -> None:
    destination = Destination.of(tmp_path / "a folder" / "out", Settings(), overwrite=False)
    destination.check_space(1000, 1000)
    with pytest.raises(UserError, match=r"out: 32000000\.07 GB are needed .* are free on this disk"):
        destination.check_space(10**15, 10**15)
    assert not (tmp_path / "a folder").exists()


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("savedmodel", "gpt2-savedmodel generate 'my songs' '春 天'"),
        ("huggingface", "gpt2-savedmodel to-tf --checkpoint 'my songs' --output 'my songs-savedmodel'"),
    ],
)
def test_the_command_that_goes_on_can_be_pasted(format: str, expected: str) -> None:
    destination = Destination.of(Path("my songs"), Settings(format=format), overwrite=False)
    assert destination.next_command("春 天") == expected


@pytest.mark.parametrize("prompt", ["民谣\n春天", "it's\n", "back\\slash\n\t", "plain"])
def test_a_prompt_of_several_lines_stands_on_one_line_and_the_shell_reads_it(prompt: str) -> None:
    command = Destination.of(Path("songs"), Settings(), overwrite=False).next_command(prompt)
    assert "\n" not in command
    script = f'gpt2-savedmodel() {{ printf %s "$3."; }}; {command}'
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    assert (
        subprocess.run(["bash", "-c", script], capture_output=True, check=True, env=env).stdout.decode() == f"{prompt}."
    )


def test_only_novels_are_asked_for_with_an_option() -> None:
    destination = Destination.of(Path("out"), Settings(), overwrite=False)
    for name, preset in PRESETS.items():
        expected = "gpt2-savedmodel generate out '春'" + (" --preset novel" if name == "novel" else "")
        assert destination.with_ends(preset, 7).next_command("春") == expected


@pytest.mark.parametrize(
    ("format", "preset", "expected"),
    [
        ("uer", "lyric", " --end-piece none --line-piece 7"),
        ("uer", "novel", " --end-piece none"),
        ("uer", "poem", ""),
        ("huggingface", "lyric", ""),
    ],
)
def test_a_format_that_cannot_say_how_texts_end_leaves_it_to_the_next_command(
    format: str, preset: str, expected: str
) -> None:
    destination = Destination.of(Path("out"), Settings(format=format), overwrite=False).with_ends(PRESETS[preset], 7)
    command = f"gpt2-savedmodel to-tf --checkpoint out --output out-savedmodel{expected}"
    assert destination.next_command("春") == command


def test_the_result_says_that_lines_end_where_texts_did_and_a_training_knows_it(tmp_path: Path) -> None:
    tokenizer = write_tokenizer("cpm", tmp_path / "tokenizer")
    checkpoint = NewModel(parse_sizes(SIZES, load_tokenizer(tokenizer).vocab_size), 0, SpecialTokens(7, 5), tokenizer)
    for preset in ("lyric", "novel", "poem"):
        settings = Settings(format="huggingface", preset=preset)
        destination = Destination.of(tmp_path / preset, settings, overwrite=False)
        destination.with_ends(PRESETS[preset], 7).write(checkpoint, no_progress)
        values = json.loads((tmp_path / preset / "generation_config.json").read_text())
        expected = {"lyric": (None, 7), "novel": (None, None), "poem": (7, None)}[preset]
        assert (values["eos_token_id"], values.get("line_token_id")) == expected
        _, read, tokens, _ = open_with_tokenizer(tmp_path / preset, Settings(tokenizer=tokenizer))
        assert model_tokenizer(read, tokens).eos_token_id == 7
