"""Folders that are no checkpoint that can be read, by the names in them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from convert.formats.refusals.look import Look, is_regular, short_name
from convert.formats.tf_variables import variable_names
from support.errors import CheckpointError
from support.messages import list_names

_GATHER = "run its zero_to_fp32.py ('python zero_to_fp32.py . out') and give what it writes"
_GATHER_ABOVE = "run zero_to_fp32.py of the folder above it ('python zero_to_fp32.py . out') and give what it writes"
_SHARD = re.compile(r"(.+)-\d+-of-(\d+)\.(safetensors|bin)")
_CPM_LM_TF2 = re.compile(r"\blayer\d+/attention/")
_ZERO3 = "a ZeRO-3 checkpoint of DeepSpeed, each rank with a part of every weight"
_PART = r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+.*\.pt"
_TOKENIZER_FILES = re.compile(
    r"tokenizer(_config)?\.json|vocab\.(txt|json|bpe)|merges\.txt|encoder\.json|special_tokens_map\.json|"
    r"added_tokens\.json|chat_template\.\w+|.+\.(model|vocab)|(generation_)?config\.json|README\.md|LICENSE|\.gitattributes"
)
_TEXTS = re.compile(r".+\.(txt|jsonl?|csv|tsv|md|arrow|parquet|npy|idx)", re.IGNORECASE)
_ADAPTER_FILE = re.compile(r"adapter_model\.(safetensors|bin)")
_PROMPT_KINDS = re.compile(r"(MULTITASK_)?(PROMPT|PREFIX)_TUNING|P_TUNING|ADAPTION_PROMPT|CPT")
"""Those of peft that add to the input and leave the weights alone."""
_OPTIMIZER_ONLY = "only the optimizer's parts of DeepSpeed: mp_rank_00_model_states.pt with the weights is missing"
_ARCHIVE = re.compile(r".+\.(zip|tar|tgz|tar\.(gz|bz2|xz|zst)|7z|rar|gz)")


def describe_adapter(look: Look) -> str | None:
    """Say what an adapter of peft's is that has no base model next to it."""
    is_adapter = look.has("adapter_config.json") if look.is_dir else _ADAPTER_FILE.fullmatch(look.path.name) is not None
    if not is_adapter or any(not _ADAPTER_FILE.fullmatch(file.name) for file in look.weights_files):
        return None
    values = look.json("adapter_config.json")
    base, kind = values.get("base_model_name_or_path"), values.get("peft_type", "LORA")
    of = f", {base[:60]}" if isinstance(base, str) and base.isprintable() and base else ""
    if kind == "LORA":
        where = "this folder" if look.is_dir else "this file's folder"
        return f"an adapter, without its base model{of}: give the base model, and {where} as --adapter"
    if isinstance(kind, str) and _PROMPT_KINDS.fullmatch(kind):
        return f"an adapter of peft's ({kind}), which changes no weights and cannot be merged: give the base model{of}"
    named = f" ({kind[:20]})" if isinstance(kind, str) and kind.isprintable() else ""
    return (
        f"an adapter of peft's{named}: load it with peft on its base model{of}, merge_and_unload(), save_pretrained()"
    )


def describe_flax(look: Look) -> str | None:
    """Say how to convert a folder of Flax."""
    if not look.matching(r"flax_model.*\.msgpack(\.index\.json)?") or look.weights_files:
        return None
    return (
        "weights of Flax: with transformers before 5, GPT2LMHeadModel.from_pretrained(DIR, from_flax=True)"
        ".save_pretrained(NEW), and give NEW"
    )


def describe_deepspeed(look: Look) -> str | None:
    """Say what a folder of DeepSpeed is whose files hold parts of the weights."""
    if look.matching(r"layer_\d+-model_\d+-model_states\.pt"):
        return (
            "a checkpoint of Megatron-DeepSpeed with a file for each layer: convert it by its "
            "tools/convert_checkpoint/deepspeed_to_transformers.py or deepspeed_to_megatron.py"
        )
    if look.has("zero") and (look.path / "zero").is_dir() and look.matching(r"(mp_rank_.*|latest_universal.*)"):
        return "a universal checkpoint of DeepSpeed (zero/): give the one that ds_to_universal.py made it from"
    parts = look.matching(_PART)
    if any("model_states" in name for name in parts):
        return f"{_ZERO3}: {_GATHER if look.has('zero_to_fp32.py') else _GATHER_ABOVE}"
    if parts and not look.matching(r"mp_rank_\d+.*"):
        return f"{_OPTIMIZER_ONLY}: get it, too"
    if look.has("zero_to_fp32.py"):
        steps = [look.path / name for name in look.matching(r"global_step\d+")]
        if any(_has_part_of_weights(step) for step in steps):
            return f"{_ZERO3}: {_GATHER}"
    return None


def _has_part_of_weights(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(re.fullmatch(_PART, name) and "model_states" in name for name in os.listdir(folder))
    return False


def describe_distributed(look: Look) -> str | None:
    """Say how to put a checkpoint of several processes together."""
    if look.has("common.pt") and (look.has("metadata.json") or look.matching(r".+\.distcp") or look.has(".metadata")):
        return (
            "a distributed checkpoint of Megatron-Core: load it in Megatron-LM with --ckpt-convert-format torch "
            "--ckpt-convert-save DIR, and give DIR"
        )
    if look.matching(r".+\.distcp"):
        return (
            "a distributed checkpoint of PyTorch: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            "DIR model.pt`, and give model.pt"
        )
    if look.matching(r"pytorch_model_fsdp_rank\d+\.bin|.+_rank\d+\.pt") and len(look.weights_files) > 1:
        return "parts of FSDP, one for each rank: save it again with StateDictType.FULL_STATE_DICT"
    if look.has("manifest.ocdbt") or look.matching(r"_CHECKPOINT_METADATA|_sharding|_METADATA"):
        return "a checkpoint of JAX (Orbax): restore it there, and save its weights as a Hugging Face folder"
    return None


def describe_saved_model(look: Look) -> str | None:
    """Say that a SavedModel is of another model; those of CPM-LM-TF2, which are read, have an error of their own."""
    if not look.has("saved_model.pb") and look.has("variables") and look.has("assets"):
        return "a SavedModel without its saved_model.pb: get the whole folder again"
    if not look.has("saved_model.pb") or (look.path / "assets" / "config.json").exists():
        return None
    prefix = look.path / "variables" / "variables"
    try:
        names = list(variable_names(prefix).values())
    except (CheckpointError, OSError):
        index = prefix.with_name("variables.index")
        if index.is_file() and index.stat().st_size > 48:
            return None  # damaged, and perhaps CPM-LM-TF2's
        names = []
    if any(_CPM_LM_TF2.search(name) for name in names):
        return None
    found = f" ({list_names(map(short_name, names), 2)})" if names else ""
    return f"a SavedModel that this program did not write{found}: give the checkpoint that it was made from"


def describe_shards(look: Look) -> str | None:
    """Say that the index of a model in several files is missing."""
    if look.is_dir:
        shards = [match for name in look.names if (match := _SHARD.fullmatch(name))]
    else:
        shards = [match] if (match := _SHARD.fullmatch(look.path.name)) else []
    if not shards or int(shards[0][2]) < 2:
        return None
    index = f"{shards[0][1]}.{shards[0][3]}.index.json"
    if is_regular(look.folder / index):
        return None
    count = f"{len(shards)} of {int(shards[0][2])} files" if look.is_dir else f"one of {int(shards[0][2])} files"
    return f"{short_name(index)}: is missing next to {count} of a model: get all of its files"


def describe_other_programs(look: Look) -> str | None:
    """Say what a folder of another program is."""
    if look.has("keras_metadata.pb") or look.matching(r".+\.keras"):
        return "a model of Keras: load it there and save it as a Hugging Face folder (save_pretrained)"
    if look.weights_files:
        return None
    kinds = (
        (r".+\.gguf", "a GGUF file of llama.cpp: give the Hugging Face folder that it was made from"),
        (r".+\.onnx", "an ONNX model: give the Hugging Face folder that it was made from"),
        (r".+\.tflite", "a TensorFlow Lite model: give the checkpoint that it was made from"),
        (r".+\.pdparams", "weights of PaddlePaddle: PaddleNLP converts them to a PyTorch state dict"),
        (r".+\.(incomplete|part|partial|crdownload|aria2)", "an unfinished download: download it again"),
    )
    for pattern, text in kinds:
        if found := look.matching(pattern):
            return f"{list_names(found, 1)}: {text}"
    if data := look.matching(r".+\.data-\d{5}-of-\d{5}"):
        prefix = data[0].rpartition(".data-")[0]
        return f"a part of a checkpoint of TensorFlow: {list_names([prefix])}.index is missing: get all files of it"
    return None


def describe_archive(look: Look) -> str | None:
    """Say that a folder has nothing but an archive."""
    archives = [name for name in look.names if _ARCHIVE.fullmatch(name)]
    if not archives or look.weights_files:
        return None
    return f"no weights, but an archive, {list_names(archives, 1)}: unpack it, and give the folder that comes out"


def describe_lack(look: Look) -> str | None:
    """Say what a folder has instead of weights."""
    if not look.is_dir or look.weights_files:
        return None
    names = [name for name in look.names if not name.startswith(".") or _TOKENIZER_FILES.fullmatch(name)]
    if not look.names:
        return "an empty folder: give the folder with the weights"
    if not names:
        return f"no weights in it, only {list_names(look.names)}: git lfs pull or git checkout may be missing"
    if names and all(_TOKENIZER_FILES.fullmatch(name) for name in names):
        what = "a tokenizer" if any("config" not in name for name in names) else "a configuration"
        return f"only {what} ({list_names(names)}): get the weights, too: model.safetensors or pytorch_model.bin"
    if look.matching(r"optimizer\.(pt|bin)|training_args\.bin|.*optim_states\.pt|scheduler\.pt|trainer_state\.json"):
        return f"what a training continues with ({list_names(names)}), without the weights: get model.safetensors, too"
    if look.matching(r".+\.tfevents\..+"):
        return "events for TensorBoard: give the folder of the weights"
    if look.matching(r".+\.py"):
        return "a program's source code without weights: download the weights, and give their folder"
    if look.has("dataset_info.json") or look.has("dataset_dict.json") or all(_TEXTS.fullmatch(name) for name in names):
        return f"data, no weights ({list_names(names)}): give the folder with the weights"
    return None


def describe_blobs(look: Look) -> str | None:
    """Say which folder of the hub's cache is meant where its ``blobs`` or ``refs`` are given."""
    if look.is_dir and look.path.name in ("blobs", "refs") and is_regular(look.path.parent / "refs" / "main"):
        return "a part of the hub's cache: give the folder in snapshots/ next to it"
    return None
