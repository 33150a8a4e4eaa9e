"""``--dtype auto``: what is chosen for which machine, what is said, and that TensorFlow is not loaded for nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert import dtype_choice
from convert.dtype_choice import Choice, choose, choose_dtype, has_kernel
from tests.conftest import ROOT
from tests.helpers.assertions import assert_one_line_error
from tests.helpers.checkpoints import random_state, write_megatron
from tests.helpers.light import main
from tf_model.config import GPT2Config
from tf_model.precision import INT8_CONV_OP, INT8_MATMUL_OP

CONFIG = GPT2Config(vocab_size=48, n_positions=16, n_embd=24, n_layer=1, n_head=6)

# Excerpts of /proc/cpuinfo of machines that there are.
ZEN_5 = "fpu sse4_1 avx2 fma avx512f avx512bw avx_vnni avx512_bf16 avx512_vnni"
ZEN_3 = "fpu sse4_1 avx2 fma"
NEHALEM = "fpu sse4_1"
CASCADE_LAKE = "fpu sse4_1 avx2 fma avx512f avx512bw avx512_vnni"
ALDER_LAKE = "fpu sse4_1 avx2 fma avx_vnni"
SAPPHIRE_RAPIDS = "fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8"


@pytest.mark.parametrize(
    ("flags", "kernel", "dtype", "words"),
    [
        (ZEN_5, True, "int8", ["avx512_vnni", INT8_MATMUL_OP]),
        (CASCADE_LAKE, True, "int8", ["avx512_vnni", INT8_MATMUL_OP]),
        (ALDER_LAKE, True, "int8", ["avx_vnni", INT8_MATMUL_OP]),
        (
            ZEN_3,
            True,
            "int8-avx2",
            ["the CPU has avx2", INT8_CONV_OP, "lacks what faster types need (int8 with avx512_vnni or avx_vnni, "],
        ),
        (ZEN_3, False, "float32", [f"TensorFlow has no kernel {INT8_CONV_OP}", "Linux x86_64"]),
        (NEHALEM, True, "float32", ["avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "avx2", "Linux x86_64"]),
        (ZEN_5, False, "bfloat16", [f"TensorFlow has no kernel {INT8_MATMUL_OP}", "the CPU has avx512_bf16"]),
        (SAPPHIRE_RAPIDS, False, "bfloat16", ["avx512_bf16", "amx_bf16"]),
        ("fpu amx_bf16", True, "bfloat16", ["amx_bf16"]),
        (CASCADE_LAKE, False, "float32", [f"TensorFlow has no kernel {INT8_CONV_OP}"]),
        ("avx512_vnni2 xavx_vnni", True, "float32", []),
        ("", True, "float32", ["Linux x86_64"]),
        (None, True, "float32", ["not known on Linux x86_64"]),
    ],
)
def test_machines(flags: str | None, kernel: bool, dtype: str, words: list[str]) -> None:
    choice = choose(
        None if flags is None else flags.split(),
        "Linux x86_64",
        lambda op: kernel and op in (INT8_MATMUL_OP, INT8_CONV_OP),
    )
    assert choice.dtype == dtype
    assert str(choice).startswith(f"--dtype auto: {dtype}: ")
    assert "\n" not in str(choice)
    for word in words:
        assert word in choice.reason


def test_tensorflow_is_asked_only_where_it_matters() -> None:
    def ask(op: str) -> bool:
        raise AssertionError

    assert choose(NEHALEM.split(), "", ask).dtype == "float32"
    assert choose(["avx512_bf16"], "", ask).dtype == "bfloat16"
    assert choose(None, "", ask).dtype == "float32"


@pytest.mark.parametrize(
    ("content", "dtype"),
    [
        (f"processor\t: 0\nmodel name\t: A: B\nflags\t\t: {CASCADE_LAKE}\nvmx flags\t: avx512_bf16\n", "int8"),
        ("processor\t: 0\nvmx flags\t: avx512_vnni\nbugs\t: \nflags\t\t: fpu\n\nflags\t\t: avx512_vnni\n", "float32"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", "float32"),
        ("", "float32"),
        (None, "float32"),
    ],
    ids=["x86", "first CPU", "arm", "empty", "another system"],
)
def test_the_flags_are_those_of_the_first_cpu(
    content: str | None, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "cpuinfo").write_bytes(content.encode() + b"\xff\n")
    monkeypatch.setattr("platform.machine", lambda: "m68k")
    choice = choose_dtype(tmp_path / "cpuinfo", lambda op: True)
    assert choice.dtype == dtype
    assert ("m68k" in choice.reason) is (dtype == "float32")


def test_tensorflow_knows_its_kernels() -> None:
    assert has_kernel("MatMul")
    assert not has_kernel("_NoSuchOp")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_megatron(tmp_path / "c", random_state(CONFIG, np.random.default_rng(0)), 1, extras=False)
    return ["pytorch-to-tf", "--checkpoint", str(tmp_path / "c"), "--output", str(tmp_path / "m"), "--heads", "6"]


def test_auto_writes_the_type_that_was_chosen_and_says_why(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_choice, "choose_dtype", lambda: Choice("bfloat16", "it is Monday"))
    assert main([*arguments, "--dtype", "auto"]) == 0
    out, err = capsys.readouterr()
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert notes == ["note: --dtype auto: bfloat16: it is Monday"]
    assert "parameters as bfloat16" in out
    assert json.loads((tmp_path / "m/assets.extra/manifest.json").read_text())["options"]["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "m/assets/config.json").read_text())["dtype"] == "bfloat16"
    assert main([*arguments, "--dtype", "auto", "--quiet", "--force"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("case", ["--help", "output exists", "output is a file", "no checkpoint", "another type"])
def test_tensorflow_is_not_imported_for_an_error(case: str, arguments: list[str], tmp_path: Path) -> None:
    options = {"--help": ["--help"], "another type": ["--dtype", "int3"]}.get(case, [])
    if case == "output exists":
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "saved_model.pb").touch()
    elif case == "output is a file":
        (tmp_path / "m").touch()
    elif case == "no checkpoint":
        (tmp_path / "c").rename(tmp_path / "d")
    code = (
        "import sys\n"
        "from convert import dtype_choice\n"
        "from convert.__main__ import main\n"
        f"dtype_choice.cpu_flags = lambda *_: {ZEN_5.split()}\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as error:\n    code = error.code\n"
        "assert 'tensorflow' not in sys.modules\n"
        "sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--dtype", "auto", *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == (0 if case == "--help" else 2), result.stderr
    assert result.stderr.count("\n") == (case != "--help")
    if case == "--help":
        assert "avx512_vnni or avx_vnni" in " ".join(result.stdout.split())


@pytest.mark.parametrize(("flags", "runs"), [(ZEN_3, False), (ALDER_LAKE, True), (None, True)])
def test_int8_for_another_machine_is_told(
    flags: str | None, runs: bool, arguments: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(dtype_choice, "cpu_flags", lambda: None if flags is None else flags.split())
    assert [dtype_choice.runs_here(dtype) for dtype in ("int8-low-memory", "int8-avx2", "float32")] == [
        runs,
        True,
        True,
    ]
    assert main([*arguments, "--dtype", "int8"]) == 0
    assert ("this one has none" in capsys.readouterr().err) is not runs


def test_int8_for_another_machine_is_not_verified(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is converted, and of the folder that the user named."""
    monkeypatch.setattr(dtype_choice, "cpu_flags", lambda: ZEN_3.split())
    monkeypatch.setattr("convert.savedmodel_conversion.new_folder", None)
    output = arguments[arguments.index("--output") + 1]
    assert main([*arguments, "--dtype", "int8", "--verify"]) == 2
    assert_one_line_error(
        capsys,
        f"{output}: int8 needs a CPU with VNNI instructions; this one has none. Convert and verify on another machine, "
        "or convert with --dtype int8-avx2",
    )
    assert not Path(output).exists()
