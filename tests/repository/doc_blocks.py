"""Reads the fenced blocks of Markdown pages, and does what the pages tell a reader to do.

An HTML comment right above a block says what it is:

    <!-- file: PATH -->       the block is saved under PATH
    <!-- run -->              Python, run after the page's earlier blocks of the kind, in one namespace
    <!-- install: FOLDER -->  the package in FOLDER is installed
    <!-- pytest: FILE -->     the test functions of FILE are called
    <!-- numbers vary -->     a transcript whose measured numbers are not compared
    <!-- answers vary -->     a transcript of which only the number of lines is compared

Every ```console block is a transcript: lines with "$ " are commands, the rest is what they print; "..." stands
for anything within a line, and a line with nothing else for any number of lines.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import attrs
from click.testing import CliRunner

from truing.cli import main

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>.*?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.M | re.S)


@attrs.frozen
class Block:
    """A fenced block of a page: its language, its text, and the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    kind: str = ""
    """The part of the comment before ":"."""
    argument: str = ""

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        kind, _, argument = (match["mark"] or "").partition(": ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], match["text"], kind, argument))
    return found


def transcript(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block and what it is said to print."""
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


@attrs.define
class Reader:
    """Does what a page says, in a folder that looks like the root of a clone; installs into `packages`."""

    folder: Path
    packages: Path
    module: ModuleType = attrs.field(factory=lambda: ModuleType("page"))
    """Where the page's Python runs."""

    def follow(self, page: Path) -> int:
        """Do everything on the page and return how many blocks there were to do. Raises AssertionError where it is not true."""
        done = [self._do(block) for block in blocks(page)]
        return sum(done)

    def _do(self, block: Block) -> bool:
        actions: dict[str, Callable[[Block], None]] = {
            "file": self._write,
            "run": self._run,
            "install": self._install,
            "pytest": self._pytest,
        }
        action = self._compare if block.language == "console" else actions.get(block.kind)
        if action is not None:
            action(block)
        return action is not None

    def _write(self, block: Block) -> None:
        path = self.folder / block.argument
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def _run(self, block: Block) -> None:
        sys.modules[self.module.__name__] = self.module  # where attrs looks up what annotations name
        code = compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True)
        exec(code, self.module.__dict__)

    def _install(self, block: Block) -> None:
        options = ("-q", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
        command = (sys.executable, "-m", "pip", "install", *options, "--target", str(self.packages), f"./{block.argument}")
        subprocess.run(command, cwd=self.folder, check=True, timeout=120)

    def _pytest(self, block: Block) -> None:
        tests = {
            name: function
            for name, function in runpy.run_path(str(self.folder / block.argument)).items()
            if name.startswith("test_")
        }
        assert tests, f"{block.place}: {block.argument} has no test"
        for function in tests.values():
            function()

    def _compare(self, block: Block) -> None:
        for command, expected in transcript(block):
            got = self._call(command)
            if block.kind == "answers vary":
                assert got.count("\n") == expected.count("\n"), f"{block.place}: {command}\n{got}"
                continue
            if block.kind == "numbers vary":
                got, expected = _mask(got), _mask(expected)
            assert _agrees(got, expected), f"{block.place}: {command}\nprints\n{got}\nand not\n{expected}"

    def _call(self, command: str) -> str:
        program, *arguments = shlex.split(command)
        if program == "truing":
            result = CliRunner().invoke(main, arguments)
            failed = "error: " in result.output
            assert (result.exit_code != 0) == failed, f"{command}: exit code {result.exit_code}\n{result.output}"
            return result.output
        assert program == "python", f"no way to run {command}"
        done = subprocess.run([sys.executable, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        return done.stdout


def _agrees(got: str, expected: str) -> bool:
    pattern = re.escape(expected)
    pattern = re.sub(r"^\\\.\\\.\\\.\\\n", r"(?:.*\\n)*", pattern, flags=re.M)
    return re.fullmatch(pattern.replace(r"\.\.\.", ".*"), got) is not None


def _mask(text: str) -> str:
    """Replace the measured numbers, which stand behind the name of a metric."""
    return re.sub(r"(?<=[a-z_] )\d+(\.\d+)?(e[-+]\d+)?(?=\s)", "#", text)
