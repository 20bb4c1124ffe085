from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import truing_rewards
from truing import ConfigError
from truing.registry import Registry
from truing.registry.first_party import FIRST_PARTY
from truing_rewards import CosineLength, ExactMatch, MathAccuracy, PythonTests, Regex


def test_the_registry_has_every_reward():
    registry = Registry.load(quiet=True)
    named = {cls.name for cls in truing_rewards.register_reward()}
    assert named == {name for name, dist in FIRST_PARTY["reward"].items() if dist == "truing-rewards"}
    assert all(registry.get("reward", cls.name) is cls for cls in truing_rewards.register_reward())


def test_importing_it_imports_nothing_heavy():
    script = (
        "import truing_rewards, sys; print([name for name in ('torch', 'sympy', 'math_verify', 'ctypes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_names_every_reward():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(f"| `{cls.name}` |" in readme for cls in truing_rewards.register_reward())


@pytest.mark.parametrize(
    "reward", [ExactMatch(), MathAccuracy(), CosineLength(max_length=9), PythonTests()], ids=lambda one: one.name
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(reward, completion):
    wanted = "tests" if reward.name == "python_tests" else "answer"
    with pytest.raises(
        ConfigError, match=rf"{reward.name}' reads column '{wanted}', which the row has not \(columns: level, solution\)"
    ):
        reward([completion("a", solution="1", level=2)])
    assert reward([completion("a", **{wanted: None})]) == [None]
    assert reward([completion("a", **{wanted: []})]) == [None]
    assert reward([]) == []


@pytest.mark.parametrize("make", [lambda: Regex(pattern="(a"), lambda: ExactMatch(pattern="(a")])
def test_a_pattern_that_is_none_is_refused(make):
    with pytest.raises(ValueError, match=r"pattern is no regular expression: .*unterminated subpattern.*, got '\(a'"):
        make()
