"""convert/formats/megatron/cpm.py: what it reads is what was split, bit for bit; what it cannot read it names."""

from __future__ import annotations

import argparse
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional

from convert.checkpoint import Checkpoint
from convert.formats.registry import open_checkpoint
from convert.tensors import check_finite, same_values
from support.errors import CheckpointError
from tests.helpers.checkpoints import Edit, State, fill_transformers, random_state, shards, write_megatron
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=2, n_head=24)
FLOAT32 = np.dtype(np.float32)
TRACKER = "latest_checkpointed_iteration.txt"
RANK = "80000/mp_rank_{:02d}_model_states.pt"
HAS = "it has the iterations 80000"
QKV = "transformer.layers.{}.attention.query_key_value.{}"
NUMPY = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16, torch.float32: np.float32}
MEGATRON = {
    "wte": "word_embeddings",
    "wpe": "position_embeddings",
    "ln_f": "transformer.final_layernorm",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.dense",
    "mlp.c_fc": "mlp.dense_h_to_4h",
    "mlp.c_proj": "mlp.dense_4h_to_h",
}


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(CONFIG, np.random.default_rng(7))


def megatron_name(canonical: str) -> str:
    module, _, kind = canonical.rpartition(".")
    if module.startswith("h."):
        _, layer, module = module.split(".", 2)
        return f"transformer.layers.{layer}.{MEGATRON[module]}.{kind}"
    return f"{MEGATRON[module]}.{kind}"


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def open_cpm(path: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(path, format="megatron", **options)


def assert_reads(path: Path, state: State, **options: Any) -> None:
    """Every canonical tensor, read in its own type, is the one of ``state``."""
    checkpoint = open_cpm(path, heads=24, **options)
    assert checkpoint.config == CONFIG
    assert list(checkpoint.dtypes) == list(CONFIG.tensor_shapes())
    for name, shape in CONFIG.tensor_shapes().items():
        expected = numpy_of(state[megatron_name(name)])
        found = checkpoint.read(name, checkpoint.dtypes[name])
        assert (found.shape, found.dtype) == (shape, expected.dtype), name
        assert found.flags.c_contiguous
        assert found.flags.writeable
        assert found.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("p", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_tensor_is_whole_again(tmp_path: Path, state: State, p: int, dtype: torch.dtype) -> None:
    files = write_megatron(tmp_path, state, p, dtype=dtype)
    assert_reads(tmp_path, {name: tensor.to(dtype) for name, tensor in state.items()})
    checkpoint = open_cpm(tmp_path, heads=24)
    assert checkpoint.info.format == "megatron"
    assert checkpoint.info.details == {"tensor_parallel": p, "iteration": 80000}
    assert checkpoint.info.files == tuple(files)
    replicated = sum(t.numel() for n, t in state.items() if "layernorm" in n or n.endswith(("dense.bias", "_h.bias")))
    replicated += state["position_embeddings.weight"].numel()
    assert checkpoint.info.nbytes == (CONFIG.parameter_count + (p - 1) * replicated) * dtype.itemsize


@pytest.mark.parametrize("layout", ["deepspeed", "megatron"])
@pytest.mark.parametrize("key", ["module", "model"])
@pytest.mark.parametrize("iteration", [70, "release"])
@pytest.mark.parametrize("extras", [True, False])
def test_every_layout_is_read_by_root_folder_and_file(
    tmp_path: Path, state: State, layout: Any, key: Any, iteration: Any, extras: bool
) -> None:
    options = {"layout": layout, "key": key, "iteration": iteration, "extras": extras}
    files = write_megatron(tmp_path / "two", state, 2, **options)
    folder = files[0].parent if layout == "deepspeed" else files[0].parents[1]
    for path in (tmp_path / "two", folder):
        assert_reads(path, state)
    one = write_megatron(tmp_path / "one", state, 1, **options)
    assert_reads(one[0], state)
    assert_reads(shutil.copy(one[0], tmp_path / "mine.pt"), state)
    for file in files:
        rank = files.index(file)
        message = error_of(lambda file=file: open_cpm(file, heads=24))
        assert message.startswith(f"{file}: rank {rank} of a model split over 2 ranks: give the folder")
    (tmp_path / "two" / TRACKER).write_text("1")
    assert_reads(tmp_path / "two", state, iteration=str(iteration))


def test_files_of_old_torch_are_read(tmp_path: Path, state: State) -> None:
    write_megatron(tmp_path, state, 2, legacy=True)
    assert_reads(tmp_path, state)


def test_types_may_differ_among_tensors_and_ranks(tmp_path: Path, state: State) -> None:
    types = (torch.float32, torch.float16, torch.bfloat16)
    mixed = {name: tensor.to(types[i % 3]) for i, (name, tensor) in enumerate(state.items())}
    write_megatron(tmp_path / "tensors", mixed, 2)
    assert_reads(tmp_path / "tensors", mixed)

    small = {name: (tensor * 8).round().clamp(-64, 64) / 8 for name, tensor in state.items()}  # exact in every type

    def retype(rank: int, content: dict[str, Any]) -> None:
        content["module"] = {name: tensor.to(types[rank + 1]) for name, tensor in content["module"].items()}

    write_megatron(tmp_path / "ranks", small, 2, edit=retype)
    assert_reads(tmp_path / "ranks", small)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_a_tensor_is_read_in_the_dtype_asked_for(tmp_path: Path, state: State, dtype: Any) -> None:
    write_megatron(tmp_path, state, 3)
    checkpoint = open_cpm(tmp_path, heads=24)
    for name in ("wte.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_proj.weight", "ln_f.bias"):
        found = checkpoint.read(name, np.dtype(dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, numpy_of(state[megatron_name(name)]).astype(dtype))


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_prefixes_that_all_names_have_are_dropped(tmp_path: Path, state: State, prefix: str) -> None:
    def rename(_: int, content: dict[str, Any]) -> None:
        content["module"] = {prefix + name: tensor for name, tensor in content["module"].items()}

    write_megatron(tmp_path, state, 2, edit=rename)
    assert_reads(tmp_path, state)


def test_shards_may_be_views_of_whole_tensors(tmp_path: Path, state: State) -> None:
    """Upstream's change_mp.py saves slices, each with the whole tensor's storage behind it."""

    def share(rank: int, content: dict[str, Any]) -> None:
        for name, tensor in content["module"].items():
            if "dense.weight" in name or "4h_to_h.weight" in name:
                content["module"][name] = state[name].chunk(2, dim=1)[rank]
                assert tensor.shape == content["module"][name].shape
            elif name == "word_embeddings.weight":
                content["module"][name] = state[name].chunk(2, dim=0)[rank]

    write_megatron(tmp_path, state, 2, edit=share)
    assert_reads(tmp_path, state)


@pytest.mark.parametrize("text", ["80000\n", " 80000 \r\n", "\ufeff80000", "0080000"])
def test_trackers_may_have_blanks_and_zeros(tmp_path: Path, state: State, text: str) -> None:
    write_megatron(tmp_path, state, 1)
    (tmp_path / TRACKER).write_text(text, "utf-8")
    assert_reads(tmp_path, state)


def test_opening_reads_no_weights(tmp_path: Path, state: State) -> None:
    """A damaged byte of a weight is noticed when that tensor is read, and no earlier."""
    _, file = write_megatron(tmp_path, state, 2, extras=False)
    data = bytearray(file.read_bytes())
    data[data.index(numpy_of(state[QKV.format(1, "weight")][24]).tobytes())] ^= 1  # the first row of rank 1
    file.write_bytes(data)
    checkpoint = open_cpm(tmp_path, heads=24)
    checkpoint.read("wte.weight", FLOAT32)
    message = error_of(lambda: checkpoint.read("h.1.attn.c_attn.weight", FLOAT32))
    assert message.startswith(f"{file}: storage")


def test_qkv_is_not_merged_by_plain_concatenation(tmp_path: Path, state: State) -> None:
    """What the first versions of change_mp.py did; for the bias others still do it."""
    write_megatron(tmp_path, state, 2)
    checkpoint = open_cpm(tmp_path, heads=24)
    for kind in ("weight", "bias"):
        plain = np.concatenate([numpy_of(shard[QKV.format(0, kind)]) for shard in shards(state, 2)])
        found = checkpoint.read(f"h.0.attn.c_attn.{kind}", FLOAT32)
        np.testing.assert_array_equal(found, numpy_of(state[QKV.format(0, kind)]))
        assert plain.shape == found.shape
        same = (plain == found).reshape(6, 24, -1).all(axis=(1, 2))
        assert same.tolist() == [True, False, False, False, False, True]  # rank 0's queries and rank 1's values


@pytest.mark.parametrize(("hidden", "heads"), [(768, 12), (1024, 16), (2560, 32)])
def test_published_models_need_no_heads(tmp_path: Path, hidden: int, heads: int) -> None:
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=hidden, n_layer=1, n_head=heads, n_inner=8)
    zeros = {megatron_name(name): torch.zeros(shape).half() for name, shape in config.tensor_shapes().items()}
    write_megatron(tmp_path, zeros, 2)
    assert open_cpm(tmp_path).config == config
    assert open_cpm(tmp_path, heads=heads // 2).config.n_head == heads // 2


def error_of(action: Callable[[], object]) -> str:
    """The message of the CheckpointError that ``action`` raises: one line."""
    with pytest.raises(CheckpointError) as caught:
        action()
    message = str(caught.value)
    assert message.isprintable()
    return message


def read_all(path: Path, *, n_head: int | None = 24, iteration: str | None = None, dtype: Any = np.float32) -> None:
    checkpoint = open_cpm(path, heads=n_head, iteration=iteration)
    for name in checkpoint.dtypes:
        checkpoint.read(name, np.dtype(dtype))


def in_rank(rank: int, change: Callable[[dict[str, Any]], object], *, top: bool = False) -> Edit:
    """Changes the tensors of one rank, or the dict that they are in."""

    def edit(at: int, content: dict[str, Any]) -> None:
        if at == rank:
            change(content if top else content["module"])

    return edit


def put(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.__setitem__(name, value)


def poke(name: str, index: tuple[int, ...], value: float) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors[name].__setitem__(index, value)


def drop(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


def drop_layer(layer: int) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(f"transformer.layers.{layer}.")]


WORD, POSITION, FINAL = "word_embeddings.weight", "position_embeddings.weight", "transformer.final_layernorm.weight"
DENSE = "transformer.layers.1.attention.dense.{}"
BAD_CONTENT: dict[str, tuple[Edit, list[str]]] = {
    "one tensor is missing": (in_rank(1, drop(WORD)), ["{1}: 1 missing tensor: word_embeddings.weight"]),
    "many are missing": (
        in_rank(0, drop(WORD, POSITION, FINAL, DENSE.format("bias"), DENSE.format("weight"))),
        ["{0}: 5 missing tensors: word_embeddings.weight, position_embeddings.weight, ", " and 2 more"],
    ),
    "tensors are missing in both": (
        lambda rank, content: content["module"].pop([WORD, FINAL][rank]),
        ["{0}: 1 missing tensor: word_embeddings.weight; {1}: 1 missing tensor: transformer.final_layernorm.weight"],
    ),
    "a layer in the middle": (
        lambda rank, content: drop_layer(0)(content["module"]),
        ["{0}: 12 missing tensors: transformer.layers.0.input_layernorm.weight, ", "and 9 more; {1}: 12 missing"],
    ),
    "a layer of one rank": (in_rank(0, drop_layer(1)), ["{0}: 12 missing tensors: transformer.layers.1."]),
    "no tensors": (
        lambda rank, content: content.update(module={}),
        ["{0}: 16 missing tensors: word_embeddings.weight"],
    ),
    "unexpected": (
        in_rank(1, put("lm_head.weight", torch.ones(2))),
        ["{1}: 1 unexpected tensor: lm_head.weight"],
    ),
    "unexpected and missing": (
        in_rank(0, lambda t: put("module." + WORD, t.pop(WORD))(t)),
        ["{0}: 1 missing tensor: word_embeddings.weight; {0}: 1 unexpected tensor: module.word_embeddings.weight"],
    ),
    "a name with a line feed": (in_rank(0, put("a\nb", torch.ones(2))), ["unexpected tensor: 'a\\nb'"]),
    "a name that is a number": (in_rank(0, put(5, torch.ones(2))), ["{0}: 1 unexpected tensor: 5"]),
    "layer 01": (
        in_rank(0, put(QKV.format("01", "bias"), torch.ones(2))),
        ["unexpected tensor: transformer.layers.01."],
    ),
    "a wrong shape": (
        in_rank(1, put(DENSE.format("weight"), torch.ones(48, 25))),
        [
            "{1}: transformer.layers.1.attention.dense.weight: expected the shape [48, 24] on each of 2",
            "found [48, 25]",
        ],
    ),
    "biases that change_mp.py forgot to split": (
        lambda rank, content: content["module"].update({QKV.format(0, "bias"): torch.ones(144)}),
        ["{0}: transformer.layers.0.attention.query_key_value.bias: expected the shape [72]", "found [144]"],
    ),
    "embeddings of different vocabularies": (
        in_rank(1, put(WORD, torch.ones(47, 48))),
        ["{1}: word_embeddings.weight: expected the shape [48, 48] on each of 2 ranks, found [47, 48]"],
    ),
    "not a matrix": (
        lambda rank, content: content["module"].update({POSITION: torch.ones(40)}),
        ["{0}: position_embeddings.weight: expected a matrix, found the shape [40]"],
    ),
    "an empty matrix": (
        lambda rank, content: content["module"].update({WORD: torch.ones(0, 48)}),
        ["{0}: word_embeddings.weight: expected a matrix, found the shape [0, 48]"],
    ),
    "a view that repeats one value": (
        lambda rank, content: content["module"].update({WORD: torch.ones(1).expand(1 << 40, 48)}),
        ["{0}: word_embeddings.weight: ", " bytes, of which the file has fewer"],
    ),
    "integers": (
        in_rank(0, put(FINAL, torch.ones(48, dtype=torch.int64))),
        ["{0}: transformer.final_layernorm.weight: expected float16, bfloat16, float32, float64, found int64"],
    ),
    "a list": (
        in_rank(0, put(FINAL, [1.0])),
        ["{0}: transformer.final_layernorm.weight: expected a tensor, found a list"],
    ),
    "None": (in_rank(1, put(FINAL, None)), ["{1}: transformer.final_layernorm.weight: expected a tensor, found None"]),
    "something unknown": (
        in_rank(0, put(FINAL, argparse.Namespace(a=1))),
        ["{0}: transformer.final_layernorm.weight: expected a tensor, found argparse.Namespace"],
    ),
    "no weights": (
        in_rank(0, drop("module"), top=True),
        ["{0}: expected a dict under 'module' or 'model', found the keys optimizer, lr_scheduler, ", " and 6 more"],
    ),
    "weights that are no dict": (in_rank(1, put("module", None), top=True), ["{1}: expected a dict under 'module'"]),
    "another number of ranks": (
        in_rank(1, put("mp_world_size", 4), top=True),
        ["{1}: mp_world_size is 4, but 2 files found"],
    ),
    "another iteration": (in_rank(1, put("iteration", 90), top=True), ["{1}: of iteration 90, but {0} is of 80000"]),
    "replicas that differ": (
        in_rank(1, poke(DENSE.format("bias"), (47,), 0.5)),
        ["{1}: transformer.layers.1.attention.dense.bias: differs from {0}", "another model or iteration"],
    ),
    "positions that differ": (in_rank(1, poke(POSITION, (39, 47), 9.0)), ["{1}: position_embeddings.weight: differs"]),
    "replicas that differ in type and value": (
        in_rank(1, lambda t: put(FINAL, (t[FINAL] * 1.5).half())(t)),
        ["{1}: transformer.final_layernorm.weight: differs from {0}"],
    ),
    "not a number": (
        in_rank(1, poke(DENSE.format("weight"), (3, 20), float("nan"))),
        ["{1}: transformer.layers.1.attention.dense.weight: 1 of 1152 values are NaN or infinite", "at [3, 20] of"],
    ),
    "infinite": (
        lambda rank, content: poke(FINAL, (slice(5, 9),), float("-inf"))(content["module"]),
        ["{0}: transformer.final_layernorm.weight: 4 of 48 values are NaN or infinite, the first at [5] of [48]"],
    ),
}


@pytest.mark.parametrize("case", sorted(BAD_CONTENT))
def test_broken_files_are_refused_in_one_line(tmp_path: Path, state: State, case: str) -> None:
    edit, words = BAD_CONTENT[case]
    files = write_megatron(tmp_path, state, 2, edit=edit)
    message = error_of(lambda: read_all(tmp_path))
    for word in words:
        assert word.format(*files) in message


def test_values_that_a_type_cannot_hold_are_refused_with_advice(tmp_path: Path, state: State) -> None:
    write_megatron(tmp_path / "f16", state, 2, edit=in_rank(1, poke(WORD, (2, 3), -1e6)))
    message = error_of(lambda: read_all(tmp_path / "f16", dtype=np.float16))
    assert "word_embeddings.weight: float16 cannot hold 1 of 4608 values (up to 1e+06, the first at [50, 3])" in message
    assert message.startswith(f"{tmp_path / 'f16' / '80000'}: ")
    assert message.endswith("convert to float32 or bfloat16")
    read_all(tmp_path / "f16", dtype=np.float32)
    read_all(tmp_path / "f16", dtype=ml_dtypes.bfloat16)
    write_megatron(tmp_path / "bf16", state, 2, edit=in_rank(0, poke(WORD, (0, 0), 3.4e38)))
    message = error_of(lambda: read_all(tmp_path / "bf16", dtype=ml_dtypes.bfloat16))
    assert message.endswith("convert to float32")
    wide = {name: tensor.double() for name, tensor in state.items()}
    wide[WORD][0, 0] = 1e300
    write_megatron(tmp_path / "f64", wide, 1)
    assert error_of(lambda: read_all(tmp_path / "f64")).endswith("no supported type can")
    assert_reads(tmp_path / "f64", wide)


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("nowhere", {}, ["{root}/nowhere: no such file or folder"]),
        ("", {"iteration": "0"}, ["iteration '0': expected a number above 0 or release"]),
        ("", {"iteration": "../x"}, ["iteration '../x': expected"]),
        ("", {"iteration": "7"}, ["{root}: mp_rank_* files of iteration 7 are not there", HAS]),
        ("80000", {"iteration": "80000"}, ["{root}/80000: ", "it is the folder of an iteration itself"]),
        (RANK.format(0), {"iteration": "80000"}, ["{rank0}: a file has no iterations to choose from"]),
        (RANK.format(0), {}, ["{rank0}: rank 0 of a model split over 2 ranks: give the folder"]),
        ("80000/zero_pp_rank_0_mp_rank_00_optim_states.pt", {}, ["an optimizer's state, no weights: give the file"]),
        ("", {"heads": None}, ["{rank0}: the number of heads is not in the file (hidden size 48, 2 ranks): give"]),
        ("", {"heads": None}, ["possible 2, 4, 6, 8, 12, 16, 24, 48"]),
        ("", {"heads": 5}, ["{rank0}: 5 heads do not fit (hidden size 48, 2 ranks)"]),
        ("", {"heads": 3}, ["{rank0}: 3 heads do not fit"]),
        ("", {"heads": 0}, ["{rank0}: 0 heads do not fit"]),
        ("", {"heads": -24}, ["{rank0}: -24 heads do not fit"]),
    ],
)
def test_bad_options_are_refused_in_one_line(
    tmp_path: Path, state: State, path: str, options: dict[str, Any], words: list[str]
) -> None:
    files = write_megatron(tmp_path, state, 2)
    message = error_of(lambda: open_cpm(tmp_path / path, **{"heads": 24, **options}))
    for word in words:
        assert word.format(root=tmp_path, rank0=files[0]) in message


def test_likely_heads_are_named_first(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=256, n_layer=1, n_head=4, n_inner=8)
    write_megatron(tmp_path, random_state(config, np.random.default_rng(0)), 1)
    message = error_of(lambda: open_cpm(tmp_path))
    assert message.endswith("likely 2, 4, 8 (32 to 128 wide), possible 1, 2, 4, 8, 16, 32, 64, 128, 256")


def test_a_name_that_the_model_lacks_is_a_key_error(tmp_path: Path, state: State) -> None:
    write_megatron(tmp_path, state, 1)
    checkpoint = open_cpm(tmp_path, heads=24)
    for name in ("h.2.ln_1.bias", "lm_head.weight", "h.0.wte.weight"):
        with pytest.raises(KeyError):
            checkpoint.read(name, FLOAT32)


def test_reading_needs_little_memory_next_to_the_result(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=60000, n_positions=20000, n_embd=128, n_layer=1, n_head=4, n_inner=8)
    write_megatron(tmp_path, random_state(config, np.random.default_rng(0)), 2, dtype=torch.bfloat16, extras=False)
    checkpoint = open_cpm(tmp_path, heads=4)
    for name in ("wte.weight", "wpe.weight"):
        tracemalloc.start()
        try:
            found = checkpoint.read(name, FLOAT32)
            assert tracemalloc.get_traced_memory()[1] - found.nbytes < 12 << 20
        finally:
            tracemalloc.stop()


def test_checks_look_at_every_block() -> None:
    values = np.ones((3000, 1000), np.float32)  # 12 MB: three blocks
    check_finite("x", values, "here")
    other = np.array(values.T).T  # equal, with other strides
    assert same_values(values, other)
    values[2999, 5] = values[1500, 7] = np.nan
    assert not same_values(values, other)
    message = error_of(lambda: check_finite("x", values, "here"))
    assert message.startswith(
        "here: x: 2 of 3000000 values are NaN or infinite, the first at [1500, 7] of [3000, 1000]"
    )
    values[1500, 7] = 1
    assert not same_values(values, other)
    assert "the first at [2999, 5]" in error_of(lambda: check_finite("x", values, "here"))
    assert "the first at [5, 2999]" in error_of(lambda: check_finite("x", values.T, "here"))


def test_a_bad_value_of_the_source_is_not_taken_for_an_overflow() -> None:
    source = np.array([1.0, 1e6, np.nan], np.float32)
    with np.errstate(over="ignore"):
        cast = source.astype(np.float16)
    message = error_of(lambda: check_finite("x", cast, "here", [("file", source)]))
    assert message.startswith("file: x: 1 of 3 values are NaN or infinite, the first at [2]")


def test_fill_transformers_is_the_original_model(state: State) -> None:
    """The oracle of other tests against the original's maths: ``mpu/transformer.py``, on whole tensors."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    ids = torch.arange(20)[None] * 7 % 96
    x = state[WORD][ids] + state[POSITION][:20]
    mask = torch.ones(20, 20).tril()
    for i in range(CONFIG.n_layer):
        layer = f"transformer.layers.{i}"
        qkv = linear(norm(x, f"{layer}.input_layernorm"), f"{layer}.attention.query_key_value")
        q, k, v = (part.view(1, 20, 24, 2).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        scores = (q @ k.transpose(-1, -2)) / 2**0.5
        context = (scores * mask - 10000.0 * (1 - mask)).softmax(-1) @ v
        x = x + linear(context.transpose(1, 2).reshape(1, 20, 48), f"{layer}.attention.dense")
        inner = linear(norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.dense_h_to_4h")
        inner = 0.5 * inner * (1 + torch.tanh(0.7978845608028654 * inner * (1 + 0.044715 * inner * inner)))
        x = x + linear(inner, f"{layer}.mlp.dense_4h_to_h")
    expected = norm(x, "transformer.final_layernorm") @ state[WORD].t()
    with torch.no_grad():
        logits = fill_transformers(state, CONFIG)(ids).logits
    assert 3 < logits.std() < 10
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
