"""Who may import whom: the table of docs/style.md, and what only command lines may do.

The lists of exceptions are to shrink. An exception that is not needed any more is an error, too.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.helpers.imports import ROOT, cycles, imports, modules, tree

MAY_IMPORT = {
    "support": set(),
    "tokenization": set(),
    "tf_model": {"support"},
    "exports": {"tf_model", "tokenization", "support"},
    "convert": {"exports", "tf_model", "tokenization", "support"},
    "inference": {"exports", "tokenization", "support"},
    "training": {"convert", "exports", "inference", "tf_model", "tokenization", "support"},
    "gpt2_savedmodel": {"convert", "inference", "training", "support"},
}
"""Package -> the others that it may import."""

ROOM_EXCEPTIONS = {
    "exports.__main__ -> inference.cli",  # `python -m exports` says where it went; it goes with the next release
}

FLOORS = {
    "convert": (
        ("cli", "__main__"),
        ("commands",),
        ("savedmodel_conversion", "conversion", "verification", "inspection", "dtype_choice", "provenance"),
        ("formats",),
        ("torch_format", "output", "checkpoint", "tensors"),
    ),
    "training": (
        ("cli", "__main__"),
        ("commands",),
        ("finetuning", "text_inspection", "augmentation"),
        ("running",),
        ("preparation",),
        ("export", "choices"),
        ("run",),
        ("model", "optimizers"),
        ("cluster",),
        ("texts",),
        ("settings", "setting", "contradictions", "memory", "runtime", "differences", "own_folders"),
    ),
}
"""The modules and folders of a package from the top down: each may import those of its own floor and below."""

SHARED_BY_FORMATS = {
    "candidate",
    "format",
    "h5_chunks",
    "h5_file",
    "heads",
    "huggingface_config",
    "limits",
    "lora",
    "lora_files",
    "lora_options",
    "name_patterns",
    "nanogpt_args",
    "padding",
    "rank_files",
    "refusals",
    "registry",
    "rows",
    "safetensors_file",
    "state_dict",
    "tensor_map",
    "tf_checkpoint",
    "text_pieces",
    "tf_variables",
    "tokenizer_files",
    "uer_config",
    "uer_layer_norm",
    "weights",
}
"""What formats have in common; whatever else is in ``convert/formats/`` is a format, a module or a folder."""

KNOW_EVERY_FORMAT = {"registry", "rows"}

SPEAKERS = ("cli", "__main__", "commands")
"""The modules and folders that know argparse, print and exit codes."""

SPEAKER_EXCEPTIONS = {
    "support.command_line": {"argparse", "print"},
    "support.main_guard": {"print"},
    "support.progress": {"print"},  # draws on a terminal, or prints a line now and then
    # Checkpoints of Megatron-LM hold an argparse.Namespace.
    "convert.formats.megatron.megatron_lm_args": {"argparse"},
    "convert.torch_format.writer": {"argparse"},
}


def place(module: str) -> str:
    """The folder or module within its package, ``commands`` of ``convert.commands.to_tf``; "" is the package itself."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int | None:
    """The floor of a module in its package; the package itself is its public face, which stands on none."""
    floors = FLOORS.get(module.split(".")[0], ())
    return next((number for number, places in enumerate(floors) if place(module) in places), None)


def test_packages_import_only_those_below_them() -> None:
    wrong = {
        str(edge)
        for edge in imports()
        if (package := edge.imported.partition(".")[0]) != (importer := edge.importer.partition(".")[0])
        and package not in MAY_IMPORT[importer]
    }
    assert wrong == ROOM_EXCEPTIONS


@pytest.mark.parametrize("package", FLOORS)
def test_every_part_of_a_package_with_floors_has_one(package: str) -> None:
    assert [module for module in modules() if module.startswith(f"{package}.") and floor(module) is None] == []


@pytest.mark.parametrize("package", FLOORS)
def test_a_package_with_floors_imports_downwards(package: str) -> None:
    wrong = []
    for edge in imports():
        if edge.importer.split(".")[0] == edge.imported.split(".")[0] == package:
            above, below = floor(edge.importer), floor(edge.imported)
            if above is not None and below is not None and above > below:
                wrong.append(str(edge))
    assert wrong == []


def test_no_format_knows_another() -> None:
    wrong = []
    for edge in imports():
        importer, imported = (module.split(".")[1:3] for module in (edge.importer, edge.imported))
        if len(imported) == 2 and imported[0] == "formats" and importer[:1] == ["formats"]:
            is_own = importer[1:] == imported[1:]
            if imported[1] not in SHARED_BY_FORMATS and not is_own and importer[1] not in KNOW_EVERY_FORMAT:
                wrong.append(str(edge))
    assert wrong == [], "share it: SHARED_BY_FORMATS above, or make the format a folder"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, too, but for those of a package's public face, which gives names on demand."""
    faces = {module for module, path in modules().items() if path.name == "__init__.py"}
    assert cycles(tuple(edge for edge in imports() if not (edge.is_lazy and edge.importer in faces))) == []


@pytest.mark.parametrize("module", modules())
def test_only_command_lines_parse_arguments_and_print(module: str) -> None:
    used = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names} & {"argparse"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            used.add("print")
    if place(module) not in SPEAKERS:
        assert used == SPEAKER_EXCEPTIONS.get(module, set())


HEAVY = {"tensorflow", "keras", "torch", "transformers"}


@pytest.mark.parametrize(
    "names",
    [
        "support, support.command_line, support.errors, support.files, support.messages",
        "tokenization",
        "convert, convert.cli",
        "inference, inference.cli",
        "training, training.cli",
        "gpt2_savedmodel, gpt2_savedmodel.cli",
    ],
)
def test_importing_a_package_or_its_command_line_imports_no_tensorflow(names: str) -> None:
    code = f"import sys, {names}; print({HEAVY!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_collecting_the_fast_lane_imports_no_tensorflow() -> None:
    files = subprocess.run(["make", "-s", "fast-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = f"""
import sys, pytest
code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{files.split()}])
print(code.name, {HEAVY!r} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nOK set()\n")
