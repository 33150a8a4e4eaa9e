"""PyTorch is for ``verify`` alone, which says so in one line before anything that takes long."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

WITHOUT_TORCH = """
import sys

class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch)
"""
MESSAGE = f"error: verify needs PyTorch: {sys.executable} -m pip install 'gpt2-savedmodel[verify]'\n"


def run_without_torch(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "demo/song-ci", "anything"),
        ("pytorch-to-tf", "--checkpoint", "demo/song-ci", "--heads", "4", "--output", "{output}", "--verify"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_verify_names_the_package_before_anything_long(arguments: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "out"
    code = (
        "from convert.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(99 if 'tensorflow' in sys.modules else code)\n"
    )
    result = run_without_torch(code, *[word.format(output=output) for word in arguments])
    assert (result.returncode, result.stdout, result.stderr) == (2, "", MESSAGE)
    assert not output.exists()


def test_checkpoints_are_converted_and_inspected_without_torch(tmp_path: Path) -> None:
    code = """
from convert.__main__ import main
assert main(["inspect", "demo/song-ci", "--heads", "4"]) == 0
assert main(["reshard", "--checkpoint", "demo/song-ci", "--heads", "4", "--tensor-parallel", "2",
             "--output", sys.argv[1], "--quiet"]) == 0
"""
    result = run_without_torch(code, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()


def imports_torch(path: Path) -> bool:
    tree = ast.parse(path.read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return any(name.partition(".")[0] == "torch" for name in names)


def test_only_the_two_references_import_torch() -> None:
    folders = ("support", "tokenization", "tf_model", "exports", "convert", "inference", "gpt2_savedmodel", "demo")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if imports_torch(path)
    }
    assert found == {
        "convert/verification/megatron_forward.py",
        "convert/verification/reference_forward.py",
    }
