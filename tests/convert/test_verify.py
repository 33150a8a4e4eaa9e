"""``verify`` and its reference: right conversions pass, broken ones are caught, and no code is shared."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from convert import parallel_reference
from convert.__main__ import main
from convert.checkpoint import Checkpoint
from convert.errors import ConvertError
from convert.formats import megatron
from convert.formats.megatron import MegatronCheckpoint, open_megatron
from convert.parallel_reference import MegatronReference
from convert.parity import TOLERANCES, Comparison, ParityReport, VerificationError
from convert.sharding import COLUMN, QKV, Split, merge
from convert.verify import random_prompts, verify
from exports.assets import CPM_TOKENS, write_assets
from exports.saved_model import write_saved_model
from tests.checkpoints import fill_transformers, random_state, write_megatron
from tests.conftest import ROOT
from tf_model import layers
from tf_model.config import GPT2Config
from tf_model.storage import DTYPES
from tokenization import CPMTokenizer

CONFIG = GPT2Config(vocab_size=96, n_positions=40, n_embd=48, n_layer=3, n_head=12)
STATE = random_state(CONFIG, np.random.default_rng(0))


def open_checkpoint(root: Path) -> Checkpoint:
    return open_megatron(root, n_head=CONFIG.n_head)


def convert(root: Path, folder: Path, dtype: str = "float32") -> Path:
    """The SavedModel of the checkpoint in ``root``, written as ``pytorch-to-tf`` does."""
    checkpoint = open_checkpoint(root)
    folder.mkdir()
    write_saved_model(folder, checkpoint.config, dtype, CPM_TOKENS, checkpoint.read)
    write_assets(folder / "assets", checkpoint.config, dtype, CPM_TOKENS, None)
    return folder


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same model in p shards, by p."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for p in (1, 2, 3, 4):
        write_megatron(folder / f"p{p}", STATE, p, legacy=p == 3, key="model" if p == 4 else "module", extras=False)
    return {p: folder / f"p{p}" for p in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, roots: dict[int, Path]) -> dict[str, Path]:
    """A right conversion of the two shards, by dtype."""
    folder = tmp_path_factory.mktemp("models")
    return {dtype: convert(roots[2], folder / dtype, dtype) for dtype in DTYPES}


class TestReference:
    @pytest.mark.parametrize("p", [1, 2, 3, 4])
    def test_is_transformers(self, p: int, roots: dict[int, Path]) -> None:
        reference = MegatronReference(open_checkpoint(roots[p]).files, CONFIG.n_head)
        oracle = fill_transformers(STATE, CONFIG)
        prompts = random_prompts(CONFIG)
        assert [len(prompt) for prompt in prompts] == [1, 2, 20, 33, 40]
        for prompt, found in zip(prompts, reference.logits_of(prompts), strict=True):
            with torch.inference_mode():
                expected = oracle(torch.tensor([prompt])).logits[0]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(reference.logits(prompts[3]), reference.logits_of(prompts)[3], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("legacy", [False, True])
    def test_types_of_weights(self, dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
        files = write_megatron(tmp_path / "c", STATE, 2, dtype=dtype, legacy=legacy, extras=False)
        oracle = fill_transformers({name: tensor.to(dtype) for name, tensor in STATE.items()}, CONFIG)
        with torch.inference_mode():
            expected = oracle(torch.tensor([[5, 95, 48, 0]])).logits[0]
        found = MegatronReference(files, CONFIG.n_head).logits([5, 95, 48, 0])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    def test_prefixes(self, tmp_path: Path) -> None:
        def wrap(rank: int, content: dict[str, Any]) -> None:
            content["module"] = {f"module.module.{name}": tensor for name, tensor in content["module"].items()}

        plain = write_megatron(tmp_path / "plain", STATE, 2, extras=False)
        wrapped = write_megatron(tmp_path / "wrapped", STATE, 2, edit=wrap)
        found = MegatronReference(wrapped, 12).logits([1, 2, 3])
        assert torch.equal(found, MegatronReference(plain, 12).logits([1, 2, 3]))

    def test_many_prompts_go_in_groups(
        self, roots: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However they are grouped and cut in blocks; the shares of progress add up to the whole."""
        monkeypatch.setattr(parallel_reference, "_GROUP", 30)
        monkeypatch.setattr(parallel_reference, "_ROWS", 7)
        monkeypatch.setattr(parallel_reference, "_BLOCK", 48 * 10)
        files, prompts, shares = open_checkpoint(roots[2]).files, random_prompts(CONFIG), []
        parallel_reference.spool(files, CONFIG.n_head, prompts, tmp_path / "logits", shares.append)
        monkeypatch.undo()
        expected = torch.cat(MegatronReference(files, CONFIG.n_head).logits_of(prompts)).numpy()
        found = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, CONFIG.vocab_size)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        assert len(shares) == 3 * CONFIG.n_layer
        assert sum(shares) == pytest.approx(1)

    def test_shares_no_code(self) -> None:
        """Nothing but the ``.pt`` reader, and what that needs."""
        seen, waiting = set(), ["convert.parallel_reference"]
        while waiting:
            name = waiting.pop()
            seen.add(name)
            tree = ast.parse((ROOT / (name.replace(".", "/") + ".py")).read_text())
            for node in ast.walk(tree):
                found = []
                if isinstance(node, ast.Import):
                    found = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    assert node.level == 0
                    found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                assert not {module.split(".")[0] for module in found} & {"tensorflow", "tf_model", "exports"}
                modules = {
                    m for m in found if m.startswith("convert.") and (ROOT / f"{m.replace('.', '/')}.py").exists()
                }
                waiting += modules - seen
        assert seen == {
            "convert.parallel_reference", "convert.errors", "convert.torch_file", "convert.torch_tensors",
            "convert.pickle_machine", "convert.pickle_values",
        }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1, 2, 4])
def test_right_conversions_pass(p: int, dtype: str, roots: dict[int, Path], tmp_path: Path) -> None:
    report = verify(open_checkpoint(roots[p]), convert(roots[p], tmp_path / "model", dtype))
    assert report.passed
    report.check(tmp_path)
    assert [prompt.tokens for prompt in report.prompts] == [1, 2, 20, 33, 40]
    assert report.dtype == dtype
    assert report.max_abs_diff is not None
    assert report.kl is not None
    assert report.top1 == 1.0
    if dtype == "float32":  # an order of magnitude below what is allowed
        assert report.max_abs_diff < 4e-5
        assert report.kl < 1e-9


def test_half_precision_checkpoints(tmp_path: Path) -> None:
    write_megatron(tmp_path / "c", STATE, 2, dtype=torch.float16)
    assert verify(open_checkpoint(tmp_path / "c"), convert(tmp_path / "c", tmp_path / "m")).passed


Read = Callable[[MegatronCheckpoint, str, Any], np.ndarray]
right_read = MegatronCheckpoint.read


def thirds_in_another_order(self: MegatronCheckpoint, name: str, dtype: Any) -> np.ndarray:
    value = right_read(self, name, dtype)
    return np.concatenate(np.split(value, 3)[::-1]) if "c_attn" in name else value


def layers_swapped(self: MegatronCheckpoint, name: str, dtype: Any) -> np.ndarray:
    other = {"h.0.": "h.1.", "h.1.": "h.0."}.get(name[:4], name[:4])
    return right_read(self, other + name[4:], dtype)


def positions_shifted(self: MegatronCheckpoint, name: str, dtype: Any) -> np.ndarray:
    value = right_read(self, name, dtype)
    return np.roll(value, 1, axis=0) if name == "wpe.weight" else value


def bias_added_by_each_rank(self: MegatronCheckpoint, name: str, dtype: Any) -> np.ndarray:
    value = right_read(self, name, dtype)
    return value * dtype.type(2) if name.endswith("c_proj.bias") else value


def projection_transposed(self: MegatronCheckpoint, name: str, dtype: Any) -> np.ndarray:
    value = right_read(self, name, dtype)
    return value.T.copy() if name.endswith("attn.c_proj.weight") else value


READS: list[Read] = [
    thirds_in_another_order, layers_swapped, positions_shifted, bias_added_by_each_rank, projection_transposed,
]  # fmt: skip


def plainly(tensors: str) -> Callable[[list[np.ndarray], Split, np.ndarray], None]:
    """A merge that puts the ranks' fused projections one behind the other: of one dimension (bias), or of two."""

    def merge_plainly(shards: list[np.ndarray], kind: Split, out: np.ndarray) -> None:
        wrong = kind is QKV and (out.ndim == 1 or tensors == "all")
        merge(shards, COLUMN if wrong else kind, out)

    return merge_plainly


def assert_caught(root: Path, folder: Path) -> None:
    report = verify(open_checkpoint(root), folder)
    assert not report.passed
    with pytest.raises(VerificationError, match=r"model: does not compute .* \(\d+ tokens\)"):
        report.check(folder)


@pytest.mark.parametrize(
    ("read", "dtype"),
    [*((read, "float32") for read in READS), *((read, dtype) for read in READS[:2] for dtype in DTYPES[1:])],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_broken_readers_are_caught(
    read: Read, dtype: str, roots: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MegatronCheckpoint, "read", read)
        convert(roots[2], tmp_path / "model", dtype)
    assert_caught(roots[2], tmp_path / "model")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensors", ["biases", "all"])
def test_broken_merges_are_caught(
    tensors: str, dtype: str, roots: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(megatron, "merge", plainly(tensors))  # still broken when it is verified: that does not matter
    convert(roots[2], tmp_path / "model", dtype)
    assert_caught(roots[2], tmp_path / "model")


def test_another_gelu_is_caught(roots: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form with erf differs by 0.004 in logits of 20: far below what a half type costs, far above float32."""
    monkeypatch.setitem(layers.ACTIVATION_FUNCTIONS, "gelu_new", layers.ACTIVATION_FUNCTIONS["gelu"])
    convert(roots[2], tmp_path / "model")
    assert_caught(roots[2], tmp_path / "model")


def test_another_models_weights_are_caught(models: dict[str, Path], tmp_path: Path) -> None:
    """One value of one bias, in the last layer."""
    state = dict(STATE)
    name = "transformer.layers.2.mlp.dense_h_to_4h.bias"
    state[name] = state[name].clone()
    state[name][150] += 0.05
    write_megatron(tmp_path / "c", state, 2, extras=False)
    assert not verify(open_checkpoint(tmp_path / "c"), models["float32"]).passed


def test_ranks_in_another_order_are_caught(roots: dict[int, Path], models: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(roots[2])
    checkpoint.files.reverse()
    assert not verify(checkpoint, models["float32"]).passed


class TestComparison:
    def test_against_pytorch(self) -> None:
        rng = np.random.default_rng(0)
        source = rng.normal(size=(50, 20)).astype(np.float32) * 3
        converted = source + rng.normal(size=source.shape).astype(np.float32) * 0.05
        comparison = Comparison(TOLERANCES["float16"])
        for at in range(0, 50, 13):
            comparison.add(source[at : at + 13], converted[at : at + 13])
        found = comparison.result()
        log_p, log_q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (source, converted))
        expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        assert found.kl == pytest.approx(float(expected), rel=1e-9)
        assert found.max_abs_diff == np.abs(source - converted).max()
        assert (found.low, found.high) == (source.min(), source.max())
        assert found.tolerance == pytest.approx(0.02 * (source.max() - source.min()))
        assert found.tokens == 50

    def test_the_range_includes_zero(self) -> None:
        """Logits around -100 have a float's errors of 100."""
        comparison = Comparison(TOLERANCES["float32"])
        comparison.add(*[np.linspace(-104, -99, 10, dtype=np.float32)[np.newaxis]] * 2)
        assert comparison.result().tolerance == pytest.approx(104e-5)

    def test_near_ties_agree(self) -> None:
        source = np.array([[0, 100, 99.9], [0, 100, 90]], np.float32)
        converted = np.array([[0, 99.9, 100], [0, 90, 100]], np.float32)
        comparison = Comparison(TOLERANCES["bfloat16"])
        comparison.add(source, converted)
        found = comparison.result()
        assert (found.agreeing, found.tolerance) == (1, 2.0)
        assert not found.passed

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("side", [0, 1])
    def test_what_is_not_finite_fails(self, bad: float, side: int) -> None:
        sides = [np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32)]
        sides[side][1, 2] = bad
        comparison = Comparison(TOLERANCES["float32"])
        comparison.add(*sides)
        report = ParityReport("float32", TOLERANCES["float32"], None, (comparison.result(),))
        assert not report.passed
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["prompts"][0]["max_abs_diff"] is None
        assert "not finite" in report.table()
        with pytest.raises(VerificationError, match="not finite"):
            report.check(Path("model"))


def run(root: Path, folder: Path, *options: str) -> int:
    return main(["verify", str(root), str(folder), "--heads", "12", *options])


def test_the_command(roots: dict[int, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(roots[2], models["float32"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 7
    assert out.splitlines()[-1].startswith("float32: the same logits as the checkpoint: largest difference ")


def test_json(roots: dict[int, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(roots[1], models["bfloat16"], "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["dtype"], report["seed"]) == (True, "bfloat16", 20201115)
    assert report["bounds"] == {"absolute": 1e-4, "relative": 0.02, "kl": 0.02, "top1": 0.99}
    assert [prompt["tokens"] for prompt in report["prompts"]] == [1, 2, 20, 33, 40]
    assert report["max_abs_diff"] == max(prompt["max_abs_diff"] for prompt in report["prompts"])


def test_exit_code_3(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_megatron(tmp_path / "c", random_state(CONFIG, np.random.default_rng(1)), 2, extras=False)
    assert run(tmp_path / "c", models["float32"], "--json") == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is False
    assert err.startswith(f"error: {models['float32']}: does not compute what the checkpoint does: prompt ")
    assert err.count("\n") == 1


def test_in_a_process_of_its_own(roots: dict[int, Path], models: dict[str, Path], tmp_path: Path) -> None:
    """As users run it: the reference is in another process. Here too the exit code and the one line."""

    def command(root: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "convert", "verify", root, models["float32"], "--heads", "12", "--json"],
            cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    result = command(roots[2])
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["passed"]

    shutil.copytree(roots[2], tmp_path / "damaged")
    shard = tmp_path / "damaged" / "80000" / "mp_rank_01_model_states.pt"
    weights = STATE["transformer.layers.1.attention.dense.weight"][0, 24:].numpy().tobytes()
    content = shard.read_bytes()
    assert content.count(weights) == 1
    shard.write_bytes(content.replace(weights, bytes(len(weights))))
    result = command(tmp_path / "damaged")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {shard}: storage ")
    assert "is damaged" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def cut(folder: Path, pattern: str) -> None:
    """Cuts off the half of the largest file of that name."""
    file = max(folder.glob(pattern), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def change_config(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "assets" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def another_graph(folder: Path) -> None:
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([], tf.float32)])
    tf.saved_model.save(module, str(folder.parent / "other"), signatures={"double": module.double})
    shutil.copy(folder.parent / "other" / "saved_model.pb", folder)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (shutil.rmtree, "no such folder"),
    "no graph": (lambda folder: (folder / "saved_model.pb").unlink(), "it has no saved_model.pb"),
    "graph damaged": (lambda folder: cut(folder, "saved_model.pb"), "convert again"),
    "another graph": (another_graph, "no signature logits"),
    "no weights": (lambda folder: (folder / "variables/variables.index").unlink(), "variables.index"),
    "weights cut off": (lambda folder: cut(folder, "variables/variables.data-*"), "cannot load it"),
    "no config": (lambda folder: (folder / "assets/config.json").unlink(), "it has no assets/config.json"),
    "config damaged": (lambda folder: (folder / "assets/config.json").write_text("{"), "sizes"),
    "config no object": (lambda folder: (folder / "assets/config.json").write_text("[]"), "sizes"),
    "dtype unknown": (change_config(dtype="int3"), "int3"),
    "layers": (change_config(n_layer=4), "n_layer is 4, the checkpoint's 3"),
    "heads and positions": (change_config(n_head=6, n_positions=20), "n_positions is 20, the checkpoint's 40; n_head"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_saved_models(
    kind: str, roots: dict[int, Path], models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD[kind]
    folder = Path(shutil.copytree(models["float32"], tmp_path / "model"))
    spoil(folder)
    capfd.readouterr()
    assert_refused(run(roots[2], folder), words, capfd)


def assert_refused(code: int, words: str, capture: pytest.CaptureFixture[str]) -> None:
    out, err = capture.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_bad_checkpoint(tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(run(tmp_path / "absent", models["float32"]), "no such file or folder", capsys)


def test_no_room_for_temporary_files(roots: dict[int, Path]) -> None:
    files = open_checkpoint(roots[2]).files
    with pytest.raises(ConvertError, match=r"/dev/full: 0.00 GB cannot be written: No space left .* TMPDIR"):
        parallel_reference.spool(files, CONFIG.n_head, [[1, 2]] * 20, Path("/dev/full"))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> tuple[Path, Path]:
    """A checkpoint as large as the demo's vocabulary, and its SavedModel with the tokenizer."""
    folder = tmp_path_factory.mktemp("spoken")
    tokenizer = CPMTokenizer(demo / "tokenizer")
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=48, n_layer=2, n_head=12)
    write_megatron(folder / "c", random_state(config, np.random.default_rng(0)), 2, extras=False)
    tokenizer.save(convert(folder / "c", folder / "m") / "assets")
    return folder / "c", folder / "m"


class TestPrompts:
    def test_a_file(self, spoken: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "prompts.txt"
        file.write_bytes("\ufeff明月几时有\r\n\n \t\n\u3000\n春风\n".encode() + ("把酒问青天，" * 9).encode())
        assert run(*spoken, "--prompts", str(file), "--json") == 0
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert report["seed"] is None
        assert len(report["prompts"]) == 3
        assert report["prompts"][2]["tokens"] == 16
        assert err.count("\n") == 1
        assert err.startswith(f"note: {file}: line 6: ")
        assert err.endswith("tokens, cut to the 16 that the model takes\n")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "cannot be read"),
            (b"", "found none"),
            (b"\n \n\t\r\n", "found none"),
            ("明月".encode("gb18030"), "expected UTF-8 text, found another encoding at byte 0"),
            (("春风\n" * 8193).encode(), "8192 at most"),
        ],
        ids=["absent", "empty", "blank", "gb18030", "too many"],
    )  # fmt: skip
    def test_bad_files(
        self, spoken: tuple[Path, Path], content: bytes | None, words: str, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        file = tmp_path / "prompts.txt"
        if content is not None:
            file.write_bytes(content)
        assert_refused(run(*spoken, "--prompts", str(file)), words, capsys)

    def test_no_tokenizer(
        self, roots: dict[int, Path], models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "prompts.txt").write_text("春风")
        code = run(roots[2], models["float32"], "--prompts", str(tmp_path / "prompts.txt"))
        assert_refused(code, "assets: no tokenizer", capsys)

    @pytest.mark.parametrize("prompts", [[], [[]], [[1] * 41], [[96]], [[-1]]])
    def test_bad_ids(self, prompts: list[list[int]], roots: dict[int, Path], models: dict[str, Path]) -> None:
        with pytest.raises(ConvertError, match="prompts: expected"):
            verify(open_checkpoint(roots[2]), models["float32"], prompts)
