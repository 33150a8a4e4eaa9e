"""``verify`` and its reference: right conversions pass, broken ones are caught, and no code is shared."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.formats.megatron.sharding import QKV, split
from convert.verification.checkpoint_logits import write_reference_logits
from convert.verification.compare import check_token_ids, random_prompts, verify
from convert.verification.megatron_forward import MegatronReference
from convert.verification.report import VerificationError
from support.errors import ConvertError
from tests.conftest import ROOT
from tests.helpers.checkpoints import fill_transformers, write_megatron
from tests.helpers.verified import CONFIG, STATE, BrokenRead, Read, convert, open_checkpoint
from tf_model import layers


class TestReference:
    @pytest.mark.parametrize("p", [1, 2, 3, 4])
    def test_logits_are_transformers(self, p: int, roots: dict[int, Path]) -> None:
        reference = MegatronReference(open_checkpoint(roots[p]).info.files, CONFIG.n_head)
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
    def test_weights_of_any_type_are_read(self, dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
        files = write_megatron(tmp_path / "c", STATE, 2, dtype=dtype, legacy=legacy, extras=False)
        oracle = fill_transformers({name: tensor.to(dtype) for name, tensor in STATE.items()}, CONFIG)
        with torch.inference_mode():
            expected = oracle(torch.tensor([[5, 95, 48, 0]])).logits[0]
        found = MegatronReference(files, CONFIG.n_head).logits([5, 95, 48, 0])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    def test_prefixes_of_wrappers_are_left_out(self, tmp_path: Path) -> None:
        def wrap(rank: int, content: dict[str, Any]) -> None:
            content["module"] = {f"module.module.{name}": tensor for name, tensor in content["module"].items()}

        plain = write_megatron(tmp_path / "plain", STATE, 2, extras=False)
        wrapped = write_megatron(tmp_path / "wrapped", STATE, 2, edit=wrap)
        found = MegatronReference(wrapped, 12).logits([1, 2, 3])
        assert torch.equal(found, MegatronReference(plain, 12).logits([1, 2, 3]))

    def test_groups_and_blocks_do_not_change_the_logits(self, roots: dict[int, Path], tmp_path: Path) -> None:
        files, prompts, shares = list(open_checkpoint(roots[2]).info.files), random_prompts(CONFIG), []
        reference = MegatronReference(files, CONFIG.n_head, block=48 * 10)
        write_reference_logits(reference, prompts, tmp_path / "logits", shares.append, group_tokens=30, rows=7)
        expected = torch.cat(MegatronReference(files, CONFIG.n_head).logits_of(prompts)).numpy()
        found = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, CONFIG.vocab_size)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        assert len(shares) == 3 * CONFIG.n_layer
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)

    def test_shares_no_code_but_the_pt_reader(self) -> None:
        """Nothing but the ``.pt`` reader, and what that needs."""
        seen, waiting = set(), ["convert.verification.megatron_forward"]
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
        reader = {"reader", "torch_file", "tensor_refs", "pickle_machine", "pickle_values"}
        assert seen == {"convert.verification.megatron_forward", *(f"convert.torch_format.{name}" for name in reader)}


@pytest.mark.parametrize(
    ("p", "dtype"),
    [
        (4, "float32"), (2, "float32"), (2, "bfloat16"),
        *(pytest.param(p, dtype, marks=pytest.mark.slow) for p, dtype in ((1, "float32"), (2, "float16"))),
        *(pytest.param(2, dtype, marks=pytest.mark.int8) for dtype in ("int8", "int8-low-memory")), (2, "int8-avx2"),
    ],
)  # fmt: skip
def test_right_conversion_passes(p: int, dtype: str, roots: dict[int, Path], tmp_path: Path) -> None:
    report = verify(open_checkpoint(roots[p]), convert(roots[p], tmp_path / "model", dtype))
    assert report.passed
    report.check(tmp_path)
    assert [prompt.tokens for prompt in report.prompts] == [1, 2, 20, 33, 40]
    assert report.dtype == dtype
    assert report.max_abs_diff is not None
    assert report.kl is not None
    assert report.agreement == 1.0
    if dtype == "float32":  # an order of magnitude below what is allowed
        assert report.top1 == 1.0
        assert report.max_abs_diff < 4e-5
        assert report.kl < 1e-9


def test_half_precision_checkpoint_passes(tmp_path: Path) -> None:
    write_megatron(tmp_path / "c", STATE, 2, dtype=torch.float16)
    assert verify(open_checkpoint(tmp_path / "c"), convert(tmp_path / "c", tmp_path / "m")).passed


def thirds_in_another_order(read: Read, name: str, dtype: Any) -> np.ndarray:
    value = read(name, dtype)
    return np.concatenate(np.split(value, 3)[::-1]) if "c_attn" in name else value


def layers_swapped(read: Read, name: str, dtype: Any) -> np.ndarray:
    other = {"h.0.": "h.1.", "h.1.": "h.0."}.get(name[:4], name[:4])
    return read(other + name[4:], dtype)


def positions_shifted(read: Read, name: str, dtype: Any) -> np.ndarray:
    value = read(name, dtype)
    return np.roll(value, 1, axis=0) if name == "wpe.weight" else value


def bias_added_by_each_rank(read: Read, name: str, dtype: Any) -> np.ndarray:
    value = read(name, dtype)
    return value * dtype.type(2) if name.endswith("c_proj.bias") else value


def projection_transposed(read: Read, name: str, dtype: Any) -> np.ndarray:
    value = read(name, dtype)
    return value.T.copy() if name.endswith("attn.c_proj.weight") else value


def biases_of_qkv_merged_plainly(read: Read, name: str, dtype: Any) -> np.ndarray:
    """The biases of two ranks' fused projections, one after the other."""
    value = read(name, dtype)
    return np.concatenate(split(value, QKV, 2)) if name.endswith("c_attn.bias") else value


def qkv_merged_plainly(read: Read, name: str, dtype: Any) -> np.ndarray:
    value = read(name, dtype)
    return np.concatenate(split(value, QKV, 2)) if "c_attn" in name else value


MERGES: list[BrokenRead] = [biases_of_qkv_merged_plainly, qkv_merged_plainly]
READS: list[BrokenRead] = [
    thirds_in_another_order,
    layers_swapped,
    positions_shifted,
    bias_added_by_each_rank,
    projection_transposed,
]


def assert_caught(root: Path, folder: Path) -> None:
    report = verify(open_checkpoint(root), folder)
    assert not report.passed
    with pytest.raises(VerificationError, match=r"model: does not compute .* \(\d+ tokens\)"):
        report.check(folder)


@pytest.mark.parametrize(
    ("broken", "dtype"),
    [
        *((read, "float32") for read in [*READS, *MERGES]),
        (READS[0], "bfloat16"),
        *(pytest.param(read, "bfloat16", marks=pytest.mark.slow) for read in [READS[1], *MERGES]),
        *((read, "int8-avx2") for read in [*READS[:2], *MERGES]),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_broken_readers_are_caught(broken: BrokenRead, dtype: str, roots: dict[int, Path], tmp_path: Path) -> None:
    assert_caught(roots[2], convert(roots[2], tmp_path / "model", dtype, broken))


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
    checkpoint.info = dataclasses.replace(checkpoint.info, files=checkpoint.info.files[::-1])
    assert not verify(checkpoint, models["float32"]).passed


@pytest.mark.parametrize("prompts", [[], [[]], [[1] * 41], [[96]], [[-1]]])
def test_token_ids_that_the_model_cannot_read_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ConvertError, match="prompts: expected"):
        check_token_ids(prompts, CONFIG)


def test_stages_are_reported_up_to_their_ends(roots: dict[int, Path], models: dict[str, Path]) -> None:
    calls: list[tuple[str, int, int]] = []
    verify(open_checkpoint(roots[2]), models["float32"], progress=lambda *call: calls.append(call))
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["source", "compare"]
    for name in stages:
        own = [(done, total) for stage, done, total in calls if stage == name]
        assert own == sorted(own)
        assert own[-1][0] == own[-1][1]
