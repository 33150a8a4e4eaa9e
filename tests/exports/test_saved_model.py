"""The exported SavedModel, against transformers with the same weights (filled by the tests' own code)."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from convert.__main__ import main
from tests.helpers import light
from tests.helpers.checkpoints import fill_transformers, random_state, write_megatron
from tests.tf_model.test_sampling import chi_squared_p_value
from tf_model.config import GPT2Config

CONFIG = GPT2Config(vocab_size=96, n_positions=64, n_embd=48, n_layer=3, n_head=12)


Main = Callable[[list[str]], int]


class Exported(NamedTuple):
    folder: Path
    oracle: transformers.GPT2LMHeadModel
    model: Any

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return self.model.signatures["logits"](input_ids=tf.constant(ids, tf.int64))["logits"].numpy()

    def oracle_logits(self, ids: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.oracle(torch.from_numpy(ids)).logits.numpy()

    def sample(self, ids: np.ndarray, length: Any, top_p: Any, temperature: Any) -> np.ndarray:
        signature = self.model.signatures["serving_default"]
        outputs = signature(
            inp=tf.constant(ids, tf.int64),
            length=tf.constant(length, tf.int64),
            top_p=tf.constant(top_p, tf.float32),
            temperature=tf.constant(temperature, tf.float32),
        )
        return outputs["output_0"].numpy()


def export(
    folder: Path, p: int = 2, dtype: str = "float32", config: GPT2Config = CONFIG, main: Main = main, **layout: Any
) -> Exported:
    state = random_state(config, np.random.default_rng(p))
    write_megatron(folder / "checkpoint", state, p, **layout)
    arguments = ["--checkpoint", str(folder / "checkpoint"), "--output", str(folder / "model"), "--dtype", dtype]
    assert main(["pytorch-to-tf", *arguments, "--heads", str(config.n_head), "--quiet"]) == 0
    model = tf.saved_model.load(str(folder / "model"))
    return Exported(folder / "model", fill_transformers(state, config), model)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("p2"))


def ids_of(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, CONFIG.vocab_size, (batch, size))


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_logits_are_the_originals(p: int, tmp_path: Path) -> None:
    """float32: within 1e-4 at every length. erf gelu costs 2e-3, an unmerged bias far more."""
    exported = export(tmp_path, p, main=light.main)
    for size in range(1, CONFIG.n_positions + 1):
        ids = ids_of(2, size)
        expected = exported.oracle_logits(ids)
        assert 3 < expected.std() < 30  # logits of the order of 10: the bound below means something
        np.testing.assert_allclose(exported.logits(ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("read", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 20, 63))])
def test_texts_that_are_read_in_pieces(read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exports.shared_functions.PREFILL_CHUNK", read)
    exported = export(tmp_path)
    for size in (1, 6, 7, 8, 21, CONFIG.n_positions):
        ids = ids_of(2, size)
        np.testing.assert_allclose(exported.logits(ids), exported.oracle_logits(ids), atol=1e-4, rtol=0)
    ids, lengths = ids_of(3, 30), np.array([30, 1, 17])
    found = exported.model.score(tf.constant(ids, tf.int64), tf.constant(lengths, tf.int64))["logprobs"].numpy()
    logits = exported.oracle_logits(ids).astype(np.float64)
    for row, length, text, scores in zip(logits, lengths, ids, found, strict=True):
        logprobs = row - np.log(np.exp(row).sum(axis=-1, keepdims=True))
        expected = [0, *(logprobs[i - 1, text[i]] for i in range(1, length)), *[0] * (30 - length)]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_half_types(dtype: str, tmp_path: Path) -> None:
    """Finite everywhere, and within 2 % of the logits' range."""
    exported = export(tmp_path, 2, dtype)
    for size in (1, 2, 7, CONFIG.n_positions):
        ids = ids_of(3, size)
        expected, found = exported.oracle_logits(ids), exported.logits(ids)
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= 0.02 * (expected.max() - expected.min())
    text = exported.sample(ids_of(2, 5), 20, 0.9, 1.0)
    assert text.shape == (2, 25)
    weights = {**exported.model.weights, **exported.model.stacks}
    assert {w.dtype.name for name, w in weights.items() if "ln_" in name} == {"float32"}
    assert {w.dtype.name for name, w in weights.items() if "ln_" not in name} == {dtype}


def test_greedy_text_is_the_originals(exported: Exported) -> None:
    for size in (1, 5, 14):
        ids = ids_of(4, size)
        with torch.inference_mode():
            expected = exported.oracle.generate(
                torch.from_numpy(ids), attention_mask=torch.ones(ids.shape), do_sample=False,
                max_new_tokens=50, pad_token_id=0,
            ).numpy()  # fmt: skip
        for temperature in (0.0, 1e-6):
            np.testing.assert_array_equal(exported.sample(ids, 50, 1.0, temperature), expected)
        np.testing.assert_array_equal(exported.sample(ids, 50, 0.0, 1.0), expected)


def test_empirical_distribution(exported: Exported) -> None:
    """20,000 draws with top_p = temperature = 1 against the softmax of transformers' logits."""
    prompt = ids_of(1, 6)
    drawn = exported.sample(np.repeat(prompt, 20_000, axis=0), 1, 1.0, 1.0)[:, -1]
    logits = exported.oracle_logits(prompt)[0, -1].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    expected = 20_000 * probabilities / probabilities.sum()
    common = expected >= 5  # the test's approximation needs it; the rest is one class
    counts = np.bincount(drawn, minlength=CONFIG.vocab_size)
    assert common.sum() >= 5
    assert (
        chi_squared_p_value(
            np.r_[counts[common], counts[~common].sum()], np.r_[expected[common], max(expected[~common].sum(), 1e-9)]
        )
        > 1e-6  # the seeds are new in every run: a bound that a right model fails once in a million runs
    )


def test_top_p_keeps_the_token_that_crosses(exported: Exported) -> None:
    prompt = ids_of(1, 6)
    logits = exported.oracle_logits(prompt)[0, -1].astype(np.float64)
    order = np.argsort(-logits)
    cumulated = np.cumsum(np.exp(logits[order] - logits.max())) / np.exp(logits - logits.max()).sum()
    for kept in (1, 2, 4):
        top_p = (cumulated[kept - 1] + (cumulated[kept - 2] if kept > 1 else 0)) / 2  # between kept - 1 and kept
        drawn = exported.sample(np.repeat(prompt, 5_000, axis=0), 1, top_p, 1.0)[:, -1]
        assert set(drawn) == set(order[:kept])


def test_inputs_of_every_shape(exported: Exported) -> None:
    """Scalars, one value, one value per row (TF Serving's row format), and plain Python numbers."""
    ids = ids_of(3, 4)
    greedy = exported.sample(ids, 5, 1.0, 0.0)
    assert greedy.shape == (3, 9)
    np.testing.assert_array_equal(exported.sample(ids, [5], [1.0], [0.0]), greedy)
    np.testing.assert_array_equal(exported.sample(ids, [5, 5, 5], [1.0] * 3, [0.0] * 3), greedy)
    signature = exported.model.signatures["serving_default"]
    plain = signature(inp=tf.constant(ids, tf.int64), length=5, top_p=1.0, temperature=0.0)["output_0"]
    np.testing.assert_array_equal(plain, greedy)
    assert plain.dtype == tf.int64
    mixed = exported.sample(ids, [5, 2, 0], [1.0, 0.5, 1.0], [0.0, 0.0, 1.0])
    np.testing.assert_array_equal(mixed[0], greedy[0])
    np.testing.assert_array_equal(mixed[1], [*greedy[1, :6], 5, 5, 5])
    np.testing.assert_array_equal(mixed[2], [*ids[2], 5, 5, 5, 5, 5])
    np.testing.assert_array_equal(exported.sample(ids, 0, 1.0, 1.0), ids)


def test_draws_differ_between_calls_and_rows(exported: Exported) -> None:
    rows = [tuple(row) for _ in range(2) for row in exported.sample(np.ones((8, 2)), 12, 1.0, 50.0)]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": -1}, "length: expected 0 to"),
        ({"length": 61}, "exceed the 64 positions of the model"),
        ({"length": [1, 2]}, "length must be one value or one per row"),
        ({"top_p": 1.5}, "top_p: expected 0 to 1; found"),
        ({"top_p": float("nan")}, "top_p: expected 0 to 1; found"),
        ({"temperature": -0.1}, "temperature: expected 0 or more; found"),
        ({"temperature": float("inf")}, "temperature: expected 0 or more; found"),
        ({"inp": [[1, 2, 3, 96]]}, r"outside the vocabulary \(0 to 95\)"),
        ({"inp": [[1, 2, 3, -1]]}, "outside the vocabulary"),
        ({"inp": np.zeros((1, 0))}, "needs at least one token"),
        ({"inp": np.zeros((0, 3))}, "needs at least one token"),
    ],
)
def test_bad_requests(exported: Exported, change: dict[str, Any], words: str) -> None:
    request = {"inp": [[1, 2, 3, 4]], "length": 3, "top_p": 0.9, "temperature": 0.9, **change}
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        exported.sample(request["inp"], request["length"], request["top_p"], request["temperature"])


def test_too_many_tokens_for_logits(exported: Exported) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="64 positions"):
        exported.logits(ids_of(1, 65))


def test_folder(exported: Exported) -> None:
    names = {str(file.relative_to(exported.folder)) for file in exported.folder.rglob("*") if file.is_file()}
    assert names == {
        "assets/config.json", "assets/generation_config.json", "fingerprint.pb", "saved_model.pb",
        "variables/variables.data-00000-of-00001", "variables/variables.index",
        "assets.extra/manifest.json", "assets.extra/README.md",
    }  # fmt: skip
    config = json.loads((exported.folder / "assets/config.json").read_text())
    assert GPT2Config.from_dict(config) == CONFIG
    assert transformers.GPT2Config(**config).n_embd == 48
    generation = json.loads((exported.folder / "assets/generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (7, 5)


def test_weights_are_variables_and_the_graph_is_small(exported: Exported) -> None:
    graph = (exported.folder / "saved_model.pb").stat().st_size
    weights = sum(file.stat().st_size for file in (exported.folder / "variables").iterdir())
    assert weights >= 4 * CONFIG.parameter_count
    assert graph < 1_500_000
    assert len(exported.model.weights) == 4
    assert [weights.shape[0] for weights in exported.model.stacks.values()] == [CONFIG.n_layer] * 12


def test_session_loader_reads_it_too(exported: Exported) -> None:
    """The loader of TensorFlow 1 and of TF Serving finds the weights by the names in the graph, not by its objects."""
    ids = ids_of(1, 5)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(exported.folder))
        signature = graph.signature_def["logits"]
        found = session.run(signature.outputs["logits"].name, {signature.inputs["input_ids"].name: ids})
    np.testing.assert_allclose(found, exported.oracle_logits(ids), atol=1e-4, rtol=0)


def test_the_graph_needs_no_xla_and_no_foreign_ops(exported: Exported) -> None:
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    proto = saved_model_pb2.SavedModel.FromString((exported.folder / "saved_model.pb").read_bytes())
    graph = proto.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    functions = {function.signature.name for function in graph.library.function}
    assert not [n.op for n in nodes if n.op not in functions and op_def_registry.get(n.op) is None]
    for attributes in [*(f.attr for f in graph.library.function), *(n.attr for n in nodes)]:
        assert not attributes["_XlaMustCompile"].b
    assert not [n.op for n in nodes if "Xla" in n.op]


def test_no_weight_is_copied_when_it_is_read(exported: Exported) -> None:
    """A gather from a variable switches it to copying at every later read: 92 MB per token for CPM-distill's table."""
    from tensorflow.core.protobuf import saved_model_pb2

    graph = saved_model_pb2.SavedModel.FromString((exported.folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    functions = graph.graph_def.library.function
    assert not [node.op for function in functions for node in function.node_def if node.op == "ResourceGather"]


@pytest.mark.parametrize("library", ["tensorflow_hub", pytest.param("tensorflow.saved_model", marks=pytest.mark.slow)])
def test_loads_where_this_project_is_not(exported: Exported, library: str, tmp_path: Path) -> None:
    code = f"""
        import sys
        class Block:
            def find_spec(self, name, *rest):
                if name.split(".")[0] in ("convert", "tf_model", "tokenization", "exports", "inference", "support"):
                    raise ImportError(name)
        if "{library}" == "tensorflow.saved_model":
            sys.meta_path.insert(0, Block())
        import tensorflow as tf
        if "{library}" == "tensorflow_hub":
            import tensorflow_hub
            load = tensorflow_hub.load
        else:
            load = tf.saved_model.load
        sampled = load({str(exported.folder)!r}).signatures["serving_default"](
            inp=tf.constant([[1, 2, 3]], tf.int64), length=tf.constant(4, tf.int64),
            top_p=tf.constant(0.9), temperature=tf.constant(0.9))["output_0"]
        assert sampled.shape == (1, 7), sampled.shape
        assert not set(sys.modules) & {{"convert", "tf_model", "tokenization", "exports", "inference", "support"}}
        print("loaded")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert "loaded" in result.stdout, result.stderr


def test_the_snippet_of_cpm_lm_tf2_runs_unchanged(tmp_path: Path) -> None:
    """Its README's Python, with its tokenizer file replaced by ours under the same name and constructor."""
    from tests.conftest import shared

    readme = shared("docs/sources/004-cpm-lm-tf2-readme.txt").read_text("utf-8")
    snippet = readme.split("```python\n")[1].split("```")[0]
    vocabulary = shared("vocab/cpm")
    config = GPT2Config(vocab_size=30000, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    state = random_state(config, np.random.default_rng(0))
    write_megatron(tmp_path / "checkpoint", state, 2)
    assert main(
        ["pytorch-to-tf", "--checkpoint", str(tmp_path / "checkpoint"), "--tokenizer", str(vocabulary), "--heads", "2",
         "--output", str(tmp_path / "cpm-lm-tf2_v2"), "--quiet"]
    ) == 0  # fmt: skip
    (tmp_path / "CPM-Generate").mkdir()
    (tmp_path / "CPM-Generate" / "bpe_3w_new").symlink_to(vocabulary)
    (tmp_path / "gpt2_tokenizer.py").write_text(
        "from tokenization import CPMTokenizer\n"
        "def GPT2Tokenizer(vocab_file, merges_file, model_file):\n"
        "    return CPMTokenizer(model_file)\n"
    )
    (tmp_path / "snippet.py").write_text(snippet, "utf-8")
    result = subprocess.run(
        [sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("-" * 20) == 3
    assert result.stdout.count("默写英文:\n狗dog\n猫cat\n鸟") == 3
