"""UER-py's files: read and written, against UER-py's maths written out in float64, and against transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from convert.formats.registry import open_checkpoint
from tests.helpers.assertions import assert_one_line
from tests.helpers.huggingface import IDS, logits_of, random_model
from tests.helpers.light import main, run

SIZES = {"vocab": 96, "positions": 24, "hidden": 48, "inner": 40, "layers": 2}
HEADS = 4
State = dict[str, torch.Tensor]
Array = np.ndarray[Any, Any]


def random_state(seed: int = 0) -> State:
    """By UER-py's names; no bias is zero and no layer norm trivial, and rows vary little, so that epsilons show."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.2, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(shape, generator=generator)

    h, inner = SIZES["hidden"], SIZES["inner"]
    state = {
        "embedding.word.embedding.weight": normal(SIZES["vocab"], h, scale=0.7),
        "embedding.pos.embedding.weight": normal(SIZES["positions"], h, scale=0.1),
    }
    for layer in range(SIZES["layers"]):
        block = f"encoder.transformer.{layer}"
        linear = {**{f"self_attn.linear_layers.{i}": (h, h) for i in range(3)}, "self_attn.final_linear": (h, h),
                  "feed_forward.linear_1": (inner, h), "feed_forward.linear_2": (h, inner)}  # fmt: skip
        for name, shape in linear.items():
            state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"] = normal(*shape), normal(shape[0])
        for i in (1, 2):
            state[f"{block}.layer_norm_{i}.gamma"] = normal(h, mean=1.0)
            state[f"{block}.layer_norm_{i}.beta"] = normal(h)
    state["encoder.layer_norm.gamma"], state["encoder.layer_norm.beta"] = normal(h, mean=1.0), normal(h)
    state["target.lm.output_layer.weight"] = state["embedding.word.embedding.weight"]
    return state


def uer_logits(state: State, ids: list[int]) -> Array:
    """UER-py's GPT-2, by ``uer/layers`` and ``uer/utils/act_fun.py``, float64 ``[S, V]``."""
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}

    def norm(x: Array, name: str) -> Array:
        deviation = x.std(axis=-1, ddof=1, keepdims=True)
        return (
            weights[f"{name}.gamma"] * (x - x.mean(axis=-1, keepdims=True)) / (deviation + 1e-6)
            + weights[f"{name}.beta"]
        )

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    size = len(ids)
    x = weights["embedding.word.embedding.weight"][ids] + weights["embedding.pos.embedding.weight"][:size]
    hidden_from = -10000.0 * (1 - np.tril(np.ones((size, size))))
    for layer in range(SIZES["layers"]):
        block = f"encoder.transformer.{layer}"
        normed = norm(x, f"{block}.layer_norm_1")
        q, k, v = (
            linear(normed, f"{block}.self_attn.linear_layers.{i}").reshape(size, HEADS, -1).transpose(1, 0, 2)
            for i in range(3)
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + hidden_from
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(size, -1)
        x = x + linear(mixed, f"{block}.self_attn.final_linear")
        inner = linear(norm(x, f"{block}.layer_norm_2"), f"{block}.feed_forward.linear_1")
        inner = 0.5 * inner * (1 + np.tanh(0.7978845608 * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"{block}.feed_forward.linear_2")
    logits: Array = norm(x, "encoder.layer_norm") @ weights["target.lm.output_layer.weight"].T
    return logits


def transformers_logits(folder: Path) -> Array:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits: Array = model(torch.tensor(IDS)).logits[0].numpy()
    return logits


def save(folder: Path, state: State) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "gpt2.bin-000100")
    (folder / "gpt2.bin-000100").rename(folder / "lyric.bin")
    return folder / "lyric.bin"


def test_logits_are_those_of_uers_formulas(tmp_path: Path) -> None:
    """In the SavedModel, and in transformers, whose layer norm is another."""
    state = random_state()
    file = save(tmp_path / "theirs", state)
    expected = uer_logits(state, IDS[0])
    assert expected.std() > 2
    run("to-tf", "--checkpoint", file, "--heads", HEADS, "--output", tmp_path / "model")
    np.testing.assert_allclose(logits_of(tmp_path / "model")[0], expected, atol=1e-4)
    run("to-huggingface", "--checkpoint", file, "--heads", HEADS, "--output", tmp_path / "hf")
    np.testing.assert_allclose(transformers_logits(tmp_path / "hf"), expected, atol=1e-4)
    # What UER-py's own script makes of it is something else, though not by much.
    run("to-huggingface", "--checkpoint", file, "--heads", HEADS, "--output", tmp_path / "as-is",
        "--uer-layer-norm", "standard")  # fmt: skip
    off = np.abs(transformers_logits(tmp_path / "as-is") - expected).max()
    assert 1e-3 < off < 1
    run(
        "to-tf", "--checkpoint", file, "--heads", HEADS, "--output", tmp_path / "model2", "--uer-layer-norm", "standard"
    )
    np.testing.assert_allclose(
        logits_of(tmp_path / "model2")[0], transformers_logits(tmp_path / "as-is"), atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"activation_function": "relu"}])
def test_a_model_of_transformers_computes_the_same_in_uer(options: dict[str, Any], tmp_path: Path) -> None:
    model = random_model(n_inner=40, n_layer=2, layer_norm_epsilon=1e-8, **options)
    model.save_pretrained(tmp_path / "theirs")
    run("to-uer", "--checkpoint", tmp_path / "theirs", "--output", tmp_path / "uer")
    state = torch.load(tmp_path / "uer" / "model.bin", weights_only=True)
    assert state.keys() == random_state().keys()
    config = json.loads((tmp_path / "uer" / "config.json").read_text())
    assert config["heads_num"] == HEADS
    assert config["tie_weights"] == options.get("tie_word_embeddings", True)
    if "activation_function" in options:
        assert config["hidden_act"] == "relu"
        return
    with torch.inference_mode():
        expected = model(torch.tensor(IDS)).logits[0].numpy()
    np.testing.assert_allclose(uer_logits(state, IDS[0]), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_hugging_face_and_back_keeps_every_bit_of_a_copy(dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit with copied layer norms; with converted ones they alone may change, by a rounding."""
    state = {name: tensor.to(dtype) for name, tensor in random_state().items()}
    file = save(tmp_path / "theirs", state)
    for choice in ("standard", "uer"):
        option = ["--uer-layer-norm", choice]
        run("to-huggingface", "--checkpoint", file, "--heads", HEADS, "--output", tmp_path / f"hf-{choice}", *option)
        run("to-uer", "--checkpoint", tmp_path / f"hf-{choice}", "--output", tmp_path / f"uer-{choice}", *option)
        found = torch.load(tmp_path / f"uer-{choice}" / "model.bin", weights_only=True)
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == dtype
            if choice == "uer" and name.endswith("gamma"):
                torch.testing.assert_close(found[name], tensor, rtol=1e-3 if dtype == torch.float16 else 2e-7, atol=0)
            else:
                assert torch.equal(found[name], tensor), name


RENAMED = {"embedding.word.": "embedding.word_", "embedding.pos.embedding": "embedding.position_embedding",
           "target.lm.": "target."}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {_old(name): tensor for name, tensor in state.items()},
        lambda state: {n: t for n, t in state.items() if not n.startswith("target")},
        lambda state: {n: t.clone() for n, t in state.items()},
    ],
    ids=["of DataParallel", "older names", "without a head", "the head a copy"],
)
def test_every_kind_of_file_is_read(change: Callable[[State], State], tmp_path: Path) -> None:
    state = random_state()
    file = save(tmp_path, change(state))
    checkpoint = open_checkpoint(tmp_path, heads=HEADS, format="uer")
    assert checkpoint.info.files == (file,)
    assert checkpoint.config.tie_word_embeddings
    qkv = torch.cat([state[f"encoder.transformer.1.self_attn.linear_layers.{i}.weight"] for i in range(3)])
    assert np.array_equal(checkpoint.read("h.1.attn.c_attn.weight", np.dtype(np.float32)), qkv.numpy())
    assert (checkpoint.config.n_layer, checkpoint.config.n_inner, checkpoint.config.n_positions) == (2, 40, 24)


def _old(name: str) -> str:
    for new, old in RENAMED.items():
        name = name.replace(new, old)
    return name


def put(name: str, value: Any) -> Callable[[State, Path], object]:
    return lambda state, folder: state.update({name: value})


Q, GAMMA = "encoder.transformer.1.self_attn.linear_layers.0.weight", "encoder.layer_norm.gamma"
BROKEN: dict[str, tuple[Callable[[State, Path], object], str]] = {
    "a tensor is missing": (lambda s, f: s.pop(Q), f"1 missing tensor: {Q}"),
    "a layer is missing": (
        lambda s, f: [s.pop(n) for n in list(s) if n.startswith("encoder.transformer.0.")], "missing tensor",
    ),
    "no layers": (lambda s, f: [s.pop(n) for n in list(s) if n.startswith("encoder.tr")], "missing tensor: encoder"),
    "no positions": (lambda s, f: s.pop("embedding.pos.embedding.weight"), "missing tensor: embedding.pos"),
    "a tensor too many": (put("encoder.relative_pos_emb.weight", torch.ones(2)), "1 unexpected tensor: encoder.rel"),
    "an embedding with a layer norm": (put("embedding.layer_norm.gamma", torch.ones(48)), "words and positions: emb"),
    "a wrong shape": (put(Q, torch.ones(48, 47)), f"{Q}: expected the shape [48, 48], found [48, 47]"),
    "not a matrix": (put("embedding.word.embedding.weight", torch.ones(96)), "expected a matrix"),
    "not a number": (put(GAMMA, torch.full((48,), float("nan"))), f"{GAMMA}: 48 of 48 values are NaN or infinite"),
    "whole numbers": (put(GAMMA, torch.ones(48, dtype=torch.int32)), f"{GAMMA}: expected float16"),
    "no tensor": (put(GAMMA, "x"), f"1 missing tensor: {GAMMA}"),
    "a config of another model": (
        lambda s, f: (f / "config.json").write_text('{"emb_size": 48, "layers_num": 12, "heads_num": 4}'),
        "layers_num is 12, but the tensors have 2",
    ),
    "a config of other heads": (
        lambda s, f: (f / "config.json").write_text('{"heads_num": 6}'), "says 6 heads, but --heads 4: leave that out",
    ),
    "a config that is no JSON": (lambda s, f: (f / "config.json").write_text("{"), "config.json: expected JSON"),
    "an activation that nobody knows": (
        lambda s, f: (f / "config.json").write_text('{"heads_num": 4, "hidden_act": "swish"}'), "hidden_act is 'swish'",
    ),
    "heads that are no number": (
        lambda s, f: (f / "config.json").write_text('{"heads_num": "4"}'), "heads_num is '4': expected a number",
    ),
    "an activation that is no name": (
        lambda s, f: (f / "config.json").write_text('{"heads_num": 4, "hidden_act": []}'), "hidden_act is a list",
    ),
    **{
        f"{key} {value}": (
            lambda s, f, key=key, value=value: (f / "config.json").write_text(json.dumps({"heads_num": 4, key: value})),
            f"{key} is {value!r}: no GPT-2, where it is",
        )
        for key, value in {
            "mask": "fully_visible", "layernorm": "t5", "layernorm_positioning": "post", "feed_forward": "gated",
            "relative_position_embedding": True, "remove_embedding_layernorm": False,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = BROKEN[case]
    state = random_state()
    (tmp_path / "theirs").mkdir()
    spoil(state, tmp_path / "theirs")
    torch.save(state, tmp_path / "theirs" / "lyric.bin")
    for command in ("to-tf", "to-uer"):
        options = ["--checkpoint", tmp_path / "theirs" / "lyric.bin", "--output", tmp_path / "new" / "ours"]
        assert main([command, *map(str, options), "--heads", str(HEADS), "--quiet"]) == 2
        assert_one_line(capsys.readouterr().err, words)
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "an empty file"), (b"<html>", "a web page"), (b"PK\3\4" + b"\0" * 40, "without a usable directory")],
)
def test_a_file_that_torch_did_not_save_is_refused(
    data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    for source in ([], ["--from", "uer"]):
        options = ["--checkpoint", str(tmp_path / "x.bin"), "--output", str(tmp_path / "new"), *source]
        assert main(["to-uer", *options]) == 2
        assert words in capsys.readouterr().err


def test_a_folder_must_have_exactly_one_file_with_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "new"), "--from", "uer"]
    save(tmp_path / "theirs", random_state())
    torch.save(random_state(), tmp_path / "theirs" / "other.pt")
    assert main(["to-tf", *options]) == 2
    assert "2 files with weights: lyric.bin, other.pt: give one as the path" in capsys.readouterr().err
    assert main(["to-tf", *options, "--iteration", "3"]) == 2
    assert "has no iterations: leave out --iteration 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["to-megatron", "--tensor-parallel", "1"], ["to-openai"]])
def test_formats_without_an_epsilon_take_a_copy_only(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state()
    for layer in range(SIZES["layers"]):  # which are always 4 h wide
        name = f"encoder.transformer.{layer}.feed_forward.linear"
        state |= {f"{name}_1.weight": torch.ones(192, 48), f"{name}_1.bias": torch.ones(192),
                  f"{name}_2.weight": torch.ones(48, 192)}  # fmt: skip
    options = ["--checkpoint", str(save(tmp_path / "theirs", state)), "--output", str(tmp_path / "new"), "--quiet"]
    assert main([*command, *options, "--heads", str(HEADS)]) == 2
    assert "--uer-layer-norm standard copies the layer norms of UER-py as they are" in capsys.readouterr().err
    assert main([*command, *options, "--heads", str(HEADS), "--uer-layer-norm", "standard"]) == 0


def test_an_epsilon_that_uer_does_not_have_is_left_out_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usual one is told, one that counts is refused: UER's layer norms have none inside the root."""
    for epsilon, code, words in (
        (1e-5, 0, "note: {}: layer_norm_epsilon 1e-05 becomes UER-py's 1e-6 outside the root"),
        (1e-12, 0, ""),
        (1e-4, 2, "error: {}: layer_norm_epsilon is 0.0001: UER-py's layer norms have none inside"),
    ):
        folder = tmp_path / str(epsilon)
        random_model(layer_norm_epsilon=epsilon).save_pretrained(folder / "hf")
        capsys.readouterr()
        assert main(["to-uer", "--checkpoint", str(folder / "hf"), "--output", str(folder / "uer")]) == code
        err = capsys.readouterr().err
        assert words.format(folder / "hf" / "model.safetensors") in err
        assert ("epsilon" in err) == bool(words)
        assert (folder / "uer").exists() == (code == 0)


def test_a_hidden_size_of_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(n_embd=1, n_head=1).save_pretrained(tmp_path / "hf")
    assert main(["to-uer", "--checkpoint", str(tmp_path / "hf"), "--output", str(tmp_path / "uer")]) == 2
    assert "a hidden size of 1: one value has no unbiased deviation" in capsys.readouterr().err


def test_a_weight_that_float16_can_no_longer_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """UER's layer norm makes it larger, by 1 % at a hidden size of 48."""
    model = random_model().half()
    with torch.no_grad():
        model.transformer.ln_f.weight[5] = 65504
    model.save_pretrained(tmp_path / "hf")
    words = ["to-uer", "--checkpoint", str(tmp_path / "hf"), "--output", str(tmp_path / "uer"), "--quiet"]
    assert main(words) == 2
    assert "ln_f.weight: float16 cannot hold 1 of 48 values" in capsys.readouterr().err
    assert main([*words, "--dtype", "float32"]) == 0


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    """There and back, and the logits by the formulas."""
    state = random_state()
    state["target.lm.output_layer.weight"] = state["target.lm.output_layer.weight"] + 0.1
    file = save(tmp_path / "theirs", state)
    assert not open_checkpoint(file, heads=HEADS, format="uer").config.tie_word_embeddings
    run("to-uer", "--checkpoint", file, "--heads", HEADS, "--output", tmp_path / "uer")
    back = torch.load(tmp_path / "uer" / "model.bin", weights_only=True)
    assert all(torch.equal(back[name], state[name]) for name in state)
    run("to-tf", "--checkpoint", tmp_path / "uer", "--output", tmp_path / "tf")
    np.testing.assert_allclose(logits_of(tmp_path / "tf")[0], uer_logits(state, IDS[0]), atol=1e-4)
