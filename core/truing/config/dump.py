"""Writing a configuration as the YAML that gives it again."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from truing.config import classes
from truing.config.classes import RewardEntry, TrainConfig
from truing.config.reading import scalar
from truing.config.structure import settings_of


def dump_config(config: TrainConfig | Mapping[str, Any]) -> str:
    """Return the YAML of a configuration with every key, defaults included, or of the values of one, as they are.

    Loading it in the same folder gives an equal one.
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


def plain(value: Any) -> Any:
    """Return a part of a configuration as YAML's own types; a plugin with nothing set is its name."""
    if isinstance(value, RewardEntry):
        reward = plain(value.reward)
        return {**({"name": reward} if isinstance(reward, str) else reward), "weight": value.weight}
    if attrs.has(type(value)):
        settings = {field.name: plain(getattr(value, field.name)) for field in settings_of(type(value))}
        if type(value).__module__ == classes.__name__:
            return settings
        # a user's function has its name as a field, and nothing to set
        return {"name": value.name, **settings} if settings and "name" not in settings else value.name
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, (str, Path)):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))  # so that a literal ${ stays one
    return value
