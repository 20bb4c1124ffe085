"""The format of a reward model's data: the one that its run was evaluated or trained on, or one that the user names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import attrs
import cattrs

from truing import DatasetStrategy, Example, Layout
from truing.config import TrainerConfig, load_config
from truing.config.failures import faults_of
from truing.config.faults import Place, WrongValueError, raise_faults
from truing.config.plugins import plugin_converter
from truing.config.reading import Document, read_file, read_value
from truing.config.structure import settings_of
from truing.data.ranked import Ranked
from truing.data.strategies import FunctionStrategy, Preference, ResponseText
from truing.errors import ConfigError, PluginError
from truing.registry import Registry
from truing.train.run_dir import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Parse = Callable[[Mapping[str, Any]], Example | Sequence[Example]]

PLAIN = frozenset({"preference", "ranked", "text"})
"""Core's formats that add nothing to text: a row of one is scored as its columns say, whichever of them was trained on."""
_LAYOUTS = (Layout.PAIRED, Layout.RANKED, Layout.SINGLE)


@attrs.frozen(kw_only=True)
class RowFormat:
    """How a row is read: a pair, ranked answers, or a single response."""

    said: str
    """Which format it is, and where it is from."""
    strategy: Any = None
    """The format of the training data; None where nothing is known of it."""
    main: Parse = Preference().parse
    single: Parse | None = ResponseText().parse
    """None where the format has no single responses."""
    worse: tuple[str, ...] = ()
    """Columns of which a pair has one and a single response none; empty where the format does not say."""
    answers: Parse | None = Ranked().parse
    """Of ranked answers, as one Example or as pairs; None where not the row's columns, but the format says what a row is."""


def row_format(run: Path | None, named: str | None, tokenizer: PreTrainedTokenizerBase) -> RowFormat:
    """Return the format that `named` says, as `data.format` takes it, or else that of the configuration in a run's directory.

    `run` is None for a model that lies outside of one. Raises ConfigError or PluginError.
    """
    registry = Registry.load(quiet=True)
    path = None if run is None or not (run / CONFIG).is_file() else run / CONFIG
    values = {} if path is None else read_file(path).values
    if named is not None:
        return _make(read_value(named), "as --format says", values, path, tokenizer, registry)
    if path is None:
        return RowFormat(said="format: as the columns of each row say, for there is no run's config.yaml beside the model")
    try:
        return _make(_format_in(values, path), f"that of {path}; --format says otherwise", values, path, tokenizer, registry)
    except (ConfigError, PluginError) as error:
        message = f"the format that {path} names cannot be used: {error}; name another with --format, or as the reward's format"
        raise type(error)(message) from error


def _format_in(values: Mapping[str, Any], path: Path) -> Any:
    """Return the format of a configuration's evaluation data, or of the training data where there is none."""
    sources = values.get("eval_data") or values.get("data") or {}
    formats = [source.get("format") for source in (sources if isinstance(sources, list) else [sources])]
    if any(other != formats[0] for other in formats):
        raise ConfigError(f"its datasets have several, {', '.join(map(str, formats))}")
    return formats[0]


def _make(
    value: Any,
    origin: str,
    values: Mapping[str, Any],
    path: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    registry: Registry,
) -> RowFormat:
    settings = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = str(settings.get("name"))
    served = [layout for layout in _LAYOUTS if name in registry.names("dataset_strategy", layout=layout)]
    trained = _layout_of(values, registry)
    layout = trained if trained in served or not served else served[0]
    strategy = _structure(value, layout, registry)
    said = f"format: {name}, {origin}"
    if isinstance(strategy, FunctionStrategy):
        parse = strategy.bind(layout=layout, config=_config(path, registry), dataset_idx=0, tokenizer=tokenizer)
        return RowFormat(said=said, strategy=strategy, main=parse, single=None, answers=None)
    if name in PLAIN:
        return RowFormat(said=said, strategy=strategy, answers=strategy.parse if name == "ranked" else Ranked().parse)
    single = _single(settings, registry).parse if Layout.SINGLE in served else None
    return RowFormat(said=said, strategy=strategy, main=strategy.parse, single=single, worse=_worse(strategy), answers=None)


def _worse(strategy: Any) -> tuple[str, ...]:
    named = [getattr(strategy, field.name) for field in settings_of(type(strategy)) if field.name.startswith("field_rejected")]
    return tuple(column for columns in named for column in ((columns,) if isinstance(columns, str) else columns))


def _layout_of(values: Mapping[str, Any], registry: Registry) -> Layout:
    """Return the layout of a configuration's method; that of pairs where it is not known."""
    method = values.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    found: Layout = registry.get("loss", name).layout if name in registry.names("loss") else Layout.PAIRED
    return found


def _single(settings: Mapping[str, Any], registry: Registry) -> Any:
    """Return the format for single responses, with what it has of the settings for pairs."""
    fields = {field.name for field in settings_of(registry.get("dataset_strategy", settings["name"], layout=Layout.SINGLE))}
    shared = {key: value for key, value in settings.items() if key in fields or key == "name"}
    return _structure(shared, Layout.SINGLE, registry)


def _structure(value: Any, layout: Layout, registry: Registry) -> Any:
    try:
        return plugin_converter(registry, layout=layout, base_dir=Path()).structure(value, cast(Any, DatasetStrategy))
    except (ConfigError, PluginError, WrongValueError, cattrs.BaseValidationError) as error:
        raise_faults(faults_of(error, Document(None, {(): Place(0, "")}), ("format",)))
        raise


def _config(path: Path | None, registry: Registry) -> Any:
    """Return what a user's function gets as `cfg`."""
    if path is None:
        return SimpleNamespace(trainer=TrainerConfig(), data=())
    return load_config(path, registry=registry, base_dir=Path())
