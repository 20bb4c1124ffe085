"""Generated YAML files against load_config: only clear errors, each fast.

python -m tests.benchmarks.yaml_fuzz [EXAMPLES] prints how many files loaded, were refused, and the slowest one's time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import attrs
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.core.config_fakes import DPO, ONLINE, REGISTRY
from truing import ConfigError, PluginError
from truing.config import load_config

MARKS = tuple("{}[]:-?'\"|>#\\@`,~\t\0\n\r.é\u200b\ud7ff")
WORDS = (
    "null",
    "true",
    "no",
    ".nan",
    "-0",
    "1e400",
    "0x",
    "name",
    "method",
    "rewards",
    "mine.function",
    "9" * 30,
    "[" * 60,
    "a: " * 5,
)
PHRASES = (
    "&a ",
    "*a",
    "<<: *a\n",
    "!!python/name:os.system ",
    "!x ",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "\n  ",
    "${output.dir}",
    "${",
)
PIECES = st.sampled_from([*MARKS, *WORDS, *PHRASES, *(f"{mark} " for mark in MARKS)])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | PIECES
SECTIONS = "method model data eval_data trainer output rewards rollout"
SETTINGS = "name path format dir adapter weight beta loss_type groups clip_range seed report_to r target_modules"
KEYS = st.sampled_from([*SECTIONS.split(), *SETTINGS.split(), ""]) | st.text(max_size=5)
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25)


def flow(value: object) -> str:
    """Return nested values as YAML in flow style, with strings sometimes bare."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return value if len(value) % 3 else "'" + value.replace("'", "''") + "'"
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if value is None or isinstance(value, bool)
        else str(value)
    )


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid file with pieces put in, cut out or repeated."""
    text = draw(st.sampled_from([DPO, ONLINE]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 30)))
        text = text[:start] + draw(PIECES | st.text(max_size=8) | st.just(text[start:end] * 2)) + text[end:]
    return text


@st.composite
def replaced(draw: st.DrawFn) -> str:
    """A valid file with any values in the place of some of its own."""
    lines = draw(st.sampled_from([DPO, ONLINE])).splitlines()
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = lines[at].partition(":")[0] + ": " + flow(draw(NESTED))
    return "\n".join(lines)


TEXTS = (
    mutated()
    | replaced()
    | st.dictionaries(KEYS, NESTED, max_size=6).map(flow)
    | st.lists(PIECES, max_size=40).map("".join)
    | st.text(max_size=200)
)
FILES = TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=200)


@attrs.define
class Outcome:
    """What became of the generated files."""

    loaded: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_file: bytes = b""


def fuzz(examples: int, folder: Path) -> Outcome:
    """Load generated files. Raises whatever is neither a ConfigError nor a PluginError, and AssertionError for a bad message."""
    outcome = Outcome()
    path = folder / "run.yaml"

    @seed(2)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(FILES)
    def load_one(content: bytes) -> None:
        path.write_bytes(content)
        start = time.process_time()
        try:
            load_config(path, registry=REGISTRY)
            outcome.loaded += 1
        except (ConfigError, PluginError) as error:
            outcome.refused += 1
            assert "run.yaml" in str(error)
            assert "Traceback" not in str(error)
        spent = time.process_time() - start
        if spent > outcome.slowest:
            outcome.slowest, outcome.slowest_file = spent, content

    load_one()
    return outcome


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000, Path(folder))
    print(f"{found.loaded} loaded, {found.refused} refused; slowest {found.slowest:.3f} s CPU: {found.slowest_file[:200]!r}")
