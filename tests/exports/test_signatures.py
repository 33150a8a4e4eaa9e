"""The signatures of the loaded SavedModel against transformers: options, forms of input, defaults, scores."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from exports.decode_state import DONATE_STATE
from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, SAMPLING_OPTIONS
from exports.saved_model import write_saved_model
from tests.conftest import INT8
from tests.helpers.loaded import CONFIG, PAD, Loaded, Tensors, matrix, random_options, random_prompts, row_of, texts
from tests.helpers.loaded import reference as cache_free
from tests.tf_model.test_beam import whole
from tf_model.config import GPT2Config
from tf_model.precision import PRECISIONS
from tokenization.special_tokens import CPM_TOKENS

PROMPTS = [[1, 2, 3, 4, 5, 6], [7], [8, 9, 10, 9, 8]]
SEEDS = [11, 12, 13]
Proto = saved_model_pb2.SavedModel


def assert_equals_reference(loaded: Loaded, result: Tensors, prompts: list[list[int]], options: Any) -> None:
    """Every row, by ``reference`` with the row's own options."""
    found = texts(result)
    for i, prompt in enumerate(prompts):
        text, logprobs = cache_free(loaded, prompt, **row_of(options, i))
        assert found[i] == text, (i, row_of(options, i))
        new = len(text) - len(prompt)
        np.testing.assert_allclose(result["logprobs"][i, :new], logprobs, atol=2e-4)
        assert (result["logprobs"][i, new:] == 0).all()
        assert result["lengths"][i] == len(text)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 1.5),
        ("no_repeat_ngram_size", 1),
        ("no_repeat_ngram_size", 2),
        ("eos_token_id", 0),
        ("eos_token_id", [0, 1]),
        ("min_new_tokens", 9),
        ("suppress_tokens", 0),
        ("suppress_tokens", [0, 1]),
        ("max_new_tokens", 3),
    ],
)
def test_greedy_options_equal_transformers_generate(loaded: Loaded, option: str, value: Any) -> None:
    """Each alone, so that it is seen to have an effect. Tokens are given by their place among those that come."""
    base: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 15}
    plain = texts(loaded("generate", PROMPTS, **base))
    come = list(
        dict.fromkeys(token for text, prompt in zip(plain, PROMPTS, strict=True) for token in text[len(prompt) :])
    )
    options = {option: value}
    if option in ("eos_token_id", "suppress_tokens"):
        options = {option: [come[i] for i in value] if isinstance(value, list) else come[value]}
    if option == "min_new_tokens":
        options["eos_token_id"] = come[:2]
    found = texts(loaded("generate", PROMPTS, **base | options))
    assert found != plain
    if isinstance(options.get("suppress_tokens"), int):
        options["suppress_tokens"] = [options["suppress_tokens"]]
    config = transformers.GenerationConfig(do_sample=False, pad_token_id=PAD, **{"max_new_tokens": 15} | options)
    for prompt, text in zip(PROMPTS, found, strict=True):
        assert loaded.theirs.generate(**whole(prompt), generation_config=config)[0].tolist() == text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"typical_p": 0.5},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    ],
    ids=str,
)
def test_sampling_options_equal_transformers_warpers(loaded: Loaded, options: dict[str, float]) -> None:
    rows = {name: [value] * 3 for name, value in options.items()} | {"seed": SEEDS}
    result = loaded("generate", PROMPTS, **options, seed=SEEDS)
    assert_equals_reference(loaded, result, PROMPTS, rows)
    if options:
        assert texts(result) != texts(loaded("generate", PROMPTS, seed=SEEDS))


@pytest.mark.parametrize(("tokens", "line"), [(0, -1), (5, -1), (32, -1), (20, 32)])
def test_windows_equal_the_reference(loaded: Loaded, tokens: int, line: int) -> None:
    prompts = [*PROMPTS, [*range(45)]]
    options: dict[str, Any] = {"temperature": [0.0, 1.0, 0.8, 1.0], "seed": [1, 2, 3, 4], "max_new_tokens": [70] * 4}
    windows = {"window_tokens": tokens, "window_line_token_id": line}
    result = loaded("generate", prompts, **options, **windows)
    assert_equals_reference(loaded, result, prompts, options | {name: [v] * 4 for name, v in windows.items()})
    assert line < 0 or texts(result) != texts(loaded("generate", prompts, window_tokens=tokens, **options))


def test_options_of_their_own_in_every_row_and_each_row_alone(loaded: Loaded) -> None:
    """16 ragged rows, greedy and sampled, against the reference and against 16 calls with one row each."""
    for seed in range(3):
        rng = np.random.default_rng([7, seed])
        prompts = random_prompts(rng, 16, 40)
        options = random_options(rng, 16)
        result = loaded("generate", prompts, **options)
        assert_equals_reference(loaded, result, prompts, options)
        for i, prompt in enumerate(prompts):
            alone = loaded("generate", [prompt], **{name: values[i : i + 1] for name, values in options.items()})
            assert texts(alone) == [texts(result)[i]], (seed, i)
            new = alone["logprobs"].shape[1]
            np.testing.assert_allclose(result["logprobs"][i, :new], alone["logprobs"][0], atol=1e-3)


@pytest.mark.parametrize("name", ["generate", "beam_search"])
def test_padding_is_irrelevant(loaded: Loaded, name: str) -> None:
    """Its ids, even if the vocabulary has no such token, and its width."""
    options = {"seed": SEEDS} if name == "generate" else {}
    first = loaded(name, PROMPTS, **options)
    for padding, width in ((PAD, 0), (-1, 0), (2**62, 7), (3, 300)):
        other = loaded(name, PROMPTS, padding=padding, width=width, **options)
        n = first["sequences"].shape[-1]
        np.testing.assert_array_equal(other["sequences"][..., :n], first["sequences"])
        assert (other["sequences"][..., n:] == PAD).all()
        np.testing.assert_array_equal(other["lengths"], first["lengths"])


def test_one_value_in_every_form(loaded: Loaded) -> None:
    values = {"max_new_tokens": 9, "temperature": 0.8, "top_k": 9, "repetition_penalty": 1.2, "seed": 4}
    first = texts(loaded("generate", PROMPTS, **values))
    for form in (lambda v: [v], lambda v: [v] * 3, lambda v: [[v]] * 3, lambda v: [[v]]):
        assert texts(loaded("generate", PROMPTS, **{name: form(value) for name, value in values.items()})) == first
    signature = loaded.model.signatures["generate"]
    plain = {
        name: o.default if not isinstance(o.default, tuple) else -1
        for name, o in {**COMMON_OPTIONS, **SAMPLING_OPTIONS}.items()
    }
    prompts = {"input_ids": matrix(PROMPTS, 0), "input_lengths": [6, 1, 5]}
    result = signature(**loaded.tensors("generate", {**plain, **prompts, **values}))
    assert texts({name: tensor.numpy() for name, tensor in result.items()}) == first


@pytest.mark.parametrize("name", ["eos_token_id", "suppress_tokens"])
def test_lists_of_tokens_in_every_form(loaded: Loaded, name: str) -> None:
    new = texts(loaded("generate", PROMPTS[:1], temperature=0.0))[0][len(PROMPTS[0]) :]
    one, two = [token for i, token in enumerate(new) if token not in new[:i]][2:4]

    def run(tokens: Any, rows: int = 2) -> list[list[int]]:
        return texts(loaded("generate", PROMPTS[:1] * rows, temperature=0.0, **{name: tokens}))

    assert run(one) == run([one]) == run([[one]]) == run([[one], [one]]) == run([[-1, one]])
    assert run([one, two]) == run([[one, two]]) == run([[one, two], [two, one]])
    assert run(-1) == run([]) == run([[-1, -1]]) == run(np.zeros((2, 0)))
    assert run([[one], [-1]]) == [run(one)[0], run(-1)[0]]
    assert run([[one], [two]]) == [run(one)[0], run(two)[0]]
    assert len({tuple(run(tokens, 1)[0]) for tokens in ([-1], [one], [two])}) == 3


def test_shapes_and_rows_without_new_tokens(loaded: Loaded) -> None:
    result = loaded("generate", PROMPTS, width=10, max_new_tokens=[4, 0, 2])
    assert [x.shape for x in (result["sequences"], result["lengths"], result["logprobs"])] == [(3, 14), (3,), (3, 4)]
    assert result["lengths"].tolist() == [10, 1, 7]
    result = loaded("generate", PROMPTS, max_new_tokens=0)
    assert texts(result) == PROMPTS
    assert result["logprobs"].shape == (3, 0)


def test_the_loop_ends_with_the_last_row(loaded: Loaded) -> None:
    """300,000 tokens would take minutes: only a loop that ends leaves the time for it."""
    plain = texts(loaded("generate", PROMPTS, temperature=0.0))
    ends = [[text[len(prompt) + i]] for i, (text, prompt) in enumerate(zip(plain, PROMPTS, strict=True))]
    started = time.monotonic()
    result = loaded("generate", PROMPTS, temperature=0.0, max_new_tokens=300_000, eos_token_id=ends)
    assert time.monotonic() - started < 5
    assert all(text[-1] == end for text, (end,) in zip(texts(result), ends, strict=True))


def test_a_text_ends_where_no_token_is_allowed(loaded: Loaded) -> None:
    """By a list of all tokens, or when every token has come once; greedy and sampled, rows that go on beside it."""
    everything = [[*range(CONFIG.vocab_size)], [*range(CONFIG.vocab_size)], [-1] * CONFIG.vocab_size]
    result = loaded("generate", PROMPTS, suppress_tokens=everything, temperature=[0.0, 1.0, 1.0])
    assert result["lengths"].tolist() == [6, 1, 25]
    assert texts(result)[:2] == PROMPTS[:2]
    result = loaded("generate", [[1, 2]] * 2, no_repeat_ngram_size=1, temperature=[0.0, 1.0], max_new_tokens=80)
    for text in texts(result):
        assert sorted(text) == [*range(CONFIG.vocab_size)]


def test_extreme_values_are_what_they_mean(loaded: Loaded) -> None:
    """No infinite loop, no overflow."""
    rows: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}
    plain = texts(loaded("generate", PROMPTS, **rows))
    assert texts(loaded("generate", PROMPTS, **{**rows, "temperature": 1e-30})) == plain
    largest = 2**31 - 1
    off = {"no_repeat_ngram_size": largest, "top_k": largest, "min_new_tokens": largest}
    assert texts(loaded("generate", PROMPTS, **rows, **off)) == plain
    assert loaded("generate", PROMPTS, seed=2**63 - 1)["lengths"].tolist() == [26, 21, 25]
    rows = {"repetition_penalty": [1e37] * 3, "temperature": [0.0, 1.0, 1.0], "seed": SEEDS}
    assert_equals_reference(loaded, loaded("generate", PROMPTS, **rows), PROMPTS, rows)
    # A token of the text whose logit is positive becomes certain: more would be NaN, and then any token at all.
    certain = texts(loaded("generate", PROMPTS[:1], repetition_penalty=1e-37, seed=1))[0]
    assert set(certain) == set(PROMPTS[0])


def test_random_seeds(loaded: Loaded) -> None:
    drawn = [tuple(text) for _ in range(2) for text in texts(loaded("generate", [[1]] * 4, temperature=2.0))]
    assert len(set(drawn)) == 8


def proto(folder: Path) -> meta_graph_pb2.MetaGraphDef:
    return Proto.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]


def test_defaults_are_in_the_signatures(loaded: Loaded) -> None:
    """TensorFlow Serving feeds them for inputs that a request leaves out."""
    sampled = {**COMMON_OPTIONS, **SAMPLING_OPTIONS}
    options: dict[str, Any] = {
        "generate": sampled,
        "decode": {**sampled, **DONATE_STATE},
        "beam_search": {**COMMON_OPTIONS, **BEAM_OPTIONS},
    }
    for name, table in options.items():
        defaults = proto(loaded.folder).signature_def[name].defaults
        assert defaults.keys() == table.keys()
        for key, option in table.items():
            value = tf.make_ndarray(defaults[key])
            expected = -1 if isinstance(option.default, tuple) else option.default
            if key == "eos_token_id":
                expected = [7]  # CPM's, as there is no tokenizer
            assert value.tolist() == pytest.approx(expected), (name, key)
    assert proto(loaded.folder).signature_def["prefill"].defaults.keys() == {
        "capacity", "window_tokens", "window_line_token_id",
    }  # fmt: skip
    assert proto(loaded.folder).signature_def["serving_default"].defaults.keys() == {"length", "top_p", "temperature"}


def test_a_server_that_fills_in_the_defaults(loaded: Loaded) -> None:
    """The loader of TensorFlow Serving; a request in its row format, each row a prompt and a seed."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(loaded.folder))

        def serve(name: str, request: dict[str, Any]) -> Tensors:
            signature = graph.signature_def[name]
            feeds = {key: tf.make_ndarray(value) for key, value in signature.defaults.items()} | request
            outputs = {key: info.name for key, info in signature.outputs.items()}
            return session.run(outputs, {signature.inputs[key].name: value for key, value in feeds.items()})

        prompts = {"input_ids": matrix(PROMPTS, 0), "input_lengths": np.array([6, 1, 5])}
        found = serve("generate", {**prompts, "seed": np.array(SEEDS)})
        assert_equals_reference(loaded, found, PROMPTS, {"seed": SEEDS, "eos_token_id": [[7]] * 3})
        beams = {"num_return_sequences": np.array([2] * 3), "num_beams": np.array([3] * 3)}
        for outputs in (
            found,
            serve("beam_search", prompts | beams),
            serve("score", prompts),
        ):
            assert {len(value) for value in outputs.values()} == {3}


@pytest.mark.parametrize("early", [0, 1, 2])
def test_beam_search_equals_transformers(loaded: Loaded, early: int) -> None:
    options: dict[str, Any] = {
        "num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 12, "length_penalty": 0.7,
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 2,
    }  # fmt: skip
    lists = {"eos_token_id": [22, 7, 45], "suppress_tokens": [32, 2]}
    result = loaded("beam_search", PROMPTS, early_stopping=early, **options, **lists)
    assert result["sequences"].shape == (3, 3, 18)
    for i, prompt in enumerate(PROMPTS):
        config = transformers.GenerationConfig(
            do_sample=False, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
            early_stopping=[False, True, "never"][early], **options, **lists,
        )  # fmt: skip
        theirs = loaded.theirs.generate(**whole(prompt), generation_config=config)
        lengths = (len(prompt) + (theirs.beam_indices >= 0).sum(dim=1)).tolist()
        assert result["lengths"][i].tolist() == lengths
        for row, expected, length in zip(result["sequences"][i], theirs.sequences, lengths, strict=True):
            assert row[:length].tolist() == expected[:length].tolist()
            assert (row[length:] == PAD).all()
        np.testing.assert_allclose(result["scores"][i], theirs.sequences_scores.numpy(), atol=1e-4)


def test_score_equals_transformers(loaded: Loaded) -> None:
    """One token, all positions, and more tokens in all than are scored at a time."""
    n = CONFIG.n_positions
    rng = np.random.default_rng(3)
    for lengths, width in (([1], 1), ([n], n), ([1, n, 7, 2], n), (rng.integers(1, n + 1, 40), n), ([3, 1], 50)):
        rows = [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]
        found = loaded("score", rows, padding=-9, width=width)["logprobs"]
        assert found.shape == (len(rows), width)
        for row, logprobs in zip(rows, found, strict=True):
            expected = torch.log_softmax(loaded.logits(row).double(), dim=-1)[torch.arange(len(row) - 1), row[1:]]
            np.testing.assert_allclose(logprobs[1 : len(row)], expected, atol=2e-4)
            assert logprobs[0] == 0
            assert (logprobs[len(row) :] == 0).all()


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16", INT8, "int8-avx2"])
def test_other_types_run_every_signature(dtype: str, tmp_path: Path) -> None:
    half = Loaded(tmp_path, dtype)
    state = half("prefill", PROMPTS)
    state.pop("logits")
    for name, options in (
        ("generate", {"max_new_tokens": 40}), ("beam_search", {}), ("score", {}), ("prefill", {}), ("decode", state),
    ):  # fmt: skip
        for key, value in half(name, PROMPTS, **options).items():
            assert np.isfinite(value.astype(np.float64)).all(), (name, key)
            assert key != "cache" or value.dtype.name == PRECISIONS[dtype].compute
    logits = half("decode", PROMPTS, max_new_tokens=0, **state)["logits"]
    for prompt, row in zip(PROMPTS, logits, strict=True):
        expected = half.logits(prompt)[-1].numpy()
        assert np.abs(row - expected).max() < (0.2 if "int8" in dtype else 0.05) * (expected.max() - expected.min())


@pytest.mark.parametrize("dtype", [INT8, "int8-avx2"])
def test_a_row_of_int8_does_not_depend_on_its_neighbours(dtype: str, tmp_path: Path) -> None:
    """Drawn by chance, ragged, each with its own scale of activations: the same tokens alone as among others."""
    int8, rng = Loaded(tmp_path, dtype), np.random.default_rng(5)
    prompts = random_prompts(rng, 12, 12)
    options = {"max_new_tokens": 18, "temperature": 1.0}
    together = texts(int8("generate", prompts, seed=list(range(12)), **options))
    for row, prompt in enumerate(prompts):
        assert texts(int8("generate", [prompt], seed=[row], **options)) == [together[row]]
    assert len({tuple(text) for text in together}) == 12


def test_threads_do_not_meet(loaded: Loaded) -> None:
    requests = [{"seed": SEEDS, "max_new_tokens": 60}, {"seed": [5, 6, 7], "temperature": 0.9, "max_new_tokens": 60}]
    alone = [texts(loaded("generate", PROMPTS, **request)) for request in requests]
    found: list[list[Any]] = [[], []]

    def work(i: int) -> None:
        found[i].extend(texts(loaded("generate", PROMPTS, **requests[i])) for _ in range(15))

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [[alone[0]] * 15, [alone[1]] * 15]


def test_the_forward_pass_is_in_the_graph_once(loaded: Loaded, tmp_path: Path) -> None:
    """A block's attention has two products of activations and an exponential, in two ways: the graph has no more, but
    for the exponential of sampling."""
    nodes = []
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=4, n_head=2)
    shapes = config.tensor_shapes()
    write_saved_model(tmp_path, config, "float32", CPM_TOKENS, lambda name, dtype: np.zeros(shapes[name], dtype))
    layers = (CONFIG.n_layer, config.n_layer)
    for folder in (loaded.folder, tmp_path):
        graph = proto(folder).graph_def
        every = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        ops = Counter(node.op for node in every)
        assert (ops["BatchMatMulV2"], ops["BatchMatMulV3"], ops["Exp"], ops["Tanh"]) == (2, 2, 3, 1)
        nodes.append(len(every))
    per_layer = (nodes[1] - nodes[0]) / (layers[1] - layers[0])
    assert per_layer <= 5
    assert nodes[1] <= 4260


def test_a_float32_product_and_its_bias_do_not_become_one_op(loaded: Loaded) -> None:
    """TensorFlow without oneDNN would make them one, and take ten times as long for a single token."""
    biased = []
    for function in proto(loaded.folder).graph_def.library.function:
        ops = {node.name: node.op for node in function.node_def}
        biased += [ops[node.input[0].split(":")[0]] for node in function.node_def if node.op == "BiasAdd"]
    assert biased == ["Transpose"] * 4
