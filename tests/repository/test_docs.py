"""Lists, links and examples in the documentation agree with the code."""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from tests.repository.doc_blocks import ROOT, blocks
from truing import hookspecs
from truing.cli import COMMANDS, main
from truing.config import classes, load_config
from truing.data.paths import local_path
from truing.loss import Layout
from truing.registry import KIND_WORDS, Registry
from truing.registry.first_party import FIRST_PARTY, family
from truing_cpo import CPO, SimPO
from truing_dpo import DPO, OnlineDPO
from truing_gdpo import GDPO
from truing_grpo import GRPO
from truing_orpo import ORPO
from truing_ppo import PPO
from truing_reinforce import RLOO, Reinforce
from truing_reward_model import RankedRewardModel, RewardModelLoss
from truing_sft import SFT

DOCS = ROOT / "docs"
README = ROOT / "README.md"


def markdown() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


PAGES = markdown()
YAML_BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "yaml" and block.kind != "file"]
"""Without those that are saved, with the function or plugin that they use: test_docs_pages follows the whole page."""


def table(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without its head."""
    section = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def code_words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_readme_lists_what_the_registry_has():
    listed = {code_words(dist)[0]: set(code_words(names)) for dist, names, _ in table(README, "Plugins")}
    assert listed == {
        info.dist: {name for names in info.names.values() for name in names}
        for info in Registry.load(quiet=True).plugins
        if info.dist == "truing" or (ROOT / "plugins" / info.name).is_dir()
    }


def test_core_knows_the_names_of_every_plugin_here():
    registered = {
        (kind, family(kind, name), info.dist)
        for info in Registry.load(quiet=True).plugins
        if info.dist != "truing" and (ROOT / "plugins" / info.name).is_dir()
        for kind, names in info.names.items()
        for name in names
    }
    assert registered == {(kind, name, dist) for kind, dists in FIRST_PARTY.items() for name, dist in dists.items()}


def test_the_readme_lists_the_commands():
    assert [code_words(command)[0].split()[1] for command, _ in table(README, "Commands")] == list(COMMANDS)


def test_every_page_is_in_the_index():
    linked = re.findall(r"^((?:tutorials|how-to|reference|explanation)/\S+)$", (DOCS / "index.md").read_text(), re.M)
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.glob("*/*.md")]
    assert sorted(linked) == sorted(pages) and len(pages) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    assert "[](" not in text, "a link without a text is nothing to see where Sphinx does not fill it in"
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if target.startswith(("https:", "http:", "mailto:")):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


MINIMAL = {"method": "dpo", "model": {"name": "m"}, "data": {"path": "d.jsonl", "format": "preference"}, "output": {"dir": "o"}}


@pytest.mark.parametrize("block", YAML_BLOCKS, ids=lambda block: block.place)
def test_every_configuration_in_the_docs_is_accepted(block, tmp_path):
    """A part of one is laid over a minimal one, beside a rewards.py that has the functions that it names."""
    named = set(re.findall(r"\brewards\.([a-z]\w*)", block.text))
    (tmp_path / "rewards.py").write_text("".join(f"def {name}(prompt, response):\n    return 0.0\n" for name in sorted(named)))
    part = YAML(typ="safe", pure=True).load(io.StringIO(block.text))
    path = tmp_path / "run.yaml"
    path.write_text(block.text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in MINIMAL.items() if key not in part))
    assert load_config(path, registry=Registry.load()).output.dir


def test_there_are_configurations_to_check():
    assert any(block.page == README for block in YAML_BLOCKS)
    assert len(YAML_BLOCKS) > 1


CONFIGS = sorted((ROOT / "examples").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_accepted(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output


def test_every_example_is_described():
    listed = {re.sub(r".*\((.*?)/.*", r"\1", link) for link, *_ in table(ROOT / "examples" / "README.md", "What is here")}
    assert listed == {path.parent.name for path in CONFIGS}
    assert all((ROOT / "examples" / name / "README.md").is_file() for name in listed)


def test_every_method_has_an_example():
    registry = Registry.load(quiet=True)
    own = {name for info in registry.plugins if (ROOT / "plugins" / info.name).is_dir() for name in info.names.get("loss", ())}
    shown = {load_config(path, registry=registry).method.name for path in CONFIGS}
    assert own == shown


def test_what_is_said_to_need_no_network_names_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    registry = Registry.load(quiet=True)
    listed = {
        re.sub(r".*\((.*?)/.*", r"\1", link): needs for link, _, needs in table(ROOT / "examples" / "README.md", "What is here")
    }
    for path in CONFIGS:
        if "no network" in listed[path.parent.name]:
            config = load_config(path, registry=registry)
            named = [config.model.name, *(source.path for source in (*config.data, *config.eval_data))]
            assert all(local_path(name, config.base_dir) for name in named), path


def test_every_format_with_labels_is_named_where_kto_is():
    registry = Registry.load(quiet=True)
    page = DOCS / "how-to" / "train-with-kto.md"
    named = {word for row in table(page, "The rows") for word in code_words(row[0])}
    assert named >= set(registry.names("dataset_strategy", layout=Layout.LABELED))


def test_every_hook_is_documented():
    hooks = {name for name in vars(hookspecs) if name.startswith("register_")}
    page = DOCS / "reference" / "hooks.md"
    assert {code_words(row[0])[0] for row in table_at(page)} == hooks
    assert set(re.findall(r"register_\w+", page.read_text().split("automodule")[1])) == hooks
    for name in hooks:
        assert "Example:" in (getattr(hookspecs, name).__doc__ or "")


def table_at(page: Path) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in page.read_text().splitlines() if line.startswith("| ")]
    return rows[1:]


def test_every_section_of_the_configuration_is_documented():
    page = (DOCS / "reference" / "configuration.md").read_text()
    described = set(re.findall(r"truing\.config\.classes:(\w+)", page))
    assert described == {name for name, cls in vars(classes).items() if attrs.has(cls) and cls.__module__ == classes.__name__}
    assert set(re.findall(r"\{plugins\} (\w+)", page)) >= set(KIND_WORDS) - {"dialect"}  # which is no slot of the configuration


def metric_names() -> set[str]:
    return {name for row in table_at(DOCS / "reference" / "run-directory.md") for name in code_words(row[0])}


@pytest.mark.parametrize(
    "method",
    [
        DPO(),
        DPO(rpo_alpha=1.0),
        DPO(use_weighting=True),
        DPO(loss_type=("sigmoid", "sft")),
        CPO(),
        SimPO(),
        ORPO(),
        RewardModelLoss(),
        RankedRewardModel(),
        SFT(),
        OnlineDPO(),
        GRPO(beta=0.1, entropy_coef=0.1, off_policy_mask_threshold=0.1, importance_sampling_correction="token_mask"),
        GRPO(loss_type="cispo", epsilon_high=5.0),
        GRPO(loss_type="vespo"),
        GDPO(),
        PPO(target_kl=1.0, log_entropy=True),
        Reinforce(beta=0.1, kl_in="loss"),
        RLOO(),
    ],
    ids=[
        "sigmoid",
        "rpo",
        "wpo",
        "several",
        "cpo",
        "simpo",
        "orpo",
        "reward-model",
        "ranked",
        "sft",
        "online-dpo",
        "grpo",
        "cispo",
        "vespo",
        "gdpo",
        "ppo",
        "reinforce",
        "rloo",
    ],
)
def test_every_metric_is_documented(method):
    from truing.testing import fake_inputs
    from truing.testing.advantages import with_advantages

    state = method.initial_state() if hasattr(method, "initial_state") else {}
    inputs = fake_inputs(method.layout, needs=method.needs, state=state)
    names = set()
    if method.layout is Layout.ROLLOUT:
        rollouts = fake_inputs(method.layout, needs=method.rollout_needs, state=state)
        names |= method.advantages(rollouts).metrics.keys()
        inputs = with_advantages(method, inputs)
    names |= method(inputs).metrics.keys()
    known = metric_names()
    assert names and all(name in known or re.sub(r"^loss/.*", "loss/<type>", name) in known for name in names)


def test_every_need_is_documented_with_its_fields():
    from truing.testing.inputs import NEED_FIELDS

    rows = table(DOCS / "reference" / "losses.md", "Which field each need brings")
    assert {code_words(row[0])[0]: set(code_words(row[1])) for row in rows} == {
        str(need.name): set(fields) for need, fields in NEED_FIELDS.items()
    }


def test_what_core_reads_of_an_online_method_is_documented():
    listed = {code_words(row[0])[0] for row in table(DOCS / "how-to" / "write-an-online-method.md", "What core reads of the class")}
    read = set()
    for path in (
        "rollout/plan.py",
        "train/rollouts.py",
        "train/rollout_log.py",
        "train/run.py",
        "train/worth.py",
        "model/critic.py",
        "declared.py",
    ):
        text = (ROOT / "core" / "truing" / path).read_text()
        read |= set(re.findall(r'(?:getattr|_of_method)\((?:method|self\.loss|self\.run\.loss|run\.loss|loss), "(\w+)"', text))
    assert listed == read - {"prompt_tokens"}  # which every loss may have


def test_exit_codes_are_documented():
    from truing import errors
    from truing.cli import INTERRUPTED

    codes = {int(row[0]) for row in table_at(DOCS / "reference" / "errors.md")}
    raised = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.TruingError)}
    assert codes == {0, INTERRUPTED, 128 + 15} | raised


def test_every_benchmark_is_documented():
    listed = {code_words(row[0])[0] for row in table(DOCS / "explanation" / "benchmarks.md", "Scripts")}
    folder = ROOT / "tests" / "benchmarks"
    scripts = {str(path.relative_to(ROOT)) for path in folder.glob("*.py") if not path.name.startswith("_")}
    assert listed == scripts | {f"{path.parent.relative_to(ROOT)}/" for path in folder.glob("*/__init__.py")}


def test_the_changelog_has_this_version():
    import truing

    assert f"\n## {truing.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_contributing_has_a_test_command_for_every_plugin():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for plugin in (ROOT / "plugins").glob("*/pyproject.toml"):
        assert f"`pytest plugins/{plugin.parent.name}`" in text
