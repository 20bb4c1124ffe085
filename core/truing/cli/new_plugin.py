"""`truing new-plugin`: writes a package with a plugin that works, for its author to change."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

import attrs
import click

import truing
from truing.errors import ConfigError
from truing.registry import Kind, Registry
from truing.registry.first_party import FIRST_PARTY


@attrs.frozen
class Scaffold:
    """What the templates of one kind of plugin need to know."""

    kind: Kind
    word: str
    """What a user calls it."""
    contract: str
    """The protocol in `truing`."""
    separator: str
    """What joins the words of its YAML names."""


KINDS: Mapping[str, Scaffold] = {
    "loss": Scaffold("loss", "method", "Loss", "-"),
    "strategy": Scaffold("dataset_strategy", "format", "DatasetStrategy", "_"),
    "reward": Scaffold("reward", "reward", "Reward", "_"),
    "rollout": Scaffold("rollout", "rollout backend", "Rollout", "-"),
}


@click.command("new-plugin")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("name")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the package's folder is made; here by default.",
)
def new_plugin(kind: str, name: str, directory: Path) -> None:
    """Write a package truing-NAME with a plugin that is listed, documented and tested. NAME is words joined by "-"."""
    check_new_name(kind, name)
    folder = directory / f"truing-{name}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another name or --dir")
    for path, text in render(kind, name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        click.echo(f"wrote {folder / path}")
    click.echo(f'\nnext:\n  cd {folder}\n  pip install -e ".[test]"\n  truing plugins\n  pytest')


def check_new_name(kind: str, name: str) -> None:
    """Raise ConfigError for a name that is no package's or that another plugin has."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        words = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
        hint = f", such as {words}" if words[:1].isalpha() else ""
        raise ConfigError(f'the name {name!r} is not allowed; use lower-case words joined by "-" that begin with a letter{hint}')
    if keyword.iskeyword(name):
        raise ConfigError(f"the name {name!r} is a word of Python, which no module may be; add one, such as {name}-{kind}")
    scaffold = KINDS[kind]
    owners = {dist for dists in FIRST_PARTY.values() for dist in dists.values()}
    plugin_name = name.replace("-", scaffold.separator)
    if f"truing-{name}" in owners:
        raise ConfigError(f"the name {name!r} is taken: Truing itself has a package truing-{name}; choose another")
    if plugin_name in FIRST_PARTY[scaffold.kind] or plugin_name in Registry.load(quiet=True).names(scaffold.kind):
        raise ConfigError(f"the name {name!r} is taken: there is a {scaffold.word} {plugin_name!r} already; choose another")


def render(kind: str, name: str) -> dict[str, str]:
    """Return the text of every file of the package, by path within its folder."""
    scaffold, module = KINDS[kind], name.replace("-", "_")
    major, minor = map(int, truing.__version__.split(".")[:2])
    values = {
        "name": name.replace("-", scaffold.separator),
        "dist": f"truing-{name}",
        "entry_point": name,
        "package": f"truing_{module}",
        "module": module,
        "cls": _class_name(kind, name),
        "word": scaffold.word,
        "contract": scaffold.contract,
        "hook": f"register_{scaffold.kind}",
        "check": f"check_{scaffold.kind}",
        "core_versions": f">={major}.{minor},<{major}.{minor + 1}",
    }
    values["usage"] = _fill(f"{kind}/usage.yaml", values).rstrip()
    package = values["package"]
    templates = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        f"{package}/__init__.py": "common/__init__.py",
        f"{package}/{module}.py": f"{kind}/plugin.py",
        f"{package}/py.typed": "common/py.typed",
        f"tests/test_{module}.py": f"{kind}/test_plugin.py",
    }
    return {path: _fill(template, values) for path, template in templates.items()}


def _class_name(kind: str, name: str) -> str:
    """Return MyLoss for a loss called my or my-loss, and never the name of the contract, which the module imports."""
    camel, suffix = "".join(word.capitalize() for word in name.split("-")), kind.capitalize()
    return camel if camel.endswith(suffix) and camel not in (suffix, KINDS[kind].contract) else camel + suffix


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = (resources.files("truing") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)
