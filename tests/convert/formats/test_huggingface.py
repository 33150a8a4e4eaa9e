"""Hugging Face folders, against transformers itself: what it saves is read, what is written it loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.helpers.assertions import assert_one_line
from tests.helpers.huggingface import IDS, VARIANTS, logits_of, random_model
from tests.helpers.light import main, run

QUICK = ("plain", "gelu", "untied", "all")
"""A graph takes seconds to make: the other variants are slow tests, and quick ones of ``verify``'s reference."""


@pytest.mark.parametrize("variant", [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS])
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    model = random_model(**VARIANTS[variant])
    model.save_pretrained(tmp_path / "theirs")
    run("to-tf", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "model")
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)).logits.numpy()
    assert expected.std() > 2
    np.testing.assert_allclose(logits_of(tmp_path / "model"), expected, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_copy_is_the_same_model(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every tensor bit for bit, and every choice of the configuration."""
    model = random_model(**VARIANTS[variant]).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    run("to-huggingface", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours")
    copy, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = model.state_dict()
    found = copy.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor), name
    for key in ("n_inner", "activation_function", "layer_norm_epsilon", "tie_word_embeddings",
                "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "n_head", "eos_token_id"):  # fmt: skip
        ours, theirs = getattr(copy.config, key), getattr(model.config, key)
        assert ours == theirs or (key == "n_inner" and ours == 192)


SAVED: dict[str, Callable[[transformers.GPT2LMHeadModel, Path], object]] = {
    "one file": lambda model, folder: model.save_pretrained(folder),
    "several files": lambda model, folder: model.save_pretrained(folder, max_shard_size="60KB"),
    "pytorch_model.bin": lambda model, folder: _save_torch(model, folder, model.state_dict()),
    "with old masks": lambda model, folder: _save_torch(
        model, folder, {**model.state_dict(), "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.uint8),
                        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
    ),
    "without a head": lambda model, folder: model.transformer.save_pretrained(folder),
}  # fmt: skip


def _save_torch(model: transformers.GPT2LMHeadModel, folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")


@pytest.mark.parametrize("saved", SAVED)
def test_every_kind_of_folder_is_read(saved: str, tmp_path: Path) -> None:
    model = random_model()
    SAVED[saved](model, tmp_path / "theirs")
    if saved == "several files":
        assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 3
    checkpoint = open_checkpoint(tmp_path / "theirs", format="huggingface")
    for name, tensor in model.transformer.state_dict().items():
        value = checkpoint.read(name, np.dtype(np.float32))
        linear = ".c_" in name and name.endswith("weight")
        assert np.array_equal(value.T if linear else value, tensor.numpy()), name


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**values, **changes}))

    return edit


def _edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return edit


def _edit_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(
        change((folder / "model.safetensors").read_bytes())
    )


def _header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


WTE, FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "only a configuration (config.json, generat"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: expected JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object, found a list"),
    "another architecture": (_edit_config(model_type="llama"), "model_type is 'llama': expected gpt2"),
    "cross attention": (_edit_config(add_cross_attention=True), "add_cross_attention is True: only false is supported"),
    "a scale that is no flag": (_edit_config(scale_attn_weights="no"), "scale_attn_weights is 'no': expected true"),
    "an activation that nobody knows": (_edit_config(activation_function="gleu"), "activation_function 'gleu': known"),
    "another vocabulary": (_edit_config(vocab_size=97), "vocab_size is 97, but the tensors have 96"),
    "more layers": (_edit_config(n_layer=4), "n_layer is 4, but the tensors have 3"),
    "another width": (_edit_config(n_inner=7), "n_inner is 7, but the tensors have 192"),
    "heads that do not fit": (_edit_config(n_head=5), "5 heads do not fit (hidden size 48"),
    "heads that are no number": (_edit_config(n_head="4"), "n_head is '4': expected a number"),
    "a tensor is missing": (_edit_tensors(lambda t: t.pop(FC)), "missing tensor: h.1.mlp.c_fc.weight"),
    "no embedding": (_edit_tensors(lambda t: t.pop(WTE)), "missing tensor: wte.weight"),
    "a tensor too many": (
        _edit_tensors(lambda t: t.update({"transformer.x": torch.ones(2)})), "1 unexpected tensor: x",
    ),
    "a wrong shape": (
        _edit_tensors(lambda t: t.update({FC: t[FC].T.contiguous()})),
        "h.1.mlp.c_fc.weight: expected the shape [48, 192], found [192, 48]",
    ),
    "whole numbers": (_edit_tensors(lambda t: t.update({FC: t[FC].long()})), "found int64"),
    "not a number": (_edit_tensors(lambda t: t[FC].fill_(float("nan"))), "9216 of 9216 values are NaN or infinite"),
    "a head that is not there": (_edit_config(tie_word_embeddings=False), "1 missing tensor: lm_head.weight"),
    "a link to no config": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("gone")), "cannot be read: No such",
    ),
    "a pipe": (lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")), "found something else"),
    "cut off": (_edit_bytes(lambda data: data[:-1]), "cut off"),
    "too long": (_edit_bytes(lambda data: data + b"x"), "bytes, found"),
    "empty": (_edit_bytes(lambda data: b""), "model.safetensors is an empty file: download or copy it again"),
    "a web page": (_edit_bytes(lambda data: b"<html>" * 9), "model.safetensors is a web page, not the file itself"),
    "a pointer": (
        _edit_bytes(lambda data: b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull",
    ),
    "a header that is no JSON": (_edit_bytes(lambda data: data[:8] + b"x" + data[9:]), "its header is no JSON"),
    "a header that is a list": (_edit_bytes(lambda data: b"\2\0\0\0\0\0\0\0[]"), "its header is no object"),
    "tensors that overlap": (
        _edit_bytes(lambda data: _header(data, lambda h: h[FC].update(data_offsets=[0, 36864]))), "begins at byte",
    ),
    "a shape that is no shape": (_edit_bytes(lambda d: _header(d, lambda h: h[FC].update(shape=[-1, 2]))), "cannot be"),
    "another size than its shape": (
        _edit_bytes(lambda d: _header(d, lambda h: h[FC].update(shape=[48, 193]))), "a shape or place that cannot be",
    ),
    "a type that nobody knows": (
        _edit_bytes(lambda d: _header(d, lambda h: h[FC].update(dtype="F8_E4M3"))), "the type 'F8_E4M3': expected one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = BROKEN[case]
    random_model().save_pretrained(tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    capsys.readouterr()
    for command in ("to-huggingface", "to-tf"):
        arguments = ["--checkpoint", tmp_path / "theirs", "--output", tmp_path / "new" / "ours", "--quiet"]
        assert main([command, *map(str, arguments)]) == 2
        assert_one_line(capsys.readouterr().err, words)
        assert not (tmp_path / "new").exists()


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: next(f.glob("model-00002*")).unlink(), "is missing, model.safetensors.index.json names it"),
        (lambda f: (f / INDEX).write_text("{}"), 'expected JSON with "weight_map"'),
        (
            lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../b"}}'),
            "expected the name of a file in the same folder",
        ),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": 5}}'), 'expected JSON with "weight_map"'),
        (
            lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace("transformer.wte.weight", "x")),
            "not in this file, though",
        ),
    ],
)
def test_a_broken_index_is_refused(spoil: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path, max_shard_size="60KB")
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=words.replace("[", r"\[")):
        open_checkpoint(tmp_path, format="huggingface")


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "theirs")
    run("to-huggingface", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours", "--dtype", "float16")
    found = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {np.dtype(np.float16)}
    with safetensors.safe_open(tmp_path / "ours" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert not (json.loads((tmp_path / "ours" / "config.json").read_text()).keys() & {"layer_norm", "n_ctx"})


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def test_the_file_that_is_named_is_read(tmp_path: Path) -> None:
    """A fine-tuning's ``epoch-3.safetensors`` beside the model that it began with; one of several is all of them."""
    models = {"model.safetensors": random_model(), "epoch-3.safetensors": random_model(3)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "model.safetensors").rename(tmp_path / name)
    (tmp_path / "saved" / "config.json").rename(tmp_path / "config.json")
    for name, model in models.items():
        value = open_checkpoint(tmp_path / name, format="huggingface").read("ln_f.bias", np.dtype(np.float32))
        assert np.array_equal(value, model.transformer.ln_f.bias.detach().numpy())
    random_model().save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    file = next((tmp_path / "parts").glob("model-00002-of-*"))
    assert len(open_checkpoint(file, format="huggingface").info.files) > 3


def test_an_index_says_which_of_two_copies_counts(tmp_path: Path) -> None:
    state = random_model().state_dict()
    _save_torch(random_model(), tmp_path / "x", {})
    torch.save({**state, WTE: state[WTE] + 1}, tmp_path / "x" / "a.bin")
    torch.save({WTE: state[WTE]}, tmp_path / "x" / "b.bin")
    (tmp_path / "x" / "pytorch_model.bin").unlink()
    weight_map = {name: "b.bin" if name in (WTE, "lm_head.weight") else "a.bin" for name in state}
    del weight_map["lm_head.weight"]
    for order in (sorted(weight_map), sorted(weight_map, reverse=True)):
        index = {"weight_map": {name: weight_map[name] for name in order}}
        (tmp_path / "x" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        value = open_checkpoint(tmp_path / "x", format="huggingface").read("wte.weight", np.dtype(np.float32))
        assert np.array_equal(value, state[WTE].numpy())


def test_without_a_config_it_is_taken_for_the_usual_gpt2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").unlink()
    words = ["to-huggingface", "--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert main([*words, "--heads", "4"]) == 0
    assert (
        "no config.json next to it: taken for a GPT-2 with the tanh gelu and an epsilon of 1e-5"
        in capsys.readouterr().err
    )


def test_our_own_words_mean_nothing_in_their_config(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    _edit_config(layer_norm="uer")(tmp_path)
    assert open_checkpoint(tmp_path, format="huggingface").config.layer_norm == "standard"


def test_how_texts_are_generated_is_kept(tmp_path: Path) -> None:
    """``generation_config.json`` counts more than ``config.json``, as in transformers; to a SavedModel and back."""
    model = random_model(pad_token_id=3, bos_token_id=2)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=12, max_length=20, eos_token_id=[9, 8], bos_token_id=2, pad_token_id=3
    )
    model.save_pretrained(tmp_path / "theirs")
    run("to-tf", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "tf")
    found = read_config(tmp_path / "tf" / "assets", "generation_config.json")
    expected = {"do_sample": True, "temperature": 0.7, "top_k": 12, "max_length": 20, "eos_token_id": [9, 8]}
    assert {key: found.get(key) for key in expected} == expected
    assert "max_new_tokens" not in found
    run("to-huggingface", "--checkpoint", tmp_path / "tf", "--output", tmp_path / "back")
    back = transformers.GenerationConfig.from_pretrained(tmp_path / "back")
    assert {key: getattr(back, key) for key in expected} == expected
    ids = {"bos_token_id": 2, "eos_token_id": 9, "pad_token_id": 3}
    for folder in (tmp_path / "tf" / "assets", tmp_path / "back"):
        assert {key: read_config(folder)[key] for key in ids} == ids


@pytest.mark.parametrize(("said", "end"), [(5, 5), ([6, 5], 6), (50256, None), (None, None), ("5", None)])
def test_no_end_of_text_is_made_up(said: Any, end: int | None, tmp_path: Path) -> None:
    """CPM's 7 is no end of another vocabulary, nor is 50256 where there are 96 tokens."""
    random_model().save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").unlink()
    _edit_config(eos_token_id=said, bos_token_id=None)(tmp_path / "theirs")
    run("to-huggingface", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours")
    assert [read_config(tmp_path / "ours")[key] for key in ("eos_token_id", "bos_token_id")] == [end, end]
    assert read_config(tmp_path / "ours")["pad_token_id"] == (0 if end is None else end)
    run("to-tf", "--checkpoint", tmp_path / "ours", "--output", tmp_path / "tf")
    first = end if not isinstance(said, list) else said
    assert read_config(tmp_path / "tf" / "assets", "generation_config.json")["eos_token_id"] == first
    card = (tmp_path / "tf" / "assets.extra" / "README.md").read_text()
    assert (f"Texts end at token {end} unless" if end is not None else "Texts end at no token unless") in card
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize("given", [False, True])
def test_a_given_tokenizers_end_of_text_counts_more_than_the_configs(given: bool, demo: Path, tmp_path: Path) -> None:
    """Of a folder with a tokenizer, what its config says; of a tokenizer that was asked for, the tokenizer's."""
    model = random_model(vocab_size=6000, eos_token_id=11, pad_token_id=12)
    model.save_pretrained(tmp_path / "theirs")
    shutil.copytree(demo / "tokenizer", tmp_path / "theirs", dirs_exist_ok=True)
    words = ["--tokenizer", demo / "tokenizer"] if given else []
    run("to-huggingface", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "ours", *words)
    assert read_config(tmp_path / "ours", "generation_config.json")["eos_token_id"] == (7 if given else 11)
    assert (tmp_path / "ours" / "chinese_vocab.model").is_file()


def test_sizes_are_found_by_their_other_names(tmp_path: Path) -> None:
    """A hidden size of 768 has 12 heads in CPM's models, but not if the config says 8."""
    random_model(n_embd=768, n_head=8, n_inner=16).save_pretrained(tmp_path)
    values = read_config(tmp_path)
    for name, other in {
        "n_head": "num_attention_heads",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
    }.items():
        values[other] = values.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert open_checkpoint(tmp_path, format="huggingface").config.n_head == 8
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 4, but the tensors have 3"):
        open_checkpoint(tmp_path, format="huggingface")


def test_an_adapter_is_named_in_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "adapter_model.safetensors").touch()
    assert main(["to-huggingface", "--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]) == 0
    assert "adapter_model.safetensors: an adapter, which is left out" in capsys.readouterr().err


def test_cpms_format_refuses_another_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(layer_norm_epsilon=1e-3).save_pretrained(tmp_path / "theirs")
    words = ["--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours"), "--tensor-parallel", "1"]
    assert main(["to-megatron", *words]) == 2
    assert "layer_norm_epsilon is 0.001, there it is always 1e-05" in capsys.readouterr().err


def test_two_formats_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model().save_pretrained(tmp_path / "theirs")
    run("to-openai", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "openai")
    shutil.copytree(tmp_path / "openai", tmp_path / "theirs", dirs_exist_ok=True)
    words = ["--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert main(["to-huggingface", *words]) == 2
    assert "looks like huggingface and openai-tf1: say which with --from" in capsys.readouterr().err
    assert main(["to-huggingface", *words, "--from", "openai-tf1"]) == 0


def test_a_generation_config_that_cannot_be_read_does_not_block_the_weights(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    checkpoint = open_checkpoint(tmp_path)
    assert any("generation_config.json: expected JSON" in note and "left out" in note for note in checkpoint.info.notes)
    assert checkpoint.tokens is not None
    assert checkpoint.tokens.eos_token_id == 1
