"""Models that are no GPT-2, and forms of a GPT-2 that cannot be read, by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from convert.formats.refusals.look import Look, Shapes, module_class, short_name
from convert.torch_format.pickle_values import Placeholder
from support.messages import list_names, short_repr

OTHER_MODELS: Mapping[str, tuple[str, ...]] = {
    "GPT-1 (openai-gpt, layer norms after each block)": (r"\bpositions_embed\b", r"\btokens_embed\b"),
    "Grover or gpt2-ml": (r"^newslm/",),
    "UER-py's BERT, or another one with segments": (r"^(module\.)?embedding\.seg(ment)?\b",),
    "UER-py's masked language models": (r"^(module\.)?target\.(mlm|nsp|sp|bert)\b",),
    "UER-py's encoder-decoders (T5, BART)": (r"^(module\.)?decoder\.transformer_decoder\.",),
    "RoBERTa": (r"^roberta\.",),
    "ALBERT": (r"\balbert_layer_groups\.",),
    "ELECTRA": (r"^(electra|discriminator|generator)\.embeddings",),
    "DistilBERT": (r"\blayer\.\d+\.attention\.q_lin\b",),
    "BERT": (r"\bencoder[./]layer[._]\d+[./]attention[./]self[./](query|key)\b",),
    "CPM-Ant, CPM-Bee or CPM-2": (r"\bself_att\.self_attention\.project_q\b",),
    "T5": (r"\bblock[._/]\d+[./]layer[._]\d+[./]SelfAttention[./]q\b",),
    "BART, CPT or Pegasus": (r"\bdecoder\.layers\.\d+\.encoder_attn\.",),
    "OPT": (r"\bdecoder\.layers\.\d+\.self_attn\.k_proj\b", r"\bdecoder\.embed_positions\b"),
    "a decoder of fairseq or metaseq": (r"\bdecoder\.layers\.\d+\.self_attn\.\w*_proj\b",),
    "Baichuan": (r"\.self_attn\.W_pack\b",),
    "Qwen2's kind": (r"\blayers\.\d+\.self_attn\.q_proj\.bias\b", r"\blayers\.\d+\.mlp\.gate_proj\b"),
    "LLaMA's kind (Mistral, Gemma ...)": (r"\blayers\.\d+\.self_attn\.\w*proj\b", r"\.mlp\.\w*proj\b"),
    "Phi": (r"\blayers\.\d+\.self_attn\.dense\b", r"\blayers\.\d+\.mlp\.fc1\b"),
    "LLaMA, in its authors' form": (r"\blayers\.\d+\.attention\.wq\b", r"\btok_embeddings\b"),
    "InternLM2": (r"\blayers\.\d+\.attention\.wqkv\b",),
    "GPT-NeoX or Pythia": (r"\blayers\.\d+\.attention\.query_key_value\b", r"\bembed_in\b"),
    "GPT-Neo": (r"\bh\.\d+\.attn\.attention\.q_proj\b",),
    "GPT-J": (r"\bh\.\d+\.attn\.q_proj\b", r"\bh\.\d+\.mlp\.fc_in\b"),
    "CodeGen": (r"\bh\.\d+\.attn\.qkv_proj\b",),
    "Bloom": (r"\bword_embeddings_layernorm\b", r"\bh\.\d+\.self_attention\.query_key_value\b"),
    "Falcon": (r"\bh\.\d+\.self_attention\.query_key_value\b",),
    "ChatGLM": (r"\bencoder\.layers\.\d+\.self_attention\.query_key_value\b", r"\boutput_layer\b"),
    "ChatGLM-6B": (r"\blayers\.\d+\.attention\.rotary_emb\b", r"\bword_embeddings\b"),
    "GLM": (r"\bblock_position_embeddings\b",),
    "Qwen (the first)": (r"\bh\.\d+\.attn\.c_attn\b", r"\bh\.\d+\.mlp\.w1\b"),
    "MPT": (r"\bblocks\.\d+\.attn\.Wqkv\b",),
    "RWKV": (r"\bblocks\.\d+\.(att|attention)\.time_(decay|maa|mix)",),
    "Mamba": (r"\blayers\.\d+\.mixer\.A_log\b",),
    "XLNet": (r"\blayer[._/]\d+[./]rel_attn[./]",),
    "CTRL": (r"\bh\.\d+\.multi_head_attention\.Wq\b",),
}
"""What a model is called -> patterns, each of which is found within a tensor's name; the first that fits counts."""

_QUANTIZED = (
    ("GPTQ or AWQ", r"\.(qweight|qzeros|g_idx)$"),
    ("bitsandbytes", r"\.(SCB|absmax|quant_map|weight_format|quant_state\.bitsandbytes__\w+)$"),
    ("PyTorch", r"\b_packed_params\b|\.zero_point$"),
)
_OPTIMIZER = frozenset(("optimizer", "optimizer_state_dict", "base_optimizer_state"))
_LORA = re.compile(r"\blora_(A|B|embedding_A|embedding_B|down|up)\b|\blora_magnitude_vector\b")


def describe_tensors(look: Look) -> str | None:
    """Say what tensors are that no format could use."""
    tensors = look.tensors
    if not tensors:
        return None
    if _is_zero3(tensors):
        return (
            "its tensors have the shape [0], as ZeRO-3 saves them: run zero_to_fp32.py of DeepSpeed's own folder "
            "('python zero_to_fp32.py . out') and give what it writes"
        )
    if all(_LORA.search(name) or "modules_to_save" in name for name in tensors):
        return "an adapter (LoRA) without its base model: give the base model, and the adapter's folder as --adapter"
    if any(re.search(r"\b_?flat_param(eter)?(_\d+)?$", name) for name in tensors):
        return "the flat parameters of one rank of FSDP: save it again with StateDictType.FULL_STATE_DICT"
    text = "\n".join(tensors)
    for program, pattern in _QUANTIZED:
        if re.search(pattern, text, re.MULTILINE):
            return f"weights that {program} has quantized: give the model as it was before"
    model = find_model(text)
    if model is not None:
        return f"the weights of another model than GPT-2, {model}: only GPT-2 can be converted"
    keys = [name.partition("/.ATTRIBUTES")[0] for name in tensors if name.endswith("/VARIABLE_VALUE")]
    if keys and not any(re.search(r"\battn/query/", key) for key in keys):  # of CPM-LM-TF2, which is read
        return (
            f"variables of another TensorFlow 2 program ({list_names(map(short_name, keys), 1)}): save the weights "
            "there as a Hugging Face folder (transformers: save_pretrained)"
        )
    return None


def find_model(names: str) -> str | None:
    """Return what a model is called that is no GPT-2, by the names of its tensors, one a line."""
    for model, patterns in OTHER_MODELS.items():
        if all(re.search(pattern, names, re.MULTILINE) for pattern in patterns):
            return model
    return None


def describe_names(look: Look) -> str | None:
    """Say that tensors have names that nobody knows."""
    if not look.tensors:
        return None
    where = f"{short_name(look.weights_files[0].name)}: " if look.is_dir and look.weights_files else ""
    names = list_names(map(short_name, look.tensors), 2)
    return (
        f"{where}its tensors ({names}) have no known GPT-2's names: if it is one, save its state dict by those of "
        "transformers' GPT2LMHeadModel"
    )


def _is_zero3(tensors: Shapes) -> bool:
    """Whether most tensors are empty; a tied head may be missing, and buffers are whole."""
    empty = sum(shape == (0,) for shape in tensors.values())
    return empty > 0 and 2 * empty > len(tensors)


def describe_model_type(look: Look) -> str | None:
    """Say that ``config.json`` next to the weights is of another model."""
    found = look.json("config.json").get("model_type")
    if not isinstance(found, str) or found == "gpt2":
        return None
    return f"the model_type in config.json is {short_repr(found[:40])}: only gpt2 can be converted"


def describe_object(look: Look) -> str | None:
    """Say what a file of ``torch.save`` holds that is no state dict."""
    value = look.value
    if value is None or look.tensors:
        return None
    if name := module_class(value):
        return (
            f"a whole model object ({name[:40]}, by torch.save(model)), which only its own program can load: there, "
            "torch.save(model.state_dict(), 'weights.pt'), and give that"
        )
    if isinstance(value, dict) and ({"state", "param_groups"} <= value.keys() or _OPTIMIZER & value.keys()):
        return "an optimizer's state, no weights: give the file of the weights, which has another name"
    if isinstance(value, dict) and {"base_lrs", "last_epoch"} & value.keys():
        return "the state of a learning rate's schedule, no weights: give the file of the weights"
    if isinstance(value, dict) and {"python", "numpy", "cpu"} <= value.keys():
        return "states of random numbers, no weights: give the file of the weights"
    if isinstance(value, Placeholder):
        is_options = value.name.endswith(("Arguments", "Config", "Namespace"))
        advice = "options of a training, no weights" if is_options else "an object, no weights"
        return f"{advice} ({value.name[:40]}): give the file of the weights"
    if isinstance(value, dict):
        return f"a dict without tensors ({list_names(value, 3)}): give the file of the weights"
    return f"holds {short_repr(value)} and no weights: a dataset? give the file of the weights"
