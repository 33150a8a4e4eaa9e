"""What cannot be read as it is: one short line that says what it is, and a next step that works."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from convert.__main__ import main
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.helpers.assertions import assert_one_line_error

SIZES = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2}
LONGEST = 299

Make = Callable[[Path], object]


def refusal(path: Path) -> str:
    """Return the message about ``path``, without the path."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= LONGEST, message
    assert message.startswith(f"{path}"), message
    return message.removeprefix(f"{path}")


def gpt2(folder: Path) -> Path:
    """Write a small GPT-2 that opens."""
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2(tmp_path_factory.mktemp("refusals") / "model")


def touch(*names: str, content: bytes = b"x") -> Make:
    """Make a folder with files of these names."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return make


def saved(value: Any, name: str = "pytorch_model.bin", **others: Any) -> Make:
    """Make a folder with a file of ``torch.save``, and JSON files."""

    def make(folder: Path) -> None:
        torch.save(value, folder / name)
        for other, values in others.items():
            (folder / f"{other}.json").write_text(json.dumps(values))

    return make


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def tensors(names: Iterable[str], *shape: int) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape or (2,)) for name in names}


def adapter(**values: Any) -> Make:
    def make(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(values))
        names = [f"base_model.model.transformer.h.0.attn.c_attn.lora_{half}.weight" for half in "AB"]
        save_file(tensors(names, 2, 2), folder / "adapter_model.safetensors")

    return make


LORA = {"peft_type": "LORA", "base_model_name_or_path": "someone/gpt2-of-songs"}
EMPTY_STATE = {name: torch.empty(0) for name in ("transformer.wte.weight", "transformer.h.0.ln_1.weight", "x")}
FOLDERS: dict[str, tuple[Make, str]] = {
    "a LoRA adapter": (adapter(**LORA), "an adapter, without its base model, someone/gpt2-of-songs: give the base mo"),
    "a LoRA adapter that names no base": (adapter(peft_type="LORA"), "give the base model, and this folder as --adap"),
    "an adapter with no readable options": (both(adapter(), touch("adapter_config.json")), "this folder as --adapter"),
    "a LoHa adapter": (adapter(**{**LORA, "peft_type": "LOHA"}), "(LOHA): load it with peft on its base model, some"),
    "a prompt that was tuned": (adapter(**{**LORA, "peft_type": "PREFIX_TUNING"}), "changes no weights and cannot be"),
    "LoRA's matrices without options": (
        saved(tensors(("h.0.attn.c_attn.lora_A.weight", "h.0.attn.c_attn.lora_B.weight"))), "LoRA) without its base",
    ),
    "Flax": (touch("config.json", "flax_model.msgpack"), "with transformers before 5, GPT2LMHeadModel.from_"),
    "Flax in parts": (touch("flax_model-00001-of-00002.msgpack", "flax_model.msgpack.index.json"), "weights of Flax"),
    "ZeRO-3 of a Trainer": (saved(EMPTY_STATE, config=SIZES), "shape [0], as ZeRO-3 saves them: run zero_to_fp32.py"),
    "ZeRO-3 of DeepSpeed": (saved({"module": EMPTY_STATE}, "mp_rank_00_model_states.pt"), "as ZeRO-3 saves them"),
    "ZeRO-3 in parts": (
        touch("zero_to_fp32.py", "latest", "global_step7/zero_pp_rank_0_mp_rank_00_model_states.pt"),
        "a part of every weight: run its zero_to_fp32.py ('python zero_to_fp32.py . out') and give what it writes",
    ),
    "parts of ZeRO-3": (touch("zero_pp_rank_1_mp_rank_00_model_states.pt"), "run zero_to_fp32.py of the folder above"),
    "optimizers of ZeRO-2": (touch("zero_pp_rank_0_mp_rank_00_optim_states.pt"), "mp_rank_00_model_states.pt with the"),
    "optimizers of bf16": (touch("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), "only the optimizer's parts"),
    "Megatron-DeepSpeed": (
        touch("layer_01-model_00-model_states.pt", "layer_03-model_00-model_states.pt", "mp_rank_00_model_states.pt"),
        "a file for each layer: convert it by its tools/convert_checkpoint/deepspeed_to_transformers.py",
    ),
    "a universal checkpoint": (touch("zero/word.weight/fp32.pt", "mp_rank_00_model_states.pt"), "ds_to_universal.py"),
    "Megatron-Core": (touch("common.pt", "metadata.json", "__0_0.distcp"), "--ckpt-convert-format torch"),
    "Megatron-Core with zarr": (touch("common.pt", "metadata.json", "decoder.weight/0.0"), "--ckpt-convert-save DIR"),
    "PyTorch's distributed checkpoint": (touch(".metadata", "__0_0.distcp"), "format_utils dcp_to_torch DIR model.pt"),
    "FSDP's flat parameters": (saved(tensors(("_fsdp_wrapped_module._flat_param",))), "FULL_STATE_DICT"),
    "ranks of FSDP": (touch("pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin"), "one for each rank"),
    "Orbax": (touch("_CHECKPOINT_METADATA", "manifest.ocdbt"), "a checkpoint of JAX (Orbax)"),
    "a GGUF file": (touch("song.gguf"), "song.gguf: a GGUF file of llama.cpp: give the Hugging Face folder"),
    "an ONNX model": (touch("config.json", "model.onnx"), "model.onnx: an ONNX model"),
    "PaddlePaddle": (touch("model_state.pdparams", "model_config.json"), "PaddleNLP converts them"),
    "an unfinished download": (touch("config.json", "model.safetensors.incomplete"), "an unfinished download"),
    "a TensorFlow checkpoint without index": (touch("model-7.data-00000-of-00001", "model-7.meta"), "model-7.index"),
    "a SavedModel of another program": (touch("saved_model.pb", "variables/variables.index"), "did not write: give"),
    "shards without their index": (
        touch("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "model.safetensors.index.json: is missing next to 2 of 3 files of a model: get all of its files",
    ),
    "old shards without their index": (touch("pytorch_model-00001-of-00002.bin"), "model.bin.index.json: is miss"),
    "tensors by names of their own": (saved(tensors(("tok_emb.weight", "blocks.0.attn.key.weight"))), "GPT2LMHead"),
    "an adapter below": (lambda folder: ((folder / "checkpoint-9").mkdir(), adapter(**LORA)(folder / "checkpoint-9")),
        "checkpoint-9 in it is an adapter: give its base model, and it as --adapter"),
    "ZeRO-3 in safetensors": (lambda folder: save_file(EMPTY_STATE, folder / "model.safetensors"), "as ZeRO-3 saves"),
    "an archive": (touch("README.md", "gpt2.tar.gz"), "an archive, gpt2.tar.gz: unpack it, and give the folder"),
    "a Git LFS pointer": (
        touch("pytorch_model.bin", content=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "pytorch_model.bin is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    ),
    "a web page": (touch("model.safetensors", content=b"<!DOCTYPE html><html>"), "safetensors is a web page, not the"),
    "a hub's error": (touch("pytorch_model.bin", content=b"Entry not found"), "a hub's error, not the file itself"),
    "a hub's error as JSON": (touch("model.safetensors", content=b'{"error":"Repository not found"}'), "hf auth login"),
    "an empty file": (touch("model.safetensors", content=b""), "model.safetensors is an empty file: download or copy"),
    "a tokenizer": (touch("tokenizer.json", "vocab.txt", "config.json"), "only a tokenizer ("),
    "CPM's tokenizer": (touch("chinese_vocab.model"), "only a tokenizer (chinese_vocab.model): get the weights, too"),
    "a configuration": (touch("config.json", "generation_config.json"), "only a configuration ("),
    "what a training continues with": (touch("optimizer.pt", "training_args.bin"), "model.safetensors, too"),
    "events": (touch("events.out.tfevents.16000.host"), "events for TensorBoard"),
    "a program": (touch("train.py", "README.md", "requirements.txt"), "a program's source code without weights"),
    "texts": (touch("train.txt", "dev.txt"), "data, no weights (dev.txt, train.txt)"),
    "a dataset of the hub": (touch("dataset_info.json", "state.json", "data-00000.arrow"), "data, no weights"),
    "a clone without files": (touch(".git/HEAD"), "only .git: git lfs pull or git checkout may be missing"),
    "an empty folder": (touch(), "an empty folder: give the folder with the weights"),
    "another model by its config.json": (both(touch("weights.xyz"), lambda f: (f / "config.json").write_text(
        '{"model_type": "whisper"}')), "the model_type in config.json is 'whisper': only gpt2"),
    "anything else": (touch("a.xyz", "b.xyz"), "no checkpoint of a known format in it, only a.xyz, b.xyz: give the"),
    "names that are long": (touch(*(f"{letter * 120}.xyz" for letter in "abc")), "no checkpoint of a known format in"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_read_is_named_in_a_short_line(name: str, tmp_path: Path) -> None:
    make, words = FOLDERS[name]
    make(tmp_path)
    assert words in refusal(tmp_path)


def archive(kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("model/pytorch_model.bin", b"x")
    elif kind == "keras":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("metadata.json", "{}")
            file.writestr("model.weights.h5", b"x")
    elif kind == "npz":
        np.savez(out, wte=np.zeros(2))
    else:
        with tarfile.open(fileobj=out, mode=kind) as tar:
            info = tarfile.TarInfo("model/pytorch_model.bin")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    return out.getvalue()


FILES: dict[str, tuple[str, bytes, str]] = {
    "GGUF": ("m.gguf", b"GGUF\3\0\0\0", "a GGUF file of llama.cpp: give the Hugging Face folder"),
    "GGUF by another name": ("model.bin", b"GGUF\2\0\0\0", "a GGUF file"),
    "ggml": ("ggml-model-f16.bin", b"lmgg\1\0\0\0", "a GGML file of llama.cpp"),
    "ggjt": ("ggml-model-q4_0.bin", b"tjgg\3\0\0\0", "a GGML file"),
    "CTranslate2": ("model.bin", b"\6\0\0\0\x17\0TransformerDecoderSpec\0\7\0\0\0", "a CTranslate2 model"),
    "ONNX": ("decoder.bin", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\xff", "an ONNX model"),
    "ONNX by its name": ("model.onnx", b"\x08\x07\x3a\x80", "an ONNX model"),
    "TFLite": ("model.tflite", b"\x1c\0\0\0TFL3\0\0", "a TensorFlow Lite model"),
    "MindSpore": ("gpt2.ckpt", b"\x0a\x2b\x0a\x04wte1\x12\x23\x0a\x02\x04\x05\x12\x07Float32\x1a", "of MindSpore"),
    "PaddlePaddle": ("model_state.pdparams", pickle.dumps({"wte": np.zeros(2)}, 2), "PaddleNLP converts"),
    "Flax": ("flax_model.msgpack", b"\x81\xa1a\xc0", "from_flax=True"),
    "rust-bert": ("rust_model.ot", b"PK\3\4", "weights of rust-bert"),
    "zip": ("model.zip", archive("zip"), "a zip archive: unpack it first"),
    "tar": ("CPM.tar", archive("w"), "a tar archive: unpack it first, and give the folder that comes out (tar -xf)"),
    "tar.gz": ("module.tar.gz", archive("w:gz"), "a gzip archive: unpack it first"),
    "tar.xz": ("CPM.tar.xz", archive("w:xz"), "an archive: unpack it first"),
    "gzip": ("pytorch_model.bin.gz", gzip.compress(b"x"), "a gzip archive"),
    "7z": ("m.7z", b"7z\xbc\xaf\x27\x1c\0\4", "an archive"),
    "rar": ("m.rar", b"Rar!\x1a\7\1\0", "an archive"),
    "Keras": ("gpt2.keras", archive("keras"), "a model of Keras"),
    "npz": ("weights.npz", archive("npz"), "NumPy's arrays"),
    "npy": ("weights.npy", b"\x93NUMPY\1\0", "NumPy's arrays"),
    "a Git LFS pointer": ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
    "a web page": ("pytorch_model.bin", b"\n<html lang='zh'>", "a web page, not the file itself"),
    "a page with a declaration": ("CPM.pt", b"<!doctype html>", "a web page"),
    "an error of the hub": ("model.pt", b"Access to model x is restricted", "a hub's error"),
    "nothing": ("model.pt", b"", "an empty file: download or copy it again"),
    "a pickle": ("vocab.pkl", pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    "a text": ("songs.txt", "白日依山尽\n".encode(), "a text, no weights"),
    "a tokenizer": ("tokenizer.json", b"{}", "a tokenizer, no weights: give the folder with the weights"),
    "a vocabulary": ("vocab.txt", b"[PAD]\n", "a tokenizer, no weights"),
    "sentencepiece": ("spiece.model", b"\x0a\x0e\x0a", "a tokenizer, no weights"),
    "config.json": ("config.json", b'{"n_layer": 2}', "a description of a model, no weights: give its folder"),
    "events": ("events.out.tfevents.1.host", b"\x18\0\0\0", "events for TensorBoard"),
    "Megatron's data": ("songs_text_document.idx", b"MMIDIDX\0\0", "training data"),
    "a table": ("train.parquet", b"PAR1\x15", "a table of data"),
    "an unfinished download": ("model.safetensors.part", b"\x80", "an unfinished download"),
    "a frozen graph": ("frozen.pb", b"\x0a\x10", "a frozen graph"),
    "TensorFlow's values without an index": ("m.ckpt.data-00000-of-00001", b"\1\2\0", "m.ckpt.index is missing"),
    "HDF5": ("weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(9), ""),
    "anything else": ("model.xyz", bytes(range(1, 200)), "199 bytes that start with 01 02"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named_in_a_short_line(name: str, tmp_path: Path) -> None:
    file, content, words = FILES[name]
    (tmp_path / file).write_bytes(content)
    assert words in refusal(tmp_path / file)


def whole_model(folder: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), folder / "model.pt")


OBJECTS: dict[str, tuple[Make, str]] = {
    "a whole model": (whole_model, "a whole model object (Sequential, by torch.save(model))"),
    "a whole model in a dict": (saved({"epoch": 3, "net": torch.nn.Linear(2, 2)}, "model.pt"), "object (Linear, by"),
    "an optimizer": (saved(torch.optim.AdamW([torch.zeros(2)]).state_dict(), "model.pt"), "an optimizer's state, no w"),
    "an optimizer of DeepSpeed": (saved({"optimizer_state_dict": {}}, "model.pt"), "an optimizer's state"),
    "a schedule": (saved({"base_lrs": [1.0], "last_epoch": 3}, "model.pt"), "learning rate's schedule"),
    "random numbers": (saved({"python": (), "numpy": (), "cpu": torch.zeros(2, dtype=torch.uint8)}, "model.pt"), ""),
    "options": (saved(transformers.GenerationConfig(), "model.pt"), "options of a training, no weights (GenerationCo"),
    "a list of documents": (saved([[1, 2, 3], [4]], "model.pt"), "holds a list and no weights: a dataset?"),
    "a dict of texts": (saved({"title": "x", "text": "y"}, "model.pt"), "a dict without tensors (title, text)"),
    "one number": (saved(3, "model.pt"), "holds 3 and no weights"),
    "GPTQ": (saved(tensors(("model.h.0.attn.c_attn.qweight", "model.h.0.attn.c_attn.qzeros"))), "GPTQ or AWQ has quan"),
    "bitsandbytes": (saved(tensors(("h.0.mlp.c_fc.weight", "h.0.mlp.c_fc.SCB"))), "that bitsandbytes has quantized"),
    "PyTorch's own": (
        saved(tensors(("h.0.mlp.c_fc.scale", "h.0.mlp.c_fc.zero_point", "h.0.mlp.c_fc.weight"))), "PyTorch has quantiz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
def test_what_a_file_of_torch_save_holds_is_named(name: str, tmp_path: Path) -> None:
    make, words = OBJECTS[name]
    make(tmp_path)
    (file,) = tmp_path.iterdir()
    assert words in refusal(file)


LIBRARY_MODELS = {
    "openai-gpt": "GPT-1", "bert": "BERT", "roberta": "RoBERTa", "albert": "ALBERT", "electra": "ELECTRA",
    "distilbert": "DistilBERT", "t5": "T5", "bart": "BART", "opt": "OPT", "llama": "LLaMA", "qwen2": "Qwen2",
    "mistral": "LLaMA's kind", "gpt_neox": "GPT-NeoX", "gpt_neo": "GPT-Neo", "gptj": "GPT-J", "codegen": "CodeGen",
    "bloom": "Bloom", "falcon": "Falcon", "mpt": "MPT", "rwkv": "RWKV", "mamba": "Mamba", "xlnet": "XLNet",
    "ctrl": "CTRL", "cpmant": "CPM-Ant", "phi": "Phi",
}  # fmt: skip
"""transformers' name -> what the message calls it."""


@pytest.mark.parametrize("kind", LIBRARY_MODELS)
def test_other_models_are_told_by_the_names_that_transformers_gives_their_tensors(kind: str, tmp_path: Path) -> None:
    auto = getattr(transformers, "AutoModelForMaskedLM" if kind == "electra" else "AutoModelForCausalLM")
    auto = transformers.AutoModel if kind in ("bert", "albert", "distilbert", "t5", "bart") else auto
    with torch.device("meta"):
        names = auto.from_config(transformers.AutoConfig.for_model(kind)).state_dict()
    torch.save(tensors(names), tmp_path / "weights.pt")
    message = refusal(tmp_path / "weights.pt")
    assert f"the weights of another model than GPT-2, {LIBRARY_MODELS[kind]}" in message


OTHER_NAMES = {
    "Grover": "newslm/layer00/context_projection_layer/kernel",
    "ChatGLM-6B": "transformer.layers.0.attention.rotary_emb.inv_freq transformer.word_embeddings.weight",
    "ChatGLM": "transformer.encoder.layers.0.self_attention.query_key_value.bias transformer.output_layer.weight",
    "Qwen (the first)": "transformer.wte.weight transformer.h.0.attn.c_attn.weight transformer.h.0.mlp.w1.weight",
    "Baichuan": "model.layers.0.self_attn.W_pack.weight model.layers.0.mlp.gate_proj.weight",
    "LLaMA, in its authors' form": "tok_embeddings.weight layers.0.attention.wq.weight",
    "InternLM2": "model.tok_embeddings.weight model.layers.0.attention.wqkv.weight",
    "GLM": "word_embeddings.weight transformer.block_position_embeddings.weight",
    "UER-py's BERT": "embedding.word.embedding.weight embedding.seg.embedding.weight",
    "UER-py's masked": "embedding.word_embedding.weight encoder.layer_norm.gamma target.mlm.linear_1.weight",
}


@pytest.mark.parametrize("model", OTHER_NAMES)
def test_other_models_are_told_by_their_published_names(model: str, tmp_path: Path) -> None:
    save_file(tensors(OTHER_NAMES[model].split()), tmp_path / "model.safetensors")
    assert f"another model than GPT-2, {model}" in refusal(tmp_path)


def test_what_other_tensorflow_programs_save_is_told(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    module = tf.Module()
    module.kernel = tf.Variable(tf.zeros([2, 3]), name="dense/kernel")
    tf.saved_model.save(module, str(tmp_path / "module"))
    tf.train.Checkpoint(module).write(str(tmp_path / "checkpoint" / "weights"))
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for name, words in {
        "module": "a SavedModel that this program did not write (dense/kernel): give the checkpoint",
        "module/variables": "variables of another TensorFlow 2 program (kernel): save the weights there",
        "checkpoint": "variables of another TensorFlow 2 program (kernel)",
        "model.keras": "a model of Keras",
        "model.weights.h5": "an HDF5 file without transformers' GPT-2 in it",
    }.items():
        assert words in refusal(tmp_path / name)


def test_grover_is_told_in_a_checkpoint_of_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("newslm/embeddings/word_embed", [4, 2])
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(tmp_path / "model.ckpt-10"))
    assert "another model than GPT-2, Grover or gpt2-ml" in refusal(tmp_path)


def given_folder(message: str, path: Path) -> Path:
    """Return the folder that a message says to give."""
    word = re.findall(r"(?:such as |give the folder (?!of)|give (?!the))(\S+)", message)[-1]
    return Path(word) if Path(word).is_absolute() else path / word


BELOW: dict[str, tuple[tuple[str, ...], str]] = {
    "one checkpoint of a Trainer": (("checkpoint-500",), "checkpoint-500"),
    "the newest of several": (("checkpoint-500", "checkpoint-1000", "checkpoint-90"), "checkpoint-1000"),
    "epochs of GPT2-Chinese": (("model_epoch1", "model_epoch2", "model_epoch10"), "model_epoch10"),
    "one two levels below": (("runs/monday",), "runs/monday"),
    "one of Lightning": (("lightning_logs/version_0/checkpoints",), "lightning_logs/version_0/checkpoints"),
    "one in a hub's cache": (("snapshots/abc",), "snapshots/abc"),
    "the whole cache of a hub": (("models--uer--x/snapshots/0f",), "models--uer--x/snapshots/0f"),
    "a model with another name": (("模型",), "模型"),
}


@pytest.mark.parametrize("name", BELOW)
def test_the_checkpoint_below_is_named_and_opens(name: str, model: Path, tmp_path: Path) -> None:
    folders, chosen = BELOW[name]
    root = tmp_path / "r"
    for folder in folders:
        shutil.copytree(model, root / folder)
    (root / "runs").mkdir(exist_ok=True)
    message = refusal(root)
    given = given_folder(message, root)
    assert chosen in str(given), message
    assert open_checkpoint(given).config.n_embd == 16


def test_several_models_below_are_listed(model: Path, tmp_path: Path) -> None:
    for name in ("lyric", "poem", "couplet"):
        shutil.copytree(model, tmp_path / name)
    assert "but it has 3: couplet, lyric, poem: give one of them" in refusal(tmp_path)


def test_refs_main_chooses_the_snapshot(model: Path, tmp_path: Path) -> None:
    for name in ("aaa", "bbb", "ccc"):
        shutil.copytree(model, tmp_path / "snapshots" / name)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs/main").write_text("bbb\n")
    (tmp_path / "blobs").mkdir()
    assert "give the folder snapshots/bbb in it (which refs/main names)" in refusal(tmp_path)
    assert "give the folder bbb in it" in refusal(tmp_path / "snapshots")
    assert "give the folder in snapshots/" in refusal(tmp_path / "blobs")


def test_a_training_without_its_weights_is_not_named_as_a_checkpoint(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-20").mkdir()
    torch.save({"state": {}, "param_groups": []}, tmp_path / "checkpoint-20" / "optimizer.pt")
    assert "checkpoint-10" in refusal(tmp_path)
    assert "checkpoint-20" not in refusal(tmp_path)


NAMES = {
    "uer/gpt2-chinese-poem": "hf download uer/gpt2-chinese-poem --local-dir gpt2-chinese-poem",
    "IDEA-CCNL/Wenzhong2.0-GPT2-3.5B": "hf download IDEA-CCNL/Wenzhong2.0-GPT2-3.5B --local-dir Wenzhong2.0-GPT2-3.5B",
    "gpt2": "hf download openai-community/gpt2 --local-dir gpt2",
    "https://huggingface.co/ckiplab/gpt2-base-chinese/tree/main": "hf download ckiplab/gpt2-base-chinese --local-dir",
    "huggingface.co/uer/gpt2-distil": "hf download uer/gpt2-distil --local-dir gpt2-distil",
    "https://www.modelscope.cn/models/a/b": "modelscope download --model a/b --local_dir b",
    "https://example.com/gpt2.zip": "an address, not a path: download the files first",
    "s3://bucket/model": "an address, not a path",
    "nothing-here": "no such file or folder",
    "a/b/c": "no such file or folder",
    "~/model": "no such file or folder: ~ stands for the home folder only without quotes",
    "file:///home/model": "no such file or folder",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_hub_is_to_be_downloaded_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(Path(name))
    assert NAMES[name] in message
    assert ("download" in message) == (not NAMES[name].startswith("no such"))


def test_a_name_in_a_folder_that_is_there_is_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("models/song")) == ": no such file or folder"


def test_what_is_near_to_a_missing_path_is_named(tmp_path: Path) -> None:
    touch("gpt2-lyric/config.json", "model.ckpt-9.data-00000-of-00001", "model.ckpt-9.meta")(tmp_path)
    (tmp_path / "link").symlink_to("gone")
    assert refusal(tmp_path / "gpt2-lyrics") == ": no such file or folder; did you mean gpt2-lyric?"
    assert refusal(tmp_path / "gpt2-lyric ") == ": no such file or folder; did you mean gpt2-lyric?"
    assert "without model.ckpt-9.index: get all files of it" in refusal(tmp_path / "model.ckpt-9")
    assert "a link to gone, where nothing is" in refusal(tmp_path / "link")
    assert refusal(tmp_path / "other") == ": no such file or folder"


def test_the_distributed_checkpoint_opens_after_the_step_that_the_message_names(model: Path, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    state = transformers.GPT2LMHeadModel.from_pretrained(model).state_dict()
    dcp.save({"model": state}, checkpoint_id=str(tmp_path / "dist"), no_dist=True)
    assert "dcp_to_torch" in refusal(tmp_path / "dist")
    dcp_to_torch_save(tmp_path / "dist", tmp_path / "model.pt")
    assert open_checkpoint(tmp_path / "model.pt", heads=2).config.n_layer == 1


@pytest.mark.parametrize("command", ["inspect", "to-huggingface", "reshard", "to-tf"])
def test_every_command_says_it_in_one_line(
    command: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "run" / "checkpoint-7")
    words = [str(tmp_path / "run")]
    if command != "inspect":
        words = ["--checkpoint", *words, "--output", str(tmp_path / "new"), "--quiet"]
    words += ["--tensor-parallel", "1"] if command == "reshard" else []
    assert main([command, *words]) == 2
    assert_one_line_error(capfd, "checkpoint-7 in it is one: give ")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", ["cut off", "a tensor less", "another shape"])
def test_a_damaged_gpt2_keeps_the_message_about_its_damage(damage: str, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    file = folder / "model.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-5])
    else:
        state = transformers.GPT2LMHeadModel.from_pretrained(model).state_dict()
        state = {name: value.clone() for name, value in state.items() if name != "lm_head.weight"}
        name = "transformer.h.0.ln_2.weight"
        state[name] = torch.zeros(3)
        if damage == "a tensor less":
            del state[name]
        save_file(state, file)
    words = {"cut off": "cut off", "a tensor less": "1 missing tensor", "another shape": "expected the shape [16], f"}
    assert words[damage] in refusal(folder)


def test_an_adapter_next_to_its_base_model_is_no_reason_to_refuse_it(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "m")
    adapter(**LORA)(folder)
    assert open_checkpoint(folder).config.n_embd == 16
