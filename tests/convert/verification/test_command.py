"""``verify`` as a command: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from convert.verification.checkpoint_logits import cpm_reference, write_reference_logits
from convert.verification.compare import verify
from support.errors import ConvertError
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line, assert_one_line_error
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.processes import children, is_running, wait_until
from tests.helpers.verified import CONFIG, STATE, open_checkpoint, run_verify


def test_the_table_ends_in_the_summary(
    roots: dict[int, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verify(roots[2], models["float32"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 7
    assert out.splitlines()[-1].startswith("float32: the same logits as the checkpoint: largest difference ")


def test_json_has_every_prompt(
    roots: dict[int, Path], models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verify(roots[1], models["bfloat16"], "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["dtype"], report["seed"]) == (True, "bfloat16", 20201115)
    assert report["bounds"] == {"absolute": 1e-4, "relative": 0.02, "kl": 0.02, "agreement": 0.99, "perplexity": 0.005}
    assert [prompt["tokens"] for prompt in report["prompts"]] == [1, 2, 20, 33, 40]
    assert report["perplexity"] is None  # of random tokens it would say nothing
    assert report["max_abs_diff"] == max(prompt["max_abs_diff"] for prompt in report["prompts"])


def test_exit_code_is_3_for_another_checkpoint(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_megatron(tmp_path / "c", random_state(CONFIG, np.random.default_rng(1)), 2, extras=False)
    assert run_verify(tmp_path / "c", models["float32"], "--json") == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is False
    assert_one_line(err, f"error: {models['float32']}: does not compute what the checkpoint does: prompt ")


def test_a_dtype_that_this_cpu_cannot_run_is_refused_before_the_source_is_read(
    roots: dict[int, Path], models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.dtype_choice.runs_here", lambda dtype: dtype == "int8-avx2")
    stages: list[str] = []
    words = "bfloat16 needs a CPU with VNNI instructions; this one has none. Verify on another machine, or convert with"
    with pytest.raises(ConvertError, match=words):
        verify(open_checkpoint(roots[1]), models["bfloat16"], progress=lambda stage, *_: stages.append(stage))
    assert stages == []


def test_the_source_runs_in_another_process(roots: dict[int, Path], models: dict[str, Path], tmp_path: Path) -> None:
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
    assert_one_line(result.stderr, f"error: {shard}: storage ", "is damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def start_command(*words: object, temporary: Path) -> subprocess.Popen[str]:
    """Start a command as users do; a background job of a shell ignores Ctrl-C, this one does not."""
    return subprocess.Popen(
        [sys.executable, "-m", "convert", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_behind(
    number: signal.Signals, roots: dict[int, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    """Stopped while the source runs in its worker; nothing but SIGKILL leaves temporary files."""
    process = start_command("verify", roots[2], models["float32"], "--heads", "12", temporary=tmp_path)
    wait_until(lambda: bool(children(process.pid)), 60)
    (worker,) = children(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not is_running(worker))
    if number != signal.SIGKILL:
        assert out == ""
        assert_one_line(err, "nothing was left behind")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_conversion_with_verify_leaves_nothing(
    number: signal.Signals, roots: dict[int, Path], tmp_path: Path
) -> None:
    """Stopped while the source runs in the worker of a worker."""
    arguments = ["--checkpoint", roots[2], "--heads", "12", "--output", tmp_path / "out" / "model", "--verify"]
    process = start_command("pytorch-to-tf", *arguments, temporary=tmp_path)
    grandchildren: list[int] = []

    def found() -> bool:
        grandchildren[:] = [pid for child in children(process.pid) for pid in children(child)]
        return bool(grandchildren)

    wait_until(found, 120)
    started = [*children(process.pid), *grandchildren]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert_one_line(err, "nothing was left behind")
    wait_until(lambda: not any(map(is_running, started)))
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])


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
    "absent": (shutil.rmtree, "no such file or folder"),
    "no graph": (lambda folder: (folder / "saved_model.pb").unlink(), "a SavedModel without its saved_model.pb"),
    "graph damaged": (lambda folder: cut(folder, "saved_model.pb"), "convert again"),
    "another graph": (another_graph, "no signature 'logits'"),
    "no weights": (lambda folder: (folder / "variables/variables.index").unlink(), "has no variables/variables.index"),
    "weights cut off": (lambda folder: cut(folder, "variables/variables.data-*"), "cannot load it"),
    "no config": (lambda folder: (folder / "assets/config.json").unlink(), "assets/config.json: cannot be read"),
    "config damaged": (lambda folder: (folder / "assets/config.json").write_text("{"), "config.json: expected JSON"),
    "config no object": (lambda folder: (folder / "assets/config.json").write_text("[]"), "expected a JSON object"),
    "dtype unknown": (change_config(dtype="int3"), "int3"),
    "layers": (change_config(n_layer=4), "n_layer is 4, the checkpoint's 3"),
    "heads and positions": (change_config(n_head=6, n_positions=20), "n_positions is 20, the checkpoint's 40; n_head"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_saved_model_is_refused(
    kind: str, roots: dict[int, Path], models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD[kind]
    folder = Path(shutil.copytree(models["float32"], tmp_path / "model"))
    spoil(folder)
    capfd.readouterr()
    assert run_verify(roots[2], folder) == 2
    assert_one_line_error(capfd, words)


def test_absent_checkpoint_is_refused(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verify(tmp_path / "absent", models["float32"]) == 2
    assert_one_line_error(capsys, "no such file or folder")


def test_a_full_disk_is_one_line(roots: dict[int, Path]) -> None:
    reference = cpm_reference(open_checkpoint(roots[2]).info.files, CONFIG.n_head)
    with pytest.raises(ConvertError, match=r"/dev/full: 0.00 GB cannot be written: No space left .* TMPDIR"):
        write_reference_logits(reference, [[1, 2]] * 20, Path("/dev/full"))
