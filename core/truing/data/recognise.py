"""The format of data whose configuration names none: chosen by the columns of the first row, and said aloud."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from truing.config.classes import DataConfig, TrainConfig
from truing.data.example import DatasetStrategy
from truing.data.files import Row, number_rows
from truing.data.load import describe, load_rows
from truing.errors import ConfigError, DataError, PluginError
from truing.loss import Layout
from truing.suggest import families

if TYPE_CHECKING:
    from truing.registry import Registry

_PLAINEST = {
    Layout.PAIRED: "preference",
    Layout.LABELED: "unpaired",
    Layout.RANKED: "ranked",
    Layout.SINGLE: "text",
    Layout.ROLLOUT: "text",
}
"""Core's own format for each layout, which a message may show."""


def with_formats(
    config: TrainConfig,
    registry: Callable[[], Registry],
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with a format for every dataset, and a line for each that was chosen here.

    `rows` and `eval_rows` are data in memory, in the place of what the configuration names. Raises ConfigError where no format or
    more than one recognises the first row that can be read, and DataError where there is none.
    """
    if all(source.format is not None for source in (*config.data, *config.eval_data)):
        return config, []
    known, lines = registry(), list[str]()

    def resolve(source: DataConfig, key: str, given: Sequence[Mapping[str, Any]] | None) -> DataConfig:
        if source.format is not None:
            return source
        row = _first_row(source, config.base_dir, given)
        layout = Layout.PAIRED if source.unpair else config.method.layout
        strategy = choose_format(row, layout, known, f"{key}.format")
        lines.append(f"format: {strategy.name}, chosen by the columns {_listed(row)} of {key}; set {key}.format to say otherwise")
        return attrs.evolve(source, format=strategy)

    data = tuple(resolve(source, "data", rows) for source in config.data)
    eval_data = tuple(resolve(source, "eval_data", eval_rows) for source in config.eval_data)
    return attrs.evolve(config, data=data, eval_data=eval_data), lines


def choose_format(row: Mapping[str, Any], layout: Layout, registry: Registry, key: str = "data.format") -> DatasetStrategy:
    """Return the one format for this layout that recognises a row, with its default settings. Raises ConfigError otherwise.

    For labels that of pairs will do, where none for labels recognises the row: pairs are taken apart.
    """
    serving = [cls for cls in registry.classes("dataset_strategy") if layout in cls.layouts]
    found = [cls for cls in serving if _recognises(cls, row)]
    if not found and layout is Layout.LABELED:
        found = [cls for cls in registry.classes("dataset_strategy") if Layout.PAIRED in cls.layouts and _recognises(cls, row)]
    if len(found) == 1:
        chosen: DatasetStrategy = found[0]()
        return chosen
    columns = f"the columns {_listed(row)}"
    if found:
        names = ", ".join(cls.name for cls in found)
        raise ConfigError(f"{key} is not set, and {columns} are those of several formats: {names}; set it to one of them")
    names = ", ".join(families(cls.name for cls in serving)) or "none is installed"
    raise ConfigError(
        f"{key} is not set, and no format knows {columns} for sure; set it to one of those for {layout.value} data ({names}), or "
        "to a function of yours, file.function; `truing explain data.format` says what each reads. "
        f"The plainest is {_describe(registry.get('dataset_strategy', _PLAINEST[layout], layout=layout))}"
    )


def _describe(cls: Any) -> str:
    return f"{cls.name}: {(inspect.getdoc(cls) or '').splitlines()[0]}"


def _recognises(cls: Any, row: Mapping[str, Any]) -> bool:
    recognises = getattr(cls, "recognises", None)
    if not callable(recognises):
        return False
    try:
        return bool(recognises(row))
    except Exception as error:
        raise PluginError(
            f"the format {cls.name} failed to say whether it recognises a row ({type(error).__name__}: {error}); set data.format"
        ) from error


def _first_row(source: DataConfig, base_dir: Path, given: Sequence[Mapping[str, Any]] | None) -> Mapping[str, Any]:
    rows = load_rows(source, base_dir) if given is None else number_rows(given, "dataset")
    problem: Row | None = None
    for row in rows:
        if row.problem is None:
            return row.columns
        problem = problem or row
        if row.breaks_off:
            break
    name = "the dataset" if given is not None else describe(source)
    why = f": {problem.where}: {problem.problem}" if problem else ""
    raise DataError(f"data: no rows: {name} has none that can be read{why}")


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"
