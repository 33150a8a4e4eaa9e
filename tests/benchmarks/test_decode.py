"""The benchmark of generation: what it computes from measurements, and that it runs; not how fast anything is.

Engines of others than TensorFlow and transformers take part where their packages are there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decode import __main__ as benchmark
from benchmarks.decode import plan, ratios, report, weights
from benchmarks.decode.engines import ENGINES
from benchmarks.decode.plan import ALL, INT8, LLAMA, OPENVINO, PROBE, Contender
from benchmarks.decode.process import versions, worker_command
from benchmarks.decode.results import Model, Sample, Spread
from benchmarks.decode.worker import prompts
from benchmarks.process import EngineError, Process, Standstills
from benchmarks.random_checkpoint import SHAPES, parse_shape
from convert.formats.registry import open_checkpoint

PYTHONS = {False: sys.executable, True: sys.executable}
TINY = "2x32x2x100x1024"
CTRANSLATE2 = Contender("ctranslate2", "int8")


def sample(contender: Contender, measure: str, number: int, rest: float, first: float = 0.5, batch: int = 1) -> Sample:
    """``rest`` is of 10 steps."""
    return Sample(ALL, str(contender), measure, number, rest, first, batch, 10)


def model() -> Model:
    """Ours: 10 and 20 ms per token in two rounds, in each of which llama.cpp takes half, OpenVINO twice of that."""
    found = Model("generate", SHAPES["generate"])
    for number, rest in enumerate((0.1, 0.2)):
        found.samples += [
            sample(INT8, "batch 1", number, rest),
            sample(LLAMA, "batch 1", number, rest / 2),
            sample(OPENVINO, "batch 1", number, rest * 2),
            sample(INT8, "batch 8", number, 1.5 * rest, batch=8),
            sample(LLAMA, "batch 8", number, 6 * rest, batch=8),
            sample(OPENVINO, "batch 8", number, 3 * rest, batch=8),
            sample(Contender("llama.cpp", "Q4_0"), "batch 8", number, 0.1 * rest, batch=8),
            sample(INT8, "load", number, 3.0, 2.0),
            sample(INT8, "prefill 512", number, 0, 2.0),
            sample(OPENVINO, "prefill 512", number, 0, 4.0),
            Sample(ALL, str(PROBE), "probe", number, 5e9 / rest, 0, 0, 0),
        ]
    return found


def test_ratios() -> None:
    """Of single rounds: the medians of both sides never meet where the machine's speed changes from round to round."""
    found = {(ratio.rule.what, ratio.rule.other): ratio for ratio in ratios.ratios([model()])}
    faster = found["int8, ms per token", "the faster of llama.cpp Q8_0 and OpenVINO int8"]
    assert (faster.spread, faster.reached) == (Spread(2.0, 2.0, 2.0), "no")
    best = found["int8, tokens/s, 8 rows", "the best peer"]
    assert best.spread is not None
    assert best.spread.median == pytest.approx(2)
    assert (best.other, best.reached) == ("the best peer: OpenVINO int8", "aim")
    step = found["int8, a step of 8 rows", "a step of one"]
    assert step.spread is not None
    assert step.spread.median == pytest.approx(1.5)
    loading = found["int8, loading", "reading its files once"]
    assert (loading.spread, loading.reached) == (Spread(1.5, 1.5, 1.5), "must")
    assert found["int8, prompt of 512", "the best peer"].reached == "aim"
    reading = found["int8, ms per token", "reading its weights once"]
    assert reading.spread is not None
    assert reading.spread.median == pytest.approx(0.02 * 2.5e10 / INT8.weight_bytes(SHAPES["generate"]))
    missing = found["int8, ms per token", "CTranslate2 int8"]
    assert (missing.spread, missing.reached) == (None, "-")
    assert len(found) == len([rule for rule in ratios.RULES if rule.shape == "generate"])


def test_rounds_that_one_side_lacks_are_left_out() -> None:
    found = model()
    found.samples.append(sample(INT8, "batch 1", 2, 9.0))
    (ratio,) = [r for r in ratios.ratios([found]) if "faster of" in r.rule.other]
    assert ratio.spread == Spread(2.0, 2.0, 2.0)


def test_tables() -> None:
    found = model()
    found.left_out[str(CTRANSLATE2)] = "ctranslate2 cannot be imported"
    found.disk[str(INT8)] = 2_620_000_000
    text = report.text(found, "a command", 2, 2, 0.5)
    row = next(line for line in text.splitlines() if line.startswith("| this project int8"))
    cells = row.strip("| ").split(" | ")
    assert cells[1:4] == ["15.0 (10.0-20.0)", "195 (130-259) GB/s", "400 (267-533)"]
    assert cells[-1] == "2.62 GB"
    assert "| generate | int8, loading | reading its files once | ≤ 2 | ≤ 1.3 | 1.50 | must |" in text
    assert "| generate | int8, ms per token | CTranslate2 int8 | ≤ 0.5 | ≤ 0.4 | not measured | - |" in text
    assert "Left out: ctranslate2/int8: ctranslate2 cannot be imported." in text
    assert "Reading memory (sums over an array, the best of a few): 38 (25-50) GB/s." in text
    assert "`a command`" in text


def test_tokens_agree_until_one_does_not() -> None:
    found = Model("x", SHAPES["distill"])
    found.tokens = {"ours/float32": [1, 2, 3], "llama.cpp/F32": [1, 5, 3], "ctranslate2/float32": [1, 2, 3]}
    assert found.agreeing() == {"ours/float32": 3, "llama.cpp/F32": 1, "ctranslate2/float32": 3}


def test_groups() -> None:
    """Together where there is room; else by type, each with our int8, and the weights of a type are what they weigh."""
    config = SHAPES["generate"]
    chosen = plan.contenders(list(ENGINES), [INT8.dtype, "bfloat16", "float32"], plan.GROUPS)
    kinds = sum(len(kind.dtypes) for name, kind in ENGINES.items() if name != "probe")
    assert len(chosen) == kinds - 2  # float16, and int8 for the other processors
    assert list(plan.groups(chosen, SHAPES["distill"], 20e9)) == [ALL]
    found = plan.groups(chosen, config, 20e9)
    assert list(found) == ["int8", "bfloat16", "float32", "int4"]
    assert all(members.count(INT8) == members.count(PROBE) == 1 for members in found.values())
    assert Contender("cpm-lm-tf2", "float32") in found["float32"]
    assert sum(member.memory(config) for member in found["int8"]) < 20e9  # so that they take turns measure by measure
    assert INT8.weight_bytes(config) == pytest.approx(config.parameter_count, rel=0.01)
    assert plan.contenders(["ours"], [INT8.dtype, "float32"], ["int8"]) == [INT8]
    measures = {measure.name: measure for measure in plan.measures(config, 0)}
    assert not plan.wanted(measures["at 900"], Contender("ours", "float32"), "float32", config)
    assert plan.wanted(measures["at 900"], INT8, "int8", config)
    assert [c for c in chosen if plan.wanted(measures["busy"], c, ALL, config)] == [INT8, LLAMA, OPENVINO]
    assert max(measure.prompt + measure.steps for measure in measures.values()) < 1024


def test_prompts() -> None:
    assert prompts(2, 5, 100) == prompts(2, 5, 100)
    assert [len(row) for row in prompts(4, 8, 100, ragged=True)] == [2, 4, 6, 8]


def test_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    config = parse_shape("2x32x2x100x64")
    weights.write(tmp_path, config)
    found = weights.Weights(tmp_path)
    checkpoint = open_checkpoint(found.checkpoint, heads=2, format="megatron")
    assert list(found) == list(config.tensor_shapes())
    for name in found:
        np.testing.assert_array_equal(found.read(name), checkpoint.read(name, np.dtype(np.float16)))


def test_a_process_that_has_nothing_to_do_is_stopped(tmp_path: Path) -> None:
    weights.write(tmp_path, parse_shape("2x32x2x100x64"))
    process = Process(worker_command(PROBE, PYTHONS), 1)
    try:
        process.call("prepare", weights=str(tmp_path), folder=str(tmp_path / "files"))
        status = Path(f"/proc/{process.pid}/status")
        deadline = time.monotonic() + 10
        while "State:\tT" not in status.read_text():
            assert time.monotonic() < deadline
        assert process.memory()[1] > 1_000_000
        with pytest.raises(EngineError, match=r"FileExistsError: .*files"):
            process.call("prepare", weights=str(tmp_path), folder=str(tmp_path / "files"))
        process.call("prepare", weights=str(tmp_path), folder=str(tmp_path / "more"))
    finally:
        process.close()
    assert not status.exists()


def _is_there(contender: Contender) -> bool:
    try:
        return bool(versions(contender, PYTHONS))
    except EngineError:
        return False


@pytest.mark.parametrize(
    "engines",
    [
        ["ours", "transformers", "llama.cpp"],
        pytest.param(["ours", "transformers", "llama.cpp", "cpm-lm-tf2", "ctranslate2"], marks=pytest.mark.slow),
    ],
    ids=["few", "many"],
)
def test_it_runs(engines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every measure with one type of weights; engines that are not there are named with a reason."""
    document, raw, work = tmp_path / "performance.md", tmp_path / "raw.json", tmp_path / "work"
    begin, end = report.markers(TINY)
    document.write_text(f"# Performance\n\n{begin}\nold\n{end}\n\nafter\n")
    arguments = ["--shape", TINY, "--only", "float32", "--dtype", "float32", "--repeat", "1", "--steps", "2"]
    arguments += ["--engines", *engines]
    outputs = ["--json", str(raw), "--write", str(document), "--work", str(work)]
    benchmark.main([*arguments, "--threads", "1", *outputs])
    out = capsys.readouterr().out
    assert document.read_text() == (f"# Performance\n\n{begin}\n{out.rstrip()}\n{end}\n\nafter\n")
    assert str(tmp_path) not in out
    assert not list(work.iterdir())
    result = json.loads(raw.read_text())
    (found,) = result["models"]
    chosen = {Contender(name, "F32" if name == "llama.cpp" else "float32") for name in engines}
    peers = {contender for contender in chosen if contender.engine in ("ctranslate2", "llama.cpp")}
    there = {str(contender) for contender in chosen - peers | set(filter(_is_there, peers))}
    assert found["left_out"].keys() == {str(peer) for peer in peers} - there
    assert all("cannot be imported" in reason for reason in found["left_out"].values())
    measured = {(s["contender"], s["measure"]) for s in found["samples"]}
    everywhere = {"load", "batch 1", "batch 8", "at 100", "at 900", "prefill 512"}
    assert {(name, measure) for name in there for measure in everywhere} <= measured
    assert {("ours/float32", "16 ragged"), ("probe/float32", "probe")} <= measured
    for key in ("disk", "peaks_loaded", "peaks"):
        assert all(found[key][name] > 0 for name in there)
    assert all(tokens[:1] == found["tokens"]["ours/float32"][:1] for tokens in found["tokens"].values())
    assert len(found["tokens"]["ours/float32"]) == 3
    assert {ratio["reached"] for ratio in result["ratios"]} <= {"aim", "must", "no"}
    rows = [line for line in out.splitlines() if line.startswith(f"| {ENGINES['ours'].title} float32")]
    assert len(rows) == 1
    assert len(rows[0].strip("| ").split(" | ")) == 15


def test_bad_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    for shape, said in (("tiny", "expected distill"), ("2x32x2x100x512", "1,024 positions are needed")):
        with pytest.raises(SystemExit):
            benchmark.main(["--shape", shape])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--write", "--plot"])
def test_a_place_that_is_not_there(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told before anything is measured or written."""
    absent, work = tmp_path / "absent", tmp_path / "work"
    place = absent if option == "--plot" else absent / "file"
    with pytest.raises(SystemExit):
        benchmark.main(["--shape", TINY, "--work", str(work), option, str(place)])
    assert f"{absent}: no such folder" in capsys.readouterr().err
    assert not work.exists()


def test_nothing_measured_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a script asks for by exit code is not there, and a document's old table stays."""
    python, document = tmp_path / "python", tmp_path / "performance.md"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    begin, end = report.markers(TINY)
    document.write_text(f"{begin}\nold\n{end}\n")
    arguments = ["--shape", TINY, "--engines", "llama.cpp", "--only", "int4", "--repeat", "1", "--threads", "1"]
    with pytest.raises(SystemExit, match="nothing was measured") as stopped:
        benchmark.main([*arguments, "--peers-python", str(python), "--write", str(document)])
    assert isinstance(stopped.value.code, str)  # which Python prints, and exits with 1
    assert "Left out: llama.cpp/Q4_0" in capsys.readouterr().out
    assert "old" in document.read_text()


def test_a_standstill_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Standstills(seconds=3600)
    assert found.count == 0
    later = time.perf_counter() + 5000
    monkeypatch.setattr("benchmarks.process.time.perf_counter", lambda: later)
    found.look()
    assert found.count == 1
