"""Budgets that keep the repository readable: sizes, documentation, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


CODE = [path for path in tracked("*.py") if "templates" not in path.parts]
PRODUCT = [path for path in CODE if "tests" not in path.parts]


def definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))


def test_something_is_looked_at():
    assert len(PRODUCT) > 20


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in definitions(ast.parse(text))
        if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
    members = [
        member
        for node in public
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
    ]
    undocumented = [node.name for node in (*public, *members) if not ast.get_docstring(node)]
    assert not undocumented


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def module_name(plugin: Path) -> str:
    return f"truing_{plugin.name.replace('-', '_')}"


def test_core_imports_no_plugin():
    plugins = {module_name(plugin) for plugin in PLUGINS}
    assert plugins
    offenders = [path for path in (ROOT / "core").rglob("*.py") if imported(path) & plugins]
    assert not offenders


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_no_other_plugin_than_it_depends_on(plugin):
    import tomllib

    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    depends = {other for other in PLUGINS if any(need.startswith(f"truing-{other.name}>") for need in project["dependencies"])}
    others = {module_name(other) for other in PLUGINS if other != plugin and other not in depends}
    assert not [path for path in plugin.rglob("*.py") if imported(path) & others]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_one_word_names_a_plugin_everywhere(plugin):
    """Dist truing-x, import truing_x, folder x, entry point x."""
    import tomllib

    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"truing-{plugin.name}"
    assert project["entry-points"]["truing"] == {plugin.name: module_name(plugin)}
    assert (plugin / module_name(plugin) / "__init__.py").exists()
    assert f"-e ./plugins/{plugin.name}" in (ROOT / "requirements-dev.txt").read_text().splitlines()
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert root[plugin.name] == [f"truing-{plugin.name}"]


def test_nothing_reads_the_folder_beside_the_repository():
    own = Path(__file__)
    assert not [path for path in CODE if path != own and "../shared" in path.read_text()]


def test_nothing_unpickles_or_evaluates():
    """State is safetensors and JSON; the only code that is run from a file is the one that a configuration names."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"eval", "exec"}
        and path != ROOT / "core/truing/functions.py"
    ]
    assert not found
    assert not [path for path in PRODUCT if imported(path) & {"pickle", "dill", "cloudpickle", "marshal"}]
