"""LoRA adapters: what ``--adapter`` merges has the logits of peft's own model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from convert.cli import main
from convert.conversion import to_checkpoint
from convert.formats.registry import CheckpointSpec, open_checkpoint
from convert.savedmodel_conversion import to_savedmodel
from convert.verification.compare import verify
from support.errors import CheckpointError
from tests.helpers.huggingface import IDS, model_of, random_model

Config = dict[str, Any]
FOLDER = "adapter"


def write_base(folder: Path, **options: Any) -> Path:
    random_model(**options).save_pretrained(folder)
    return folder


def load(folder: Path) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(folder, dtype="auto").eval()


def write_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """Train an adapter, as far as its values are random and none is left as it was initialised."""
    torch.manual_seed(17)
    model = peft.get_peft_model(load(base), peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 3, **config}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return folder


def logits(model: torch.nn.Module) -> np.ndarray:
    """Compute in float64, so that what differs are the weights."""
    with torch.no_grad():
        return model.eval().double()(torch.tensor(IDS)).logits.numpy()


def peft_logits(base: Path, adapter: Path) -> np.ndarray:
    """Return what peft's own model, not merged, computes with the adapter."""
    return logits(peft.PeftModel.from_pretrained(load(base), adapter))


ADAPTERS: dict[str, Config] = {
    "attention only": {"target_modules": ["c_attn"], "lora_alpha": 5},
    "both c_proj": {"target_modules": ["c_proj"]},
    "one of the two c_proj": {"target_modules": ["mlp.c_proj", "attn.c_attn"]},
    "a pattern of modules": {"target_modules": r".*\.h\.[02]\.mlp\.c_\w+"},
    "what peft takes where nothing is named": {"target_modules": None},
    "a pattern of repetitions in repetitions": {"target_modules": r"(\w+\.)+(h\.)?([02]\.)?(\w+\.)*(c_attn|c_f{1}c)"},
    "patterns with numbers": {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {r"h\.[12]\.(\w+\.)+c_\w+": 2}},
    "a pattern of many parts": {"target_modules": r"(?:.*?h.*?(?:attn|mlp).*?\.c_[a-z]+\w*)|(?:lm_h\w+)"},
    "all linear layers": {"target_modules": "all-linear", "lora_alpha": 11},
    "some layers": {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [1, 2], "layers_pattern": "h"},
    "modules left out": {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["attn.c_proj"]},
    "rslora": {"target_modules": ["c_attn"], "use_rslora": True, "lora_alpha": 7},
    "ranks by name": {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 5, "h.1.attn.c_attn": 2}},
    "alphas by pattern": {
        "target_modules": ["c_attn", "c_proj"],
        "alpha_pattern": {r"^transformer\.h\.2\.attn\.c_attn": 12, r"h\.\d\.mlp\.c_proj": 3},
        "use_rslora": True,
    },
    "biases of the targets": {"target_modules": ["c_attn", "c_proj"], "bias": "lora_only"},
    "all biases": {"target_modules": ["c_fc"], "bias": "all"},
    "a bias of B": {"target_modules": ["c_attn", "c_proj"], "lora_bias": True},
    "dora": {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True},
    "layer norms saved": {"target_modules": ["c_attn"], "modules_to_save": ["ln_f", "ln_1"]},
    "matrices saved": {"target_modules": ["c_attn"], "modules_to_save": ["c_fc", "attn.c_proj"]},
    "embedding saved": {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    "head saved": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    "embedding and head saved": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]},
    "embedding": {"target_modules": ["c_attn", "wte"]},
    "positions": {"target_modules": ["wpe"], "lora_alpha": 20},
    "head": {"target_modules": ["c_attn", "lm_head"]},
    "embedding and head": {"target_modules": ["wte", "lm_head"], "use_rslora": True},
    "some tokens": {"target_modules": ["c_attn"], "trainable_token_indices": [95, 3, 7]},
    "gaussian start": {"target_modules": ["c_attn"], "init_lora_weights": "gaussian", "ensure_weight_tying": True},
    "orthogonal start": {"target_modules": ["c_attn"], "init_lora_weights": "orthogonal", "r": 4},
}
UNTIED = ("all linear layers", "embedding saved", "head saved", "embedding", "head", "some tokens")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    options: dict[str, Config] = {"tied": {}, "untied": {"tie_word_embeddings": False, "n_inner": 56}}
    return {name: write_base(folder / name, **found) for name, found in options.items()}


CASES = [*(("tied", case) for case in ADAPTERS), *(("untied", case) for case in UNTIED)]


@pytest.mark.parametrize(("base", "case"), CASES)
def test_a_merged_adapter_has_the_logits_of_pefts_model(
    tmp_path: Path, bases: dict[str, Path], case: str, base: str
) -> None:
    write_adapter(bases[base], tmp_path / FOLDER, **ADAPTERS[case])
    wanted = peft_logits(bases[base], tmp_path / FOLDER)
    found = logits(model_of(open_checkpoint(bases[base], adapter=tmp_path / FOLDER)))
    assert np.abs(found - wanted).max() < 1e-5
    assert np.abs(wanted - logits(load(bases[base]))).max() > 0.05


def rename_tensors(folder: Path, rename: Callable[[str], str], *, as_torch: bool = False) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = {rename(name): value for name, value in load_file(file).items()}
    if as_torch:
        file.unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, file)


SPELLINGS: dict[str, tuple[Callable[[str], str], bool]] = {
    "a pickle": (lambda name: name, True),
    "the adapter's name inside": (lambda name: name.replace("lora_A.", "lora_A.default."), False),
    "no base_model": (lambda name: name.removeprefix("base_model.model."), False),
    "a model without a head": (lambda name: name.replace("transformer.", ""), False),
    "saved modules by their wrapper": (lambda name: name.replace("ln_f.", "ln_f.modules_to_save.default."), False),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_an_adapter_is_read_by_every_spelling_of_its_names(tmp_path: Path, bases: dict[str, Path], case: str) -> None:
    write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn"], modules_to_save=["ln_f"])
    wanted = peft_logits(bases["tied"], tmp_path / FOLDER)
    rename, as_torch = SPELLINGS[case]
    rename_tensors(tmp_path / FOLDER, rename, as_torch=as_torch)
    found = logits(model_of(open_checkpoint(bases["tied"], adapter=tmp_path / FOLDER)))
    assert np.abs(found - wanted).max() < 1e-5


def test_the_order_of_the_bases_matrices_is_the_bases_business(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Whatever ``fan_in_fan_out`` says, A and B have one order; peft corrects the option, too."""
    adapter = write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn", "c_proj"])
    wanted = peft_logits(bases["tied"], adapter)
    for value in (False, True, None):
        edit_config(fan_in_fan_out=value, use_rslora=None, init_lora_weights=None, bias="none")(adapter)
        assert np.abs(logits(model_of(open_checkpoint(bases["tied"], adapter=adapter))) - wanted).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_rounded_once_as_peft_merges_them(tmp_path: Path, dtype: torch.dtype) -> None:
    random_model().to(dtype).save_pretrained(tmp_path / "base")
    write_adapter(tmp_path / "base", tmp_path / FOLDER, target_modules=["c_attn", "c_proj"], lora_alpha=9)
    merged = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / FOLDER).merge_and_unload()
    checkpoint = open_checkpoint(tmp_path / "base", adapter=tmp_path / FOLDER)
    name = "h.1.mlp.c_proj.weight"
    assert str(checkpoint.dtypes[name]) == str(dtype).removeprefix("torch.")
    wanted = merged.state_dict()[f"transformer.{name}"].t().float().numpy()
    unequal = checkpoint.read(name, np.dtype(np.float32)) != wanted
    assert unequal.mean() < 0.01  # the last bit of a sum may fall on the other side of a half


def write_bert_vocabulary(folder: Path, size: int) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(size - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")


def test_a_vocabulary_that_was_extended_while_training_is_taken_from_the_adapter(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    larger = load(tmp_path / "base")
    larger.resize_token_embeddings(103)
    larger.save_pretrained(tmp_path / "larger")
    write_adapter(tmp_path / "larger", tmp_path / FOLDER, target_modules=["c_attn"])
    wanted = peft_logits(tmp_path / "larger", tmp_path / FOLDER)
    tensors = load_file(tmp_path / FOLDER / "adapter_model.safetensors")
    embedding = larger.state_dict()["transformer.wte.weight"]
    for name in ("transformer.wte.weight", "lm_head.weight"):  # as peft saves them where the base is a smaller one
        tensors[f"base_model.model.{name}"] = embedding.clone()
    save_file(tensors, tmp_path / FOLDER / "adapter_model.safetensors")
    write_bert_vocabulary(tmp_path / "base", 96)
    write_bert_vocabulary(tmp_path / FOLDER, 103)
    checkpoint = open_checkpoint(tmp_path / "base", adapter=tmp_path / FOLDER)
    assert checkpoint.tokenizer == tmp_path / FOLDER
    assert checkpoint.config.vocab_size == 103
    assert checkpoint.config.tie_word_embeddings
    assert np.abs(logits(model_of(checkpoint)) - wanted).max() < 1e-5


TRIMMED: dict[str, tuple[int, Config]] = {  # rows of the adapter's model, its configuration
    "embedding saved": (90, {"target_modules": ["c_attn"], "modules_to_save": ["wte"]}),
    "head saved": (90, {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}),
    "embedding": (90, {"target_modules": ["wte", "c_attn"]}),
    "embedding and head": (90, {"target_modules": ["wte", "lm_head"]}),
    "blocks only": (90, {"target_modules": ["c_fc"]}),
    "trained on the padded base": (96, {"target_modules": ["wte", "c_attn"]}),
    "saved with the padded base": (96, {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]}),
    "a token": (96, {"target_modules": ["c_attn"], "trainable_token_indices": [4, 95]}),
}


@pytest.mark.parametrize("case", TRIMMED)
def test_a_padded_base_is_trimmed_to_the_rows_of_the_adapter(tmp_path: Path, case: str) -> None:
    """The model of 90 tokens, padded to 96 rows; the adapter was trained with either."""
    rows, config = TRIMMED[case]
    padded = write_base(tmp_path / "padded")
    model = load(padded)
    model.resize_token_embeddings(rows)
    model.save_pretrained(tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", tmp_path / FOLDER, **config)
    wanted = peft_logits(tmp_path / "base", adapter)[..., :90]
    if case in ("embedding saved", "head saved", "embedding"):
        with pytest.raises(CheckpointError, match=r"has 90 rows of tokens, the checkpoint 96: .*give --vocab-size 90"):
            open_checkpoint(padded, adapter=adapter)
    found = open_checkpoint(padded, adapter=adapter, vocab_size=90)
    assert found.config.vocab_size == 90
    assert np.abs(logits(model_of(found)) - wanted).max() < 1e-5


def test_a_module_that_the_adapter_should_have_is_a_note(tmp_path: Path, bases: dict[str, Path]) -> None:
    adapter = write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn", "mlp.c_proj"])
    assert len(open_checkpoint(bases["tied"], adapter=adapter).info.notes) == 1
    edit_tensors(lambda t: [t.pop(name) for name in (A, B)])(adapter)
    checkpoint = open_checkpoint(bases["tied"], adapter=adapter)
    assert "has nothing for h.1.attn.c_attn, which adapter_config.json names" in checkpoint.info.notes[1]
    wanted = peft_logits(bases["tied"], adapter)
    assert np.abs(logits(model_of(checkpoint)) - wanted).max() < 1e-5


@pytest.mark.parametrize("format", ["uer", "megatron", "savedmodel"])
def test_the_base_may_have_any_format(tmp_path: Path, bases: dict[str, Path], format: str) -> None:
    """UER-py's layer norms are taken for the usual ones, so that the base is the same model."""
    write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn", "c_fc"], modules_to_save=["ln_f"])
    wanted = peft_logits(bases["tied"], tmp_path / FOLDER)
    options = {"uer": {"uer_layer_norm": "standard"}, "megatron": {"tensor_parallel": 2}}
    base = open_checkpoint(bases["tied"])
    if format == "savedmodel":
        to_savedmodel(base, tmp_path / "base", signatures=("logits",))
    else:
        to_checkpoint(base, tmp_path / "base", format=format, options=options[format])
    layer_norm = "standard" if format == "uer" else "uer"
    merged = open_checkpoint(tmp_path / "base", heads=4, adapter=tmp_path / FOLDER, uer_layer_norm=layer_norm)
    assert merged.info.format == format
    epsilon = merged.config.layer_norm_epsilon
    assert np.abs(logits(model_of(merged)) - wanted).max() < (1e-5 if epsilon == 1e-5 else 1e-3)


def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")

    return edit


A, B = (f"base_model.model.transformer.h.1.attn.c_attn.lora_{part}.weight" for part in "AB")
WTE = {"base_model.model.transformer.wte.weight": torch.zeros(96, 48)}
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "adapter_config.json").unlink(), "no LoRA adapter: has no adapter_c"),
    "a folder of adapters": (
        lambda folder: (
            shutil.move(shutil.copytree(folder, folder / "new"), folder / "checkpoint-500")
            and (folder / "adapter_config.json").unlink()
        ),
        "checkpoint-500 in it is one: give that",
    ),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "neither is here"),
    "another kind": (edit_config(peft_type="IA3"), "peft_type is 'IA3': only LORA"),
    "pissa": (
        edit_config(init_lora_weights="pissa_niter_4"),
        "init_lora_weights is 'pissa_niter_4': it changes",
    ),
    "olora": (edit_config(init_lora_weights="olora"), "init_lora_weights is 'olora'"),
    "layers repeated": (
        edit_config(layer_replication=[[0, 2], [1, 3]]),
        "layer_replication is a list: cannot be",
    ),
    "only after some tokens": (edit_config(alora_invocation_tokens=[3, 4]), "alora_invocation_tokens"),
    "parts of a matrix": (edit_config(enable_lora=[True, False, True]), "enable_lora is a list"),
    "qalora": (edit_config(use_qalora=True), "use_qalora is True"),
    "ties": (
        lambda folder: edit_tensors(lambda t: t.update(WTE))(folder) or edit_config(ensure_weight_tying=True)(folder),
        "ensure_weight_tying is True: of wte cannot be merged here",
    ),
    "an option of the future": (edit_config(use_warp=True), "use_warp is True: unknown, it may change the result"),
    "dora without lengths": (
        edit_config(use_dora=True),
        "the tensors A, B, magnitude of its adapter, found A, B",
    ),
    "a bias of B without one": (edit_config(lora_bias=True), "expected the tensors A, B, B bias"),
    "biases without any": (edit_config(bias="all"), "bias is 'all': the adapter holds no bias"),
    "a saved module without one": (edit_config(modules_to_save=["wte"]), "the adapter holds no wte.weight"),
    "another rank": (edit_config(r=8), "do not have the rank 8"),
    "a pattern with another rank": (edit_config(rank_pattern={"1.attn.c_attn": 2}), "do not have the rank 2"),
    "no number": (edit_config(lora_alpha="16"), "lora_alpha of transformer.h.0.attn.c_attn is '16': expected a number"),
    "no regular expression": (edit_config(alpha_pattern={"h.(0": 2}), "is no regular expression"),
    "too many patterns": (edit_config(rank_pattern=dict.fromkeys(map(str, range(3000)), 2)), "2,000 names and numbers"),
    "a pattern that looks ahead": (edit_config(rank_pattern={r"(?=h).*": 2}), "too complicated .*give whole names"),
    "targets that look ahead": (
        edit_config(target_modules=r"(?!x).*c_attn"),
        r"target_modules: the pattern .* too complicated to be tried here: give a list of names",
    ),
    "too many expressions": (
        edit_config(alpha_pattern={f"{i}.*": 1 for i in range(99)}),
        "50 regular expressions at most",
    ),
    "more than what nothing named means": (
        lambda folder: (
            edit_config(target_modules=None)(folder)
            or edit_tensors(lambda t: t.update({name.replace("attn.c_attn", "mlp.c_fc"): t[name] for name in (A, B)}))(
                folder
            )
        ),
        "h.1.mlp.c_fc has an adapter, .*null means c_attn alone",
    ),
    "other targets": (edit_config(target_modules=["c_fc"]), "c_attn has an adapter, but is none of the modules"),
    "other layers": (edit_config(layers_to_transform=[0, 1]), "h.2.attn.c_attn has an adapter, but is none"),
    "B is missing": (edit_tensors(lambda tensors: tensors.pop(B)), "expected the tensors A, B of its adapter, found A"),
    "an empty tensor": (
        edit_tensors(lambda t: t.update({A: torch.zeros(0)})),
        r"expected weights, found float32",
    ),
    "another size": (
        edit_tensors(lambda t: t.update({A: torch.zeros(3, 40)})),
        r"h.1.attn.c_attn: expected the shape \[144, 48\], found \[144, 40\]: an adapter of another model",
    ),
    "too many layers": (
        edit_tensors(lambda t: t.update({A.replace(".1.", ".7."): t[A], B.replace(".1.", ".7."): t[B]})),
        "h.7.attn.c_attn: the checkpoint has no such module",
    ),
    "another model": (
        edit_tensors(lambda t: t.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": t[A]})),
        "no part of a GPT-2, or of no LoRA adapter of one: base_model.model.model.layers.0.self_attn.q_proj.lora_A",
    ),
    "two adapters": (
        edit_tensors(lambda t: t.update({A.replace("lora_A", "lora_A.mine"): t[A]})),
        "two adapters in one file",
    ),
    "factors of two adapters": (
        edit_tensors(
            lambda t: [
                t.update({name.replace(".weight", f".{part}.weight"): t.pop(name)})
                for name, part in ((A, "mine"), (B, "yours"))
            ]
        ),
        "several adapters in one file: mine .*, yours",
    ),
    "not finite": (edit_tensors(lambda t: t[B].fill_(torch.nan)), "h.1.attn.c_attn.weight: .* are NaN"),
}


ENDLESS = {
    "alternatives": "(.|.)+X",
    "three times": "(.|.)+(.|.)+(.|.)+X",
    "optional": ".?" * 60 + "X",
    "nested": r"((\w*)*\.?)*!",
    "counted": "(((.{0,99}){0,99}){0,99}){0,99}X",
    "empty": "((((|){999}){999}){999}){999}X",
}


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern"])
@pytest.mark.parametrize("case", ENDLESS)
def test_a_pattern_that_python_would_try_forever_ends_at_once(
    tmp_path: Path, bases: dict[str, Path], case: str, key: str
) -> None:
    """No module is a target then, or none is excluded or has a rank of its own; or the pattern is refused."""
    write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn"])
    edit_config(**{key: {ENDLESS[case]: 2} if key == "rank_pattern" else ENDLESS[case]})(tmp_path / FOLDER)
    start = time.perf_counter()
    if key == "target_modules" or case == "empty":
        with pytest.raises(CheckpointError, match=r"none of the modules|too complicated to be tried"):
            open_checkpoint(bases["tied"], adapter=tmp_path / FOLDER)
    else:
        open_checkpoint(bases["tied"], adapter=tmp_path / FOLDER)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("case", BROKEN)
def test_an_adapter_that_cannot_be_merged_is_an_error_of_one_line(
    tmp_path: Path, bases: dict[str, Path], case: str
) -> None:
    spoil, words = BROKEN[case]
    write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn"])
    spoil(tmp_path / FOLDER)
    with pytest.raises(CheckpointError, match=words) as error:
        model_of(open_checkpoint(bases["tied"], adapter=tmp_path / FOLDER))
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_commands_take_an_adapter_and_keep_it(
    tmp_path: Path, bases: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's path is relative and the adapter's is not; the worker of verify merges it once more."""
    adapter = write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn", "lm_head"])
    monkeypatch.chdir(bases["tied"].parent)
    words = ["--checkpoint", "tied", "--adapter", str(adapter)]
    out = str(tmp_path / "out")
    assert main(["inspect", "tied", "--adapter", str(adapter), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["tie_word_embeddings"] is False
    assert main(["to-huggingface", *words, "--output", out]) == 0
    assert "a LoRA adapter, merged into the weights" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert any(name.endswith("adapter_model.safetensors") for name in manifest["source"]["files"])
    assert main(["verify", "tied", out, "--adapter", str(adapter)]) == 0
    assert main(["verify", "tied", out]) == 3
    assert main(["to-huggingface", *words, "--output", str(adapter), "--force"]) == 2
    assert "adapter" in capsys.readouterr().err
    assert (adapter / "adapter_model.safetensors").is_file()


def test_verify_runs_cpms_shards_with_the_adapter(tmp_path: Path, bases: dict[str, Path]) -> None:
    """Without an adapter it runs the shards as Megatron does, with code that knows of none."""
    adapter = write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn", "c_proj"])
    to_checkpoint(open_checkpoint(bases["tied"]), tmp_path / "cpm", format="megatron", options={"tensor_parallel": 2})
    spec = CheckpointSpec(tmp_path / "cpm", n_head=4, adapter=adapter)
    again = CheckpointSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    to_checkpoint(again.open(), tmp_path / "out", format="huggingface")
    assert np.abs(logits(load(tmp_path / "out")) - peft_logits(bases["tied"], adapter)).max() < 1e-5
    assert verify(spec.open(), tmp_path / "out").passed


def test_a_state_dict_with_an_adapter_that_is_not_merged_says_what_to_do(
    tmp_path: Path, bases: dict[str, Path]
) -> None:
    adapter = write_adapter(bases["tied"], tmp_path / FOLDER, target_modules=["c_attn"])
    torch.save(peft.PeftModel.from_pretrained(load(bases["tied"]), adapter).state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"a LoRA adapter in it that is not merged: .*merge_and_unload"):
        open_checkpoint(tmp_path / "model.pt")


def test_an_adapter_next_to_its_base_is_a_note_with_the_option(tmp_path: Path) -> None:
    write_base(tmp_path / "both")
    write_adapter(tmp_path / "both", tmp_path / FOLDER, target_modules=["c_attn"])
    for file in (tmp_path / FOLDER).iterdir():
        shutil.copy(file, tmp_path / "both")
    (note,) = open_checkpoint(tmp_path / "both").info.notes
    assert note.endswith(f"--adapter {tmp_path / 'both'} merges it")
    (note,) = open_checkpoint(tmp_path / "both", adapter=tmp_path / "both").info.notes
    assert "merged into the weights (changed matrices: 3)" in note
