"""Dependencies point one way: commands -> {inference, data, training, ...} -> core; the leaves serve all."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mplus_cli"
LEAVES = {"config", "console", "errors", "machine", "__version__"}
TOP = {"commands", "cli", "__main__"}
CORE_LIBRARIES = {"torch", "transformers", "peft", "safetensors", "numpy", "triton"}  # the last where torch has it
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """`mplus_cli.core.memory` -> `core`; the package itself -> ``."""
    return (module.split(".") + [""])[1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, top_level_only: bool = False) -> set[str]:
    """Absolute names of imported modules, those inside functions and under TYPE_CHECKING too unless told otherwise."""
    tree = ast.parse(source)
    nodes = _run_at_import(tree.body) if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(node.module or "")
            if node.module == "mplus_cli":
                found |= {f"mplus_cli.{alias.name}" for alias in node.names}
    return found


def _run_at_import(body):
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for field in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _run_at_import(getattr(node, field, []))


def violations(module: str, source: str) -> list[str]:
    here = part_of(module)
    problems = []
    for name in sorted(imports(source)):
        top = name.split(".")[0]
        there = part_of(name) if top == "mplus_cli" else None
        if there in TOP and here not in TOP:
            problems.append(f"{module} imports {name}: only the command line may")
        elif here in LEAVES and there and there not in LEAVES:
            problems.append(f"{module} imports {name}: a leaf imports leaves only")
        elif here == "core" and there and there not in {"core", "errors"}:
            problems.append(f"{module} imports {name}: core imports core and errors only")
        elif here == "core" and not there and top not in CORE_LIBRARIES | set(sys.stdlib_module_names) | {"mplus_cli"}:
            problems.append(f"{module} imports {name}: not a library of core")
    return problems


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_direction(path):
    if path == PACKAGE / "__init__.py":
        pytest.skip("re-exports names lazily")
    assert violations(module_name(path), path.read_text()) == []


@pytest.mark.parametrize("path", [p for p in FILES if part_of(module_name(p)) in TOP | LEAVES], ids=lambda p: p.name)
def test_the_command_line_imports_heavy_libraries_only_inside_functions(path):
    heavy = {"torch", "transformers", "peft", "numpy", "safetensors", "mplus_cli.core", "mplus_cli.inference.models"}
    heavy |= {"mplus_cli.inference.session", "mplus_cli.inference.answering", "mplus_cli.core.state.memory_state"}
    assert imports(path.read_text(), top_level_only=True) & heavy == set()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mplus_cli.core.memory", "import rich"),
        ("mplus_cli.core.memory", "def f():\n    from mplus_cli.console import output"),
        ("mplus_cli.core.memory", "from mplus_cli import console"),
        ("mplus_cli.data.sources", "from mplus_cli.commands import ask"),
        ("mplus_cli.console", "from mplus_cli.core import memory"),
    ],
)
def test_the_test_itself_catches(module, line):
    assert violations(module, line)
