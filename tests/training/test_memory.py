"""What fits into the memory, and what is chosen where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.errors import UserError
from tf_model.config import GPT2Config
from training.memory import Work, available_memory, make_plan

CPM = GPT2Config(vocab_size=30000, n_positions=1024, n_embd=2560, n_layer=32, n_head=32)
DISTILL = GPT2Config(vocab_size=30000, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
GB = 10**9


def work(config: GPT2Config, trained: int | None = None, length: int = 256) -> Work:
    is_lora = trained is not None
    return Work(
        config,
        config.parameter_count if trained is None else trained,
        config.parameter_count if is_lora else 0,
        trains_embedding=not is_lora,
        length=length,
        batch_size=8,
    )


def test_with_memory_to_spare_nothing_is_recomputed_or_rounded() -> None:
    plan = make_plan(work(DISTILL), 64 * GB)
    assert (plan.micro_batch, plan.recompute, plan.frozen_dtype) == (8, False, "float32")


def test_smaller_micro_batches_come_before_recomputing_and_that_before_smaller_types() -> None:
    lora = work(CPM, 10_500_000)
    plans = [make_plan(lora, available) for available in (64 * GB, 14 * GB, 13.5 * GB, 8 * GB, 5 * GB)]
    assert [plan.frozen_dtype for plan in plans] == ["float32", "float32", "float32", "bfloat16", "int8"]
    assert plans[0].micro_batch >= plans[1].micro_batch
    assert all(plan.nbytes < limit * GB for plan, limit in zip(plans, (64, 14, 13.5, 8, 5), strict=True))


def test_what_is_given_is_not_changed() -> None:
    plan = make_plan(work(CPM, 10_500_000), 64 * GB, micro_batch=3, recompute=True, frozen_dtype="int8")
    assert (plan.micro_batch, plan.recompute, plan.frozen_dtype) == (3, True, "int8")


def test_what_does_not_fit_is_one_line_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"^4\d\.\d\d GB of memory are needed at least, 8\.00 GB are free: give --lora"):
        make_plan(work(CPM), 8 * GB)
    with pytest.raises(UserError, match=r"a smaller --length"):
        make_plan(work(CPM, 10_500_000), 2 * GB)


def test_a_system_that_says_nothing_of_its_memory_fits_everything(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "meminfo", tmp_path) is None
    assert make_plan(work(CPM), None).micro_batch == 8


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:  8000000 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 8_192_000_000
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000000\nfile 1500000000\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 2_000_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 8_192_000_000


def test_the_limit_of_a_shell_counts_without_what_tensorflow_reserves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (4_000_000_000, -1))
    assert available_memory(tmp_path / "meminfo", tmp_path) == 1_500_000_000
