"""file.function names: found without importing, loaded afresh, and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from truing.errors import ConfigError
from truing.functions import describe_failure, find_function, load_function


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "source",
    [
        "def score(x): return x",
        "async def score(x): return x",
        "class score: pass",
        "score = len",
        "score: object = len",
        "from builtins import len as score",
        "import math as score",
        "try:\n    import absent\nexcept ImportError:\n    def score(x): return x",
        "if True:\n    pass\nelse:\n    score = len",
    ],
)
def test_a_function_is_found_however_it_is_defined_and_nothing_runs(tmp_path: Path, source: str) -> None:
    file = write(tmp_path, "metrics.py", f"raise SystemExit('imported')\n{source}\n")
    found = find_function("metrics.score", tmp_path)
    assert (found.file, found.importable, found.module, found.function) == (file.resolve(), False, "metrics", "score")


def test_a_name_inside_of_a_function_is_not_found(tmp_path: Path) -> None:
    write(tmp_path, "metrics.py", "def outer():\n    def score(x): return x\n")
    with pytest.raises(ConfigError, match=r"metrics\.py defines no function 'score'; it defines outer"):
        find_function("metrics.score", tmp_path)


def test_folders_are_dots(tmp_path: Path) -> None:
    write(tmp_path, "lib/metrics.py", "def score(): return 'module'")
    write(tmp_path, "pkg/__init__.py", "def score(): return 'package'")
    assert load_function(find_function("lib.metrics.score", tmp_path))() == "module"
    assert load_function(find_function("pkg.score", tmp_path))() == "package"


def test_an_importable_module_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "site/truing_test_pkg/__init__.py", "raise RuntimeError('imported')")
    file = write(tmp_path, "site/truing_test_pkg/mod.py", "def score(): return 1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = find_function("truing_test_pkg.mod.score", tmp_path)
    assert found.importable and found.file == file.resolve()
    with pytest.raises(ConfigError, match=r"truing_test_pkg\.mod\.score cannot be loaded: .*RuntimeError: imported"):
        load_function(found)


def test_an_importable_function_is_the_one_that_python_imports(tmp_path: Path) -> None:
    import textwrap

    assert load_function(find_function("textwrap.dedent", tmp_path)) is textwrap.dedent


def test_two_candidates_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = write(tmp_path, "run/truing_test_both.py", "def score(): return 1")
    other = write(tmp_path, "site/truing_test_both.py", "def score(): return 2")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ConfigError) as failure:
        find_function("truing_test_both.score", tmp_path / "run")
    assert str(beside) in str(failure.value) and str(other) in str(failure.value) and "rename" in str(failure.value)


def test_a_module_without_the_function_is_no_candidate(tmp_path: Path) -> None:
    write(tmp_path, "json.py", "def score(): return 'beside'")
    assert load_function(find_function("json.score", tmp_path))() == "beside"


def test_the_folder_of_the_configuration_may_be_importable_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "truing_test_same.py", "def score(): return 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not find_function("truing_test_same.score", tmp_path).importable


@pytest.mark.parametrize("name", ["score", ".score", "metrics.", "me trics.score", "a-b.score", ""])
def test_what_is_no_dotted_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="does not name a function; write file.function"):
        find_function(name, tmp_path)


def test_a_missing_module_says_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no module for 'absent\.score': looked for .*absent\.py and for an importable module 'absent'"
    ):
        find_function("absent.score", tmp_path)
    with pytest.raises(ConfigError, match=r"an importable module 'textwrap\.absent'"):
        find_function("textwrap.absent.score", tmp_path)


def test_a_misspelt_function_is_suggested(tmp_path: Path) -> None:
    write(tmp_path, "metrics.py", "def accuracy(): pass")
    with pytest.raises(ConfigError, match=r"no function 'acuracy'; did you mean 'accuracy'\?"):
        find_function("metrics.acuracy", tmp_path)


def test_source_that_does_not_parse_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "metrics.py", "x = 1\ndef score(:\n")
    with pytest.raises(ConfigError, match=r"metrics\.py:2: not Python source: invalid syntax"):
        find_function("metrics.score", tmp_path)
    (tmp_path / "metrics.py").write_bytes(b"def score(): pass\n\0")
    with pytest.raises(ConfigError, match=r"metrics\.py: not Python source: .*null bytes"):
        find_function("metrics.score", tmp_path)


def test_a_module_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "metrics.py", "def score(): pass\n\n1 / 0\n")
    with pytest.raises(ConfigError, match=r"metrics\.score cannot be loaded: .*metrics\.py:3: ZeroDivisionError"):
        load_function(find_function("metrics.score", tmp_path))
    write(tmp_path, "metrics.py", "def score(): pass\nraise SystemExit(0)\n")
    with pytest.raises(ConfigError, match=r"metrics\.py:2: SystemExit"):
        load_function(find_function("metrics.score", tmp_path))


def test_what_cannot_be_called_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "metrics.py", "score = 3\n")
    with pytest.raises(ConfigError, match=r"'score' in .*metrics\.py is not a function but int 3"):
        load_function(find_function("metrics.score", tmp_path))


def test_a_changed_file_is_never_stale_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path_before = list(sys.path)
    for value in (1, 2, 3):  # same size, same second: what a .pyc would take for unchanged
        write(tmp_path, "metrics.py", f"def score(): return {value}\n")
        assert load_function(find_function("metrics.score", tmp_path))() == value
    assert sys.path == path_before
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.py"]


def test_neighbours_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "truing_test_neighbour.py", "VALUE = 7\n")
    write(tmp_path, "metrics.py", "from truing_test_neighbour import VALUE\ndef score(): return VALUE\n")
    assert load_function(find_function("metrics.score", tmp_path))() == 7
    monkeypatch.delitem(sys.modules, "truing_test_neighbour")


def test_a_failure_names_the_innermost_line_of_the_users_file(tmp_path: Path) -> None:
    write(tmp_path, "metrics.py", "import json\ndef inner(x):\n    return json.loads(x)\ndef score(x):\n    return inner(x)\n")
    source = find_function("metrics.score", tmp_path)
    with pytest.raises(ValueError) as failure:
        load_function(source)("{")
    assert describe_failure(failure.value, source).startswith(f"{source.file}:3: JSONDecodeError: ")


def test_a_name_that_no_file_system_takes_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no module for"):
        find_function(f"{'m' * 5000}.function", tmp_path)
