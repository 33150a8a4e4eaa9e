"""Newer Megatron-LM's checkpoints, made here by its published rules, against whole weights and transformers."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from convert.checkpoint import Checkpoint
from convert.formats.registry import open_checkpoint
from tests.convert.formats.test_cpm import megatron_name
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.checkpoints import State, fill_transformers, random_state, shards, write_megatron
from tests.helpers.huggingface import logits_of, random_model
from tests.helpers.light import main, run
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=4, n_head=8, n_inner=80)
HEADS, WIDTH = 8, 6
STATE = random_state(CONFIG, np.random.default_rng(7))
USUAL = random_state(dataclasses.replace(CONFIG, n_inner=192), np.random.default_rng(8))
"""Of the width that CPM's programs have."""
IDS = [[int(i) for i in np.random.default_rng(3).integers(0, 96, 40)]]
QKV = "attention.query_key_value"


def reordered(part: torch.Tensor, version: float) -> torch.Tensor:
    """A rank's [q; k; v] in the order of a version, row by row: the comment of ``fix_query_key_value_ordering``."""
    q, k, v = part.chunk(3)
    if version == 0:
        return part
    rows = []
    for head in range(len(q) // WIDTH):
        one = slice(head * WIDTH, (head + 1) * WIDTH)
        if version == 1:
            for i in range(WIDTH):
                rows += [q[one][i], k[one][i], v[one][i]]
        else:
            rows += [*q[one], *k[one], *v[one]]
    return torch.stack(rows)


def content(
    tensors: State, version: float, stage: int, stages: int, *, encoder: bool, args: dict[str, Any] | None, padding: int
) -> dict[str, Any]:
    """What a rank saves, of its whole part of the model ``tensors`` by CPM's names."""
    per_stage = CONFIG.n_layer // stages
    layers: State = {}
    for name, tensor in tensors.items():
        if name.startswith("transformer.layers."):
            number, _, rest = name.removeprefix("transformer.layers.").partition(".")
            if int(number) // per_stage == stage:
                value = reordered(tensor, version) if QKV in rest else tensor
                rest = rest.replace("attention.", "self_attention.") if encoder else rest
                layers[f"layers.{int(number) % per_stage}.{rest}"] = value.clone()
        elif "final_layernorm" in name and stage == stages - 1:
            layers[name.removeprefix("transformer.")] = tensor.clone()
    model: dict[str, Any] = {"language_model": {"encoder" if encoder else "transformer": layers}}
    word = torch.cat([tensors["word_embeddings.weight"], torch.zeros(padding, CONFIG.n_embd)])
    if stage == 0:
        model["language_model"]["embedding"] = {
            "word_embeddings": {"weight": word},
            "position_embeddings": {"weight": tensors["position_embeddings.weight"].clone()},
        }
    elif stage == stages - 1:
        model["word_embeddings_for_head"] = {"weight": word.clone()}
    top: dict[str, Any] = {"iteration": 500, "model": model, "rng_state": [1], "optimizer": {"a": torch.ones(2)}}
    if version:
        top["checkpoint_version"] = version
    if args is not None:
        top["args"] = argparse.Namespace(**args)
    return top


ARGS = {"num_attention_heads": HEADS, "hidden_size": 48, "num_layers": 4, "padded_vocab_size": 96, "swiglu": False}


def write(
    root: Path,
    version: float,
    p: int,
    stages: int = 1,
    *,
    encoder: bool = False,
    args: dict[str, Any] | None = ARGS,
    padding: int = 0,
    edit: Callable[[int, int, dict[str, Any]], object] = lambda rank, stage, top: None,
) -> list[Path]:
    files = []
    for rank, tensors in enumerate(shards(STATE, p)):
        for stage in range(stages):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            file = root / "iter_0000500" / name / "model_optim_rng.pt"
            file.parent.mkdir(parents=True)
            pad = padding if rank == p - 1 else 0
            top = content(tensors, version, stage, stages, encoder=encoder, args=args, padding=pad)
            edit(rank, stage, top)
            torch.save(top, file)
            files.append(file)
    (root / "latest_checkpointed_iteration.txt").write_text("500")
    return files


def open_megatron_lm(path: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(path, format="megatron-lm", **options)


def assert_reads(path: Path, **options: Any) -> None:
    checkpoint = open_megatron_lm(path, **options)
    assert (checkpoint.config.vocab_size, checkpoint.config.n_head, checkpoint.config.n_layer) == (96, HEADS, 4)
    for name in CONFIG.tensor_shapes():
        expected = STATE[megatron_name(name)].numpy()
        assert np.array_equal(checkpoint.read(name, np.dtype(np.float32)), expected), name


@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(("p", "stages"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (2, 4)])
@pytest.mark.parametrize("encoder", [False, True])
def test_every_tensor_is_whole_again(version: float, p: int, stages: int, encoder: bool, tmp_path: Path) -> None:
    write(tmp_path, version, p, stages, encoder=encoder)
    assert_reads(tmp_path)
    details = open_megatron_lm(tmp_path / "iter_0000500", heads=HEADS).info.details
    assert details["checkpoint_version"] == ("0" if not version else str(version))
    assert details["tensor_parallel"] == p
    assert details.get("pipeline_parallel", 1) == stages


def test_files_without_args_are_read(tmp_path: Path) -> None:
    write(tmp_path, 2.0, 2, args=None)
    assert_reads(tmp_path, heads=HEADS)


@pytest.mark.parametrize(("p", "stages", "version"), [(2, 1, 0), (2, 2, 3.0)])
def test_logits_are_those_of_transformers(p: int, stages: int, version: float, tmp_path: Path) -> None:
    write(tmp_path / "lm", version, p, stages, encoder=version == 3)
    run("to-tf", "--checkpoint", tmp_path / "lm", "--output", tmp_path / "model")
    with torch.inference_mode():
        expected = fill_transformers(STATE, CONFIG)(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "model", IDS), expected, atol=1e-4)


@pytest.mark.parametrize("version", ["0", "1.0", "2.0", "3.0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_there_and_back_keeps_every_bit(version: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """CPM's layout -> newer Megatron-LM's -> CPM's, bit for bit; and what lies between is as Megatron-LM has it."""
    before = write_megatron(tmp_path / "cpm", USUAL, 4, dtype=dtype, extras=False)
    layout = [
        "--layout",
        "megatron-lm",
        "--checkpoint-version",
        version,
        "--tensor-parallel",
        "2",
        "--make-vocab-size-divisible-by",
        "1",
    ]
    run("to-megatron", "--checkpoint", tmp_path / "cpm", "--output", tmp_path / "lm", "--heads", HEADS, *layout)
    run("to-megatron", "--checkpoint", tmp_path / "lm", "--output", tmp_path / "back", "--tensor-parallel", "4")
    for file in before:
        expected = torch.load(file)["module"]
        found = torch.load(tmp_path / "back" / file.relative_to(tmp_path / "cpm"))["module"]
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == dtype and torch.equal(found[name], expected[name]) for name in expected)
    # Loaded by PyTorch alone, the middle is what the rules of this test make of the weights.
    for rank, tensors in enumerate(shards(USUAL, 2)):
        file = tmp_path / "lm" / "iter_0080000" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
        top = torch.load(file, weights_only=False)
        wanted = content(tensors, float(version), 0, 1, encoder=version == "3.0", args=None, padding=0)
        assert top["checkpoint_version"] == float(version)
        assert top["args"].num_attention_heads == HEADS
        assert top["args"].padded_vocab_size == 96
        ours, theirs = ({**flat(t["model"]["language_model"])} for t in (top, wanted))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name].to(dtype)) for name in theirs)
        assert sum(t.untyped_storage().nbytes() for t in ours.values()) < file.stat().st_size


def flat(values: dict[str, Any], before: str = "") -> State:
    result: State = {}
    for key, value in values.items():
        result |= flat(value, f"{before}{key}/") if isinstance(value, dict) else {before + key: value}
    return result


def test_padding_of_the_vocabulary_is_left_out_where_args_say_so(tmp_path: Path) -> None:
    args = {**ARGS, "padded_vocab_size": 104, "vocab_size": 96}
    write(tmp_path / "a", 3.0, 1, args=args, padding=8)
    assert_reads(tmp_path / "a")
    assert open_megatron_lm(tmp_path / "a").info.details["padded_vocab_size"] == 104
    write(tmp_path / "b", 3.0, 1, args={**args, "vocab_size": None}, padding=8)
    assert open_megatron_lm(tmp_path / "b").config.vocab_size == 104


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    head = torch.randn(96, 48)

    def edit(rank: int, stage: int, top: dict[str, Any]) -> None:
        top["model"]["language_model"]["output_layer"] = {"weight": head.chunk(2)[rank].clone()}

    write(tmp_path / "lm", 2.0, 2, edit=edit)
    checkpoint = open_megatron_lm(tmp_path / "lm")
    assert not checkpoint.config.tie_word_embeddings
    assert np.array_equal(checkpoint.read("lm_head.weight", np.dtype(np.float32)), head.numpy())
    run(
        "to-megatron",
        "--checkpoint",
        tmp_path / "lm",
        "--output",
        tmp_path / "new",
        "--layout",
        "megatron-lm",
        "--tensor-parallel",
        "1",
    )
    found = torch.load(tmp_path / "new" / "iter_0000500" / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)
    written = found["model"]["language_model"]["output_layer"]["weight"]
    assert torch.equal(written[:96], head)
    assert not written[96:].any()
    assert found["args"].untie_embeddings_and_output_weights


def args_of(**changes: Any) -> Callable[[Path], object]:
    return lambda root: write(root, 2.0, 2, 2, args={**ARGS, **changes})


def edited(change: Callable[[int, int, dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda root: write(root, 2.0, 2, 2, edit=change)


def layers(top: dict[str, Any]) -> State:
    found: State = top["model"]["language_model"]["transformer"]
    return found


def only(rank: int, stage: int, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return edited(lambda r, s, top: change(top) if (r, s) == (rank, stage) else None)


DENSE = "layers.1.attention.dense.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a rank is missing": (
        lambda root: (write(root, 2.0, 2, 2), shutil.rmtree(root / "iter_0000500" / "mp_rank_00_001")),
        "mp_rank_00_001/model_optim_rng.pt is missing: the ranks found are 00_000, 01_000, 01_001",
    ),
    "no iteration": (
        lambda root: (write(root, 2.0, 2), shutil.move(root / "iter_0000500", root / "iter_0000400")),
        "iteration 500",
    ),
    "an unknown version": (edited(lambda r, s, top: top.update(checkpoint_version=4.0)), "expected one of 0, 1.0, 2.0"),
    "a version that is no number": (edited(lambda r, s, top: top.update(checkpoint_version="3")), "is '3': expected"),
    "mixed versions": (
        only(1, 1, lambda top: top.update(checkpoint_version=3.0)),
        "checkpoint_version is 3.0, that of",
    ),
    "mixed iterations": (only(1, 0, lambda top: top.update(iteration=499)), "iteration is 499, that of"),
    "a tensor is missing": (only(1, 1, lambda top: layers(top).pop(DENSE)), f"1 missing tensor: {DENSE}"),
    "a tensor too many": (
        only(0, 0, lambda top: layers(top).update({"layers.0.mlp.router.weight": torch.ones(2)})),
        "1 unexpected tensor",
    ),
    "a wrong shape": (
        only(0, 1, lambda top: layers(top).update({DENSE: torch.ones(48, 23)})),
        f"{DENSE}: expected the shape [48, 24] on each of 2 ranks, found [48, 23]",
    ),
    "replicas that differ": (
        only(1, 0, lambda top: layers(top)["layers.0.input_layernorm.weight"].add_(1)),
        "layers.0.input_layernorm.weight: differs from",
    ),
    "another copy of the embedding": (
        only(1, 1, lambda top: top["model"]["word_embeddings_for_head"]["weight"].add_(1)),
        "differs from the embedding",
    ),
    "not a number": (
        only(0, 1, lambda top: layers(top)[DENSE].fill_(float("inf"))),
        "1152 of 1152 values are NaN or infinite",
    ),
    "no tensor": (only(0, 0, lambda top: layers(top).update({DENSE: 5})), f"{DENSE}: expected a tensor, found 5"),
    "no weights": (
        lambda root: write(root, 2.0, 1, edit=lambda r, s, top: top["model"].update(language_model=[])),
        "expected a dict with 'language_model' under 'model'",
    ),
    "rotary positions": (args_of(position_embedding_type="rope"), "args.position_embedding_type is 'rope': no GPT-2"),
    "swiglu": (args_of(swiglu=True), "args.swiglu is True: no GPT-2, where it is False"),
    "RMSNorm": (args_of(normalization="RMSNorm"), "args.normalization is 'RMSNorm'"),
    "other heads": (args_of(num_attention_heads=7), "7 heads do not fit (hidden size 48, 2 ranks)"),
    "other layers": (args_of(num_layers=5), "args.num_layers is 5, but the files have 4"),
    "another vocabulary": (args_of(padded_vocab_size=128), "args.padded_vocab_size is 128, but the files have 96"),
    "layer norms around 1": (args_of(apply_layernorm_1p=True), "args.apply_layernorm_1p is True: no GPT-2"),
    "an epsilon that is no number": (args_of(norm_epsilon="1e-6"), "args.norm_epsilon is '1e-6': expected"),
    "two epsilons": (
        args_of(layernorm_epsilon=1e-5, norm_epsilon=1e-6),
        "norm_epsilon is 1e-06, but args.layernorm_epsilon 1e-05",
    ),
    "heads that are no number": (args_of(num_attention_heads=8.0), "args.num_attention_heads is 8.0: expected a plain"),
    "a head that is not there": (
        args_of(untie_embeddings_and_output_weights=True),
        "untie_embeddings_and_output_weights is True: ",
    ),
    "two of a rank": (
        lambda root: (
            write(root, 2.0, 2),
            shutil.copytree(root / "iter_0000500" / "mp_rank_00", root / "iter_0000500" / "mp_rank_00_000"),
        ),
        "two files of rank 00_000: mp_rank_00/model_optim_rng.pt and mp_rank_00_000/model_optim_rng.pt",
    ),
    "a copied rank": (
        lambda root: (
            write(root, 2.0, 2),
            shutil.copy(*(root / "iter_0000500" / f"mp_rank_0{i}" / "model_optim_rng.pt" for i in (0, 1))),
        ),
        "each rank has a part of its own: a copy of that file",
    ),
    "a vocabulary beyond the rows": (args_of(vocab_size=97), "args say a vocabulary of 97, but the files have 96 rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BROKEN[case]
    spoil(tmp_path / "lm")
    for command in (["to-tf"], ["to-megatron", "--tensor-parallel", "1", "--layout", "megatron-lm"]):
        options = ["--checkpoint", str(tmp_path / "lm"), "--output", str(tmp_path / "new" / "x"), "--quiet"]
        assert main([*command, *options, "--from", "megatron-lm"]) == 2
        assert_one_line_error(capsys, words)
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--checkpoint-version", "2.0"], "--checkpoint-version 2.0: expected --layout megatron-lm too"),
        (["--layout", "megatron-lm", "--heads", "6"], "says 8 heads, but --heads 6: leave that out"),
        (
            ["--iteration", "7"],
            "iteration 7 are not there, in 7, iter_0000007, global_step7: it has the iterations iter_0000500",
        ),
    ],
)
def test_bad_options_are_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "lm", 2.0, 2)
    where = ["--checkpoint", str(tmp_path / "lm"), "--output", str(tmp_path / "new"), "--tensor-parallel", "2"]
    assert main(["to-megatron", *where, *options]) == 2
    assert_one_line_error(capsys, words)


@pytest.mark.parametrize("name", ["layernorm_epsilon", "norm_epsilon"])
def test_the_epsilon_is_read_by_both_its_names(name: str, tmp_path: Path) -> None:
    write(tmp_path, 3.0, 2, encoder=True, args={**ARGS, name: 1e-6})
    assert open_megatron_lm(tmp_path).config.layer_norm_epsilon == 1e-6


def test_another_width_does_not_fit_cpms_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "lm", 2.0, 2)
    words = ["to-megatron", "--checkpoint", str(tmp_path / "lm"), "--tensor-parallel", "2", "--quiet", "--output"]
    assert main([*words, str(tmp_path / "cpm")]) == 2
    assert_one_line_error(capsys, "n_inner is 80, there it is always 192")
    assert main([*words, str(tmp_path / "other"), "--layout", "megatron-lm"]) == 0


GELUS: list[tuple[dict[str, Any], str]] = [
    ({}, "gelu_new"),
    ({"bias_gelu_fusion": True, "openai_gelu": False}, "gelu_new"),
    ({"bias_gelu_fusion": False, "openai_gelu": False}, "gelu"),
    ({"bias_gelu_fusion": False, "openai_gelu": True}, "gelu_new"),
]


@pytest.mark.parametrize(("said", "activation"), GELUS)
def test_args_choose_the_gelu(said: dict[str, Any], activation: str, tmp_path: Path) -> None:
    """The fused kernel and OpenAI's have the tanh form, PyTorch's the exact one (``ParallelMLP`` of Megatron-LM)."""
    write(tmp_path, 2.0, 2, args={**ARGS, **said})
    assert open_megatron_lm(tmp_path).config.activation_function == activation


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation_function": "gelu"}, {"bias_gelu_fusion": False, "openai_gelu": False}),
        ({"activation_function": "gelu_fast"}, {"bias_gelu_fusion": True}),
        ({"layer_norm_epsilon": 1e-3}, {"layernorm_epsilon": 1e-3, "untie_embeddings_and_output_weights": False}),
        ({"tie_word_embeddings": False}, {"layernorm_epsilon": 1e-5, "untie_embeddings_and_output_weights": True}),
        ({"n_inner": 72}, {"ffn_hidden_size": 72, "num_attention_heads": 4, "max_position_embeddings": 24}),
    ],
)
def test_args_record_what_the_weights_do_not(options: dict[str, Any], said: dict[str, Any], tmp_path: Path) -> None:
    random_model(**options).save_pretrained(tmp_path / "hf")
    words = ["--tensor-parallel", 2, "--layout", "megatron-lm"]
    run("to-megatron", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "lm", *words)
    top = torch.load(tmp_path / "lm" / "release" / "mp_rank_01" / "model_optim_rng.pt", weights_only=False)
    assert {key: getattr(top["args"], key) for key in said} == said
    theirs, ours = open_checkpoint(tmp_path / "hf").config, open_megatron_lm(tmp_path / "lm").config
    assert ours == dataclasses.replace(theirs, activation_function=ours.activation_function)
    assert (ours.activation_function == "gelu") == (theirs.activation_function == "gelu")


@pytest.mark.parametrize(("p", "divisible_by", "rows"), [(1, None, 128), (2, None, 256), (4, 5, 100), (2, 48, 96)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_is_padded(p: int, divisible_by: int | None, rows: int, tied: bool, tmp_path: Path) -> None:
    """As Megatron-LM does it: 50,257 tokens could not be shared out otherwise. Of 256 rows a rank has no token."""
    model = random_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "hf")
    words = ["--tensor-parallel", p, "--layout", "megatron-lm"]
    words += [] if divisible_by is None else ["--make-vocab-size-divisible-by", divisible_by]
    run("to-megatron", "--checkpoint", tmp_path / "hf", "--output", tmp_path / "lm", *words)
    tops = [torch.load(file, weights_only=False) for file in sorted((tmp_path / "lm").rglob("*.pt"))]
    assert [top["args"].padded_vocab_size for top in tops] == [rows] * p
    name = ("embedding", "word_embeddings") if tied else ("output_layer",)
    parts = []
    for top in tops:
        part = top["model"]["language_model"]
        for key in name:
            part = part[key]
        parts.append(part["weight"])
    assert [len(part) for part in parts] == [rows // p] * p
    whole, expected = torch.cat(parts), model.lm_head.weight.detach()
    assert torch.equal(whole[:96], expected)
    assert not whole[96:].any()
    run("to-huggingface", "--checkpoint", tmp_path / "lm", "--output", tmp_path / "back")
    names = [tmp_path / folder / "model.safetensors" for folder in ("hf", "back")]
    before, after = (safetensors.torch.load_file(file) for file in names)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
