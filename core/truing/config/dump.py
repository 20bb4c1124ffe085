"""Writing a configuration as the YAML that gives it again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from truing.config import classes
from truing.config.classes import TrainConfig
from truing.config.reading import scalar
from truing.config.structure import ENTRY_SLOTS, settings_of, shared_settings
from truing.redact import HIDDEN, redact, says_secret, with_references


def dump_config(config: TrainConfig | Mapping[str, Any]) -> str:
    """Return the YAML of a configuration with every key, defaults included, or of the values of one, as they are.

    Loading it in the same folder gives an equal one. A secret is written as the environment variable that holds it, ${oc.env:NAME},
    or left out where none does; loading what was left out is an error.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    yaml.width = 1_000_000
    yaml.Representer = _Representer
    stream = io.StringIO()
    yaml.dump(plain(config), stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Quotes text that unquoted would be read as something else."""

    def represent_text(self, text: str) -> ScalarNode:
        style = '"' if not text.isprintable() or not isinstance(scalar(text), str) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_text)


def plain(value: Any, *, secret: bool = False) -> Any:
    """Return a part of a configuration as YAML's own types; a plugin with nothing set is its name.

    What is secret, all of it with `secret`, is a reference to the environment.
    """
    if type(value) in ENTRY_SLOTS:
        plugin = plain(getattr(value, ENTRY_SLOTS[type(value)]))
        shared = {field.name: getattr(value, field.name) for field in shared_settings(type(value))}
        return {**({"name": plugin} if isinstance(plugin, str) else plugin), **_plain_items(shared, secret=secret)}
    if attrs.has(type(value)):
        settings = _plain_items({field.name: getattr(value, field.name) for field in settings_of(type(value))}, secret=secret)
        if type(value).__module__ == classes.__name__ or not hasattr(value, "name"):  # a mapping of core's, or within a plugin
            return settings
        if "name" in settings:  # a user's function, which has it as a field
            settings = _plain_items(getattr(value, "arguments", {}), secret=secret)
        return {"name": value.name, **settings} if settings else value.name
    if isinstance(value, Mapping):
        return _plain_items(value, secret=secret)
    if isinstance(value, (tuple, list)):
        return [plain(item, secret=secret) for item in value]
    if isinstance(value, (str, Path)):
        return with_references(str(value), secret=secret)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return HIDDEN if secret and is_number else value


def _plain_items(values: Mapping[Any, Any], *, secret: bool) -> dict[Any, Any]:
    return {
        redact(key) if isinstance(key, str) else key: plain(item, secret=secret or says_secret(key)) for key, item in values.items()
    }
