"""Plugin slots: a name, or a mapping with `name` and the plugin's own settings, becomes an instance of the plugin's class."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import cattrs

from truing.config.classes import DEFAULT_ROLLOUT, DataConfig, RolloutConfig
from truing.config.faults import WrongValueError, show
from truing.config.instances import checked_settings
from truing.config.structure import ENTRY_SLOTS, PLUGIN_TYPES, StructureHook, shared_settings, strict_converter
from truing.data.unpair import takes_apart
from truing.errors import ConfigError, PluginError
from truing.loss import Layout
from truing.rewards import FunctionReward, as_reward, reward_registry
from truing.rewards.functions import check_arguments, with_arguments
from truing.rollout.functions import FunctionRollout
from truing.settings import is_plugin
from truing.suggest import closest

if TYPE_CHECKING:
    from truing.registry import Kind, Registry


@functools.lru_cache(maxsize=4)
def plugin_converter(registry: Registry, *, layout: Layout | None, base_dir: Path) -> cattrs.Converter:
    """Return the strict converter that also fills plugin slots; `layout` is the method's, where that is known."""
    converter = strict_converter()
    slots = _Slots(converter, registry, layout, base_dir)
    converter.register_structure_hook_func(
        lambda type_: type_ in PLUGIN_TYPES, lambda value, type_: slots.fill(PLUGIN_TYPES[type_], value)
    )
    for entry in ENTRY_SLOTS:
        converter.register_structure_hook(entry, _entry_hook(entry, converter.get_structure_hook(entry)))
    structure_data = converter.get_structure_hook(DataConfig)

    def data(value: Any, type_: Any) -> Any:
        if layout is Layout.LABELED and _asks_to_unpair(value):
            return plugin_converter(registry, layout=Layout.PAIRED, base_dir=base_dir).structure(value, DataConfig)
        return structure_data(value, type_)

    converter.register_structure_hook(DataConfig, data)
    return converter


def _asks_to_unpair(value: Any) -> bool:
    return (value.get("unpair") if isinstance(value, Mapping) else getattr(value, "unpair", None)) is True


def _entry_hook(entry: type, structure: StructureHook) -> StructureHook:
    return lambda value, type_: structure(value if isinstance(value, entry) else _plugin_and_rest(entry, value), type_)


def _plugin_and_rest(entry: type, value: Any) -> dict[str, Any]:
    """Return an entry with the plugin's own keys apart from those that every entry may have."""
    slot = ENTRY_SLOTS[entry]
    if not isinstance(value, Mapping):
        return {slot: value}
    shared = {field.name for field in shared_settings(entry)}
    plugin = {key: item for key, item in value.items() if key not in shared}
    if entry is RolloutConfig and "name" not in plugin and not any(closest("name", [key]) for key in map(str, plugin)):
        plugin["name"] = DEFAULT_ROLLOUT
    return {slot: plugin, **{key: item for key, item in value.items() if key in shared}}


class _Slots:
    def __init__(self, converter: cattrs.Converter, registry: Registry, layout: Layout | None, base_dir: Path) -> None:
        self.converter = converter
        self.registry = registry
        self.layout = layout
        self.base_dir = base_dir

    def fill(self, kind: Kind, value: Any) -> Any:
        """Return the plugin that a value names; from Python it may be the plugin itself, and a reward any callable.

        Raises WrongValueError, ConfigError, PluginError, and cattrs' errors for the plugin's settings.
        """
        if kind == "reward" and callable(value):
            reward = as_reward(value)
            return checked_settings(reward, self.converter) if is_plugin(reward) else reward
        if not isinstance(value, (str, Mapping, list, tuple, int, float, type(None))):
            return self._instance(kind, value)
        name, settings = _name_and_settings(value)
        layout = self._layout(name) if kind == "dataset_strategy" else None
        if "." in name and kind != "loss":
            function = self._function(kind, name)
            if function is not None:
                return self._with_settings(kind, function, settings)
        if kind == "reward" and name in reward_registry.names() and not self.registry.claims(kind, name):
            return with_arguments(reward_registry.get(name), settings)
        return self.converter.structure(settings, self.registry.get(kind, name, layout=layout))

    def _with_settings(self, kind: Kind, function: Any, settings: Mapping[str, Any]) -> Any:
        """Return a user's function with settings, which a reward takes for its parameters, as far as these are known unimported."""
        from truing.functions import find_function, parameters_of

        if not settings:
            return function
        if kind != "reward":
            raise WrongValueError(
                f"names the function {function.name}, which takes no settings; remove {', '.join(map(str, settings))}"
            )
        if parameters := parameters_of(find_function(function.name, self.base_dir)):
            check_arguments(function.name, settings, parameters)
        return attrs.evolve(function, arguments=settings)

    def _instance(self, kind: Kind, value: Any) -> Any:
        """Return an instance of a plugin's class, registered or not. Raises WrongValueError for anything else."""
        from truing.data.strategies import FunctionStrategy
        from truing.registry import KIND_WORDS
        from truing.registry.contract import check_class

        if isinstance(value, type):
            raise WrongValueError(f"is the class {value.__qualname__}; give an instance, {value.__qualname__}()")
        cls = type(value)
        if not isinstance(value, (FunctionStrategy, FunctionReward, FunctionRollout)):
            try:
                check_class(kind, cls)
            except PluginError as error:
                raise WrongValueError(f"is an instance of {cls.__qualname__}, which is no {KIND_WORDS[kind]}: {error}") from error
        if kind == "dataset_strategy" and not self._serves(value.layouts):
            served = ", ".join(sorted(layout.value for layout in value.layouts))
            asked = self.layout.value if self.layout else "unknown"
            raise WrongValueError(f"is a {cls.__qualname__}, for the layouts {served}, and the method's is {asked}")
        return checked_settings(value, self.converter) if is_plugin(value) else value

    def _layout(self, format_: str) -> Layout | None:
        """Return the method's layout, or that of pairs that are to be taken apart; for an unknown method, any that is served."""
        served = [layout for layout in Layout if format_ in self.registry.names("dataset_strategy", layout=layout)]
        if self.layout is not None and takes_apart(frozenset(served), self.layout):
            return Layout.PAIRED
        return self.layout or next(iter(served), None)

    def _serves(self, layouts: frozenset[Layout]) -> bool:
        return self.layout is None or self.layout in layouts or takes_apart(layouts, self.layout)

    def _function(self, kind: Kind, name: str) -> Any:
        """Return the user's function of a dotted name; None when a plugin has that name and no file does."""
        from truing.functions import find_function

        names = self.registry.names(kind)
        try:
            source = find_function(name, self.base_dir)
        except ConfigError as error:
            if self.registry.claims(kind, name):
                return None
            near = closest(name, names)
            if near:
                raise ConfigError(f"{error}; did you mean the plugin {near!r}?") from None
            raise
        if name in names:
            raise WrongValueError(f"{name!r} is both a plugin and a function in {source.file}; rename the function or its file")
        if kind == "reward":
            return FunctionReward(name=name, base_dir=self.base_dir)
        if kind == "rollout":
            return FunctionRollout(name=name, base_dir=self.base_dir)
        from truing.data.strategies import FunctionStrategy

        return FunctionStrategy(name=name, base_dir=self.base_dir)


def _name_and_settings(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str) and value:
        return value, {}
    if not isinstance(value, Mapping):
        raise WrongValueError(f"must be a name, or a mapping with name and settings, got {show(value)}")
    settings = dict(value)
    name = settings.pop("name", None)
    if isinstance(name, str) and name:
        return name, settings
    if name is not None:
        raise WrongValueError(f"has a name that must be a string, got {show(name)}")
    near = closest("name", (key for key in settings if isinstance(key, str)))
    hint = f"; did you mean 'name' where it says {near!r}?" if near else ", such as {name: ...}"
    raise WrongValueError(f"is a mapping without `name`{hint}")
