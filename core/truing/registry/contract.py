"""What a class must be before core uses it: the contracts of truing.hookspecs, as checks that import nothing heavy."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal, get_args

import attrs

from truing.data.example import DatasetStrategy
from truing.declared import check_needs, prompt_tokens_of
from truing.dialect import Dialect
from truing.errors import PluginError
from truing.loss import Layout, Loss, Needs, OnlineLoss, Scope
from truing.rewards import Reward
from truing.rollout import Rollout

Kind = Literal["loss", "dataset_strategy", "reward", "rollout", "dialect"]
"""The kinds of plugin class; the hook of a kind is `register_<kind>`."""
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_WORDS: Mapping[Kind, str] = {
    "loss": "method",
    "dataset_strategy": "format",
    "reward": "reward",
    "rollout": "rollout",
    "dialect": "dialect",
}
"""What a user calls a class of each kind."""

_WORDS_BY_DASH = (re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"), 'lower-case words joined by "-", such as online-dpo')
NAMES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "loss": _WORDS_BY_DASH,
    "dataset_strategy": (
        re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*"),
        'lower-case words joined by "_", families by ".", such as chatml.intel',
    ),
    "reward": (re.compile(r"[a-z0-9_]+"), 'lower-case words joined by "_", such as math_accuracy'),
    "rollout": _WORDS_BY_DASH,
    "dialect": _WORDS_BY_DASH,
    "command": _WORDS_BY_DASH,
}
"""What a name of each kind may be: the pattern, and the same in words."""


@contextmanager
def isolated(doing: str, remedy: str) -> Iterator[None]:
    """Turn whatever a plugin's code raises, SystemExit included, into a PluginError; only an interrupt passes.

    What it prints goes to stderr, so that it cannot get into output that a program reads.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, PluginError):
        raise
    except BaseException as error:
        raise PluginError(f"{doing} ({type(error).__name__}: {error}); {remedy}") from error


def check_name(kind: str, name: str) -> None:
    """Raise PluginError unless `name` is written as names of this kind are."""
    pattern, words = NAMES[kind]
    if not pattern.fullmatch(name):
        raise PluginError(f"the name {name!r} is not allowed; use {words}")


def check_class(kind: Kind, candidate: object) -> None:
    """Raise PluginError, saying what to change, unless `candidate` is a class that core can use as a plugin of this kind."""
    if not isinstance(candidate, type):
        kind_of = type(candidate).__name__
        raise PluginError(f"returned an instance of {kind_of} in its list; return the class itself, {kind_of} and not {kind_of}()")
    try:
        _check_settings(candidate)
        check_name(kind, _name(candidate))
        _CHECKS[kind](candidate)
    except PluginError as error:
        raise PluginError(f"class {candidate.__qualname__}: {error}") from None


def check_command(candidate: object) -> None:
    """Raise PluginError unless `candidate` is a click command that the `truing` program can offer."""
    import click

    from truing.cli import COMMANDS

    if not isinstance(candidate, click.Command):
        raise PluginError(f"returned {type(candidate).__name__} in its list; return click commands, made with @click.command()")
    check_name("command", candidate.name or "")
    if candidate.name in COMMANDS:
        raise PluginError(f"the command {candidate.name!r} is already one of core's; choose another name")


def _name(cls: type) -> str:
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise PluginError('has no `name`; add the class variable  name: ClassVar[str] = "..."')
    return name


def _check_settings(cls: type) -> None:
    if "__attrs_attrs__" not in vars(cls):
        raise PluginError("is not an attrs class; decorate it with @attrs.frozen(kw_only=True)")
    if not _is_frozen(cls):
        raise PluginError("is not frozen; decorate it with @attrs.frozen(kw_only=True)")
    untyped = [field.name for field in attrs.fields(cls) if field.type is None]
    if untyped:
        raise PluginError(f"field {untyped[0]!r} has no type; annotate it, as in  {untyped[0]}: float = setting(...)")
    with isolated("the types of its fields cannot be resolved", "import at run time what the annotations name"):
        attrs.resolve_types(cls)


def _is_frozen(cls: type) -> bool:
    try:
        object.__new__(cls).__setattr__("name", None)  # any attribute would do: a frozen class refuses them all
    except attrs.exceptions.FrozenInstanceError:
        return True
    except AttributeError:  # a class with slots, not frozen
        return False
    return False


def _check_loss(cls: type) -> None:
    layout = getattr(cls, "layout", None)
    if not isinstance(layout, Layout):
        raise PluginError(f"`layout` is {layout!r}; it must be one of {', '.join(map(str, Layout))}")
    _check_scope(cls)
    _check_callable(cls, "__call__", Loss, "__call__(self, inputs: LossInputs) -> LossOutput")
    _check_needs(cls, "needs", Loss)
    _check_contradictions(cls)
    if layout is Layout.ROLLOUT:
        _check_callable(
            cls, "advantages", OnlineLoss, "advantages(self, rollouts: LossInputs) -> Advantages, which ROLLOUT methods need"
        )
        _check_needs(cls, "rollout_needs", OnlineLoss)
        return
    for member in ("advantages", "rollout_needs"):
        if _own(cls, member, OnlineLoss) is not None:
            raise PluginError(
                f"has `{member}`, which only Layout.ROLLOUT methods may have; its layout is {layout}: drop one of the two"
            )


def _check_strategy(cls: type) -> None:
    layouts = getattr(cls, "layouts", None)
    if not (isinstance(layouts, frozenset) and layouts and all(isinstance(layout, Layout) for layout in layouts)):
        raise PluginError(f"`layouts` is {layouts!r}; it must be a frozenset of Layout, such as frozenset({{Layout.PAIRED}})")
    _check_callable(cls, "parse", DatasetStrategy, "parse(self, row) -> Example, or a list of them")


def _check_reward(cls: type) -> None:
    if not callable(_own(cls, "open", Reward)):
        _check_callable(
            cls, "__call__", Reward, "__call__(self, completions) -> a number or None for each (or `open(self, context)`)"
        )


def _check_rollout(cls: type) -> None:
    _check_callable(cls, "open", Rollout, "open(self, context: OpenContext) -> LiveRollout")


def _check_dialect(cls: type) -> None:
    _check_callable(cls, "translate", Dialect, "translate(self, values) -> the values of a Truing configuration")
    if required := required_settings(cls):
        raise PluginError(
            f"field {required[0]!r} has no default; give it one, for `truing convert` makes dialects without settings"
        )


_CHECKS: Mapping[Kind, Callable[[type], None]] = {
    "loss": _check_loss,
    "dataset_strategy": _check_strategy,
    "reward": _check_reward,
    "rollout": _check_rollout,
    "dialect": _check_dialect,
}


def _own(cls: type, member: str, protocol: type) -> Any:
    """Return the class's member, None where it is missing or only the protocol's own placeholder."""
    found = next((vars(base)[member] for base in cls.__mro__ if member in vars(base)), None)
    return None if found is vars(protocol).get(member) else found


def _check_callable(cls: type, member: str, protocol: type, signature: str) -> None:
    if not callable(_own(cls, member, protocol)):
        raise PluginError(f"`{member}` is missing; define {signature}")


def _check_needs(cls: type, member: str, protocol: type) -> None:
    if _own(cls, member, protocol) is None:
        raise PluginError(f"`{member}` is missing; define it as a property that returns a truing.Needs")
    needs = _with_defaults(cls, member, Needs.NOTHING)
    if not isinstance(needs, Needs):
        raise PluginError(f"`{member}` is {needs!r}; it must be a truing.Needs, such as Needs.REFERENCE_LOGPS or Needs.NOTHING")


def _check_contradictions(cls: type) -> None:
    if not required_settings(cls):
        with isolated("`prompt_tokens` failed with the default settings", "make it work with them"):
            check_needs(cls())
            prompt_tokens_of(cls())


def required_settings(cls: type) -> list[str]:
    """Return the settings without which no instance can be made."""
    return [field.name for field in attrs.fields(cls) if field.init and field.default is attrs.NOTHING]


def _check_scope(cls: type) -> None:
    scope = getattr(cls, "scope", None)
    if isinstance(scope, property):
        scope = _with_defaults(cls, "scope", "example")
    if scope not in get_args(Scope):
        raise PluginError(f'`scope` is {scope!r}; it must be "example" (the default of truing.Loss) or "step"')


def _with_defaults(cls: type, member: str, unknown: Any) -> Any:
    """Return what a property gives with the default settings; `unknown` where a setting has none, for then only a user can tell."""
    if required_settings(cls):
        return unknown
    with isolated(f"`{member}` failed with the default settings", "make it work with them"):
        return getattr(cls(), member)
