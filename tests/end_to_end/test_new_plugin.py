"""`truing new-plugin` from the scaffold to an installed, listed and tested package, for every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from truing.cli.new_plugin import KINDS, check_new_name, new_plugin, render
from truing.errors import ConfigError

BIN = Path(sys.executable).parent
NAMES = {kind: f"my-{kind}-2" for kind in KINDS}
KIND_OF = {kind: scaffold.kind for kind, scaffold in KINDS.items()}


def call(*command, **env):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **env}, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scaffolds(tmp_path_factory):
    """A folder with a package of every kind."""
    folder = tmp_path_factory.mktemp("scaffolds")
    for kind, name in NAMES.items():
        result = CliRunner().invoke(new_plugin, [kind, name, "--dir", str(folder)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert f"cd {folder / f'truing-{name}'}" in result.output
    return folder


@pytest.fixture(scope="module")
def installed(scaffolds, tmp_path_factory):
    """The environment in which the packages are installed beside what is there already."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", target)
    call(*pip, *sorted(scaffolds.iterdir()), PIP_DISABLE_PIP_VERSION_CHECK="1")
    return {"PYTHONPATH": str(target)}


def test_every_kind_is_listed_without_a_problem(installed):
    listed = {info["name"]: info for info in json.loads(call(BIN / "truing", "plugins", "--json", **installed))}
    for kind, name in NAMES.items():
        info = listed[name]
        registered = name.replace("-", KINDS[kind].separator)
        assert (info["problem"], info["dist"], info["version"]) == (None, f"truing-{name}", "0.1.0")
        assert info["hooks"] == [f"register_{KIND_OF[kind]}"]
        assert info["names"] == {KIND_OF[kind]: [registered]}


def test_the_generated_tests_pass(installed, scaffolds):
    folders = sorted(folder / "tests" for folder in scaffolds.iterdir())
    output = call(
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "--rootdir",
        scaffolds,
        *folders,
        OMP_NUM_THREADS="1",
        **installed,
    )
    assert "9 passed" in output


def test_the_generated_code_is_clean(scaffolds):
    ruff = (BIN / "ruff", "check", "--no-cache", "--extend-select")
    for kind, name in NAMES.items():
        folder = scaffolds / f"truing-{name}"
        call(*ruff, "A,B,C4,I,N,RUF,SIM,UP,W", folder)
        call(*ruff, "ANN,D1", folder / f"truing_my_{kind}_2")
        call(BIN / "ruff", "format", "--no-cache", "--check", folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_described(kind):
    files = render(kind, "long-name")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["entry-points"] == {"truing": {"long-name": "truing_long_name"}}
    assert project["dependencies"] == ["truing>=0.1,<0.2"]
    registered = f"long{KINDS[kind].separator}name"
    assert f'name: ClassVar[str] = "{registered}"' in files["truing_long_name/long_name.py"]
    assert registered in files["README.md"] and f"check_{KIND_OF[kind]}" in files["README.md"]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "loss",
            "My_Method",
            "'My_Method' is not allowed; use lower-case words joined by \"-\" that begin with a letter, such as my-method",
        ),
        ("loss", "3d", "'3d' is not allowed; use lower-case words joined by \"-\" that begin with a letter$"),
        ("loss", "../x", "'../x' is not allowed"),
        ("loss", "", "'' is not allowed"),
        ("loss", "class", "'class' is a word of Python, which no module may be; add one, such as class-loss"),
        ("strategy", "import", "such as import-strategy"),
        ("reward", "dpo", "'dpo' is taken: Truing itself has a package truing-dpo; choose another"),
        ("loss", "online-dpo", "'online-dpo' is taken: there is a method 'online-dpo' already"),
        ("strategy", "preference", "'preference' is taken: there is a format 'preference' already"),
        ("reward", "math-accuracy", "'math-accuracy' is taken: there is a reward 'math_accuracy' already"),
    ],
)
def test_bad_and_taken_names_are_refused(kind, name, message):
    with pytest.raises(ConfigError, match=message):
        check_new_name(kind, name)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "truing-mine").mkdir()
    (tmp_path / "truing-mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="truing-mine exists and is not an empty folder; choose another name or --dir"):
        CliRunner().invoke(new_plugin, ["loss", "mine", "--dir", str(tmp_path)], catch_exceptions=False)
    assert [path.name for path in (tmp_path / "truing-mine").iterdir()] == ["notes.txt"]
    (tmp_path / "truing-file").write_text("")
    with pytest.raises(ConfigError, match="truing-file exists and is not an empty folder"):
        CliRunner().invoke(new_plugin, ["loss", "file", "--dir", str(tmp_path)], catch_exceptions=False)


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "truing-mine").mkdir()
    CliRunner().invoke(new_plugin, ["loss", "mine", "--dir", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "truing-mine" / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("loss", "my-loss", "MyLoss"),
        ("loss", "my", "MyLoss"),
        ("loss", "loss", "LossLoss"),
        ("strategy", "dataset-strategy", "DatasetStrategyStrategy"),
        ("reward", "math-reward", "MathReward"),
    ],
)
def test_the_class_says_once_what_it_is(kind, name, cls):
    module = name.replace("-", "_")
    assert f"class {cls}(" in render(kind, name)[f"truing_{module}/{module}.py"]
