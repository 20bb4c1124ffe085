"""Every page that tells a reader to do something is followed, from top to bottom."""

from __future__ import annotations

import html
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.repository.doc_blocks import ROOT, Block, Reader, blocks
from truing.cli import main
from truing.config.failures import OTHER_TOOLS
from truing.registry.first_party import OTHER_TOOLS as OTHER_NAMES
from truing.testing import check_loss

DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))


def has_something_to_do(block: Block) -> bool:
    return block.language == "console" or block.kind in ("file", "run")


PAGES = [
    page for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *EXAMPLES) if any(map(has_something_to_do, blocks(page)))
]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader in a folder with the clone's examples in it."""
    folder, packages = tmp_path / "clone", tmp_path / "packages"
    folder.mkdir()
    packages.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(packages))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield Reader(folder, packages)
    sys.modules.pop("page", None)
    for name in [name for name, module in sys.modules.items() if str(packages) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed(page, reader):
    assert reader.follow(page)
    if page.name == "first-alignment.md":
        check_what_the_tutorial_says(reader)
    if page == ROOT / "README.md":
        check_loss(reader.module.Hinge)


def check_what_the_tutorial_says(reader: Reader) -> None:
    good, too_far = (last_lines(reader, name) for name in ("my-first", "too-far"))
    assert good["eval_rewards/accuracies"] == 1
    assert too_far["loss"] < good["loss"] and too_far["rewards/margins"] > 2 * good["rewards/margins"]
    assert too_far["logps/chosen"] < good["logps/chosen"] - 2


def last_lines(reader: Reader, name: str) -> dict[str, float]:
    lines = (reader.folder / "output" / name / "metrics.jsonl").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_the_pages_that_teach_are_followed():
    followed = {page.name for page in PAGES}
    assert {"README.md", "first-alignment.md", "write-a-loss-plugin.md", "write-a-dataset-strategy.md"} <= followed
    assert {"write-a-reward.md", "write-a-rollout.md", "normalisation.md"} <= followed


def test_a_false_page_is_noticed(reader, tmp_path):
    page = ROOT / "docs" / "index.md"
    for text, kind in (("$ truing --version\ntruing, version 99\n", ""), ("$ python -c 'print(1)'\n1\n2\n", "answers vary")):
        with pytest.raises(AssertionError, match=r"docs/index\.md:1"):
            reader._compare(Block(page, 1, "console", text, kind))


def test_the_site_builds_without_a_warning(tmp_path):
    command = (sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    configuration = (tmp_path / "reference" / "configuration.html").read_text()
    assert "learning_rate" in configuration and "label_smoothing" in configuration and "on_bad_row" in configuration
    hooks = (tmp_path / "reference" / "hooks.html").read_text()
    assert "register_loss" in hooks and "Hinge" in hooks
    choices = html.unescape((tmp_path / "how-to" / "choose-a-method.html").read_text())
    methods = json.loads(CliRunner().invoke(main, ["methods", "--json"]).stdout)
    assert len(methods) > 3 and all(method["definition"].partition("`")[0] in choices for method in methods)
    names = (tmp_path / "how-to" / "come-from-trl.html").read_text()
    assert all(key in names for key in (*OTHER_TOOLS, *OTHER_NAMES["loss"], "orpo_lambda"))
    assert "--num-processes" in (tmp_path / "reference" / "command-line.html").read_text()
