"""What a plugin must be: every refusal of a hook or a class, with its message."""

from __future__ import annotations

from typing import ClassVar

import attrs
import click
import pluggy
import pytest

from tests.core.plugins import Brevity, Echo, Hinge, Tuner, Votes, info, module, variant
from truing import Layout, Needs, hookimpl, hookspecs
from truing.cli import COMMANDS
from truing.registry import HOOKS, KINDS, Registry
from truing.registry.contract import check_name
from truing.registry.first_party import FIRST_PARTY


def problem(plugin: object) -> str:
    """Return why a plugin is refused, and check that nothing of it is registered."""
    registry = Registry.from_modules({"mine": plugin})
    assert info(registry, "mine").status == "broken"
    assert all(registry.names(kind) == Registry.from_modules({}).names(kind) for kind in KINDS)
    return info(registry, "mine").problem


def test_the_hooks_are_those_of_hookspecs():
    manager = pluggy.PluginManager(hookspecs.GROUP)
    assert set(HOOKS) == {name for name in vars(hookspecs) if manager.parse_hookspec_opts(hookspecs, name) is not None}


def undecorated():
    return [Hinge]


@hookimpl
def misspelt():
    return [Hinge]


@hookimpl
def takes_arguments(config):
    return [config]


@hookimpl
def raises():
    raise ValueError("no luck")


@hookimpl
def exits():
    raise SystemExit(7)


@hookimpl(optionalhook=True)
def of_a_newer_core():
    return []


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (module(), "has no function decorated with @truing.hookimpl; the hooks are register_loss, register_dataset_strategy"),
        (
            module(register_loss=undecorated),
            "register_loss is not decorated, so core would never call it; put @truing.hookimpl above it",
        ),
        (module(register_los=misspelt), "register_los is not a hook; did you mean 'register_loss'? The hooks are register_loss,"),
        (
            module(register_loss=takes_arguments),
            "register_loss takes arguments (config); a hook takes none: write  def register_loss():",
        ),
        (
            module(register_loss=raises),
            "register_loss failed (ValueError: no luck); reinstall or uninstall dummy, or leave it out with",
        ),
        (module(register_loss=exits), "register_loss failed (SystemExit: 7); reinstall or uninstall dummy"),
        (module(register_loss=Hinge), "register_loss returned the class Hinge; return a list of classes"),
        (module(register_loss=(Hinge,)), "register_loss returned tuple instead of a list; return a list of classes"),
        (module(register_command=None), "register_command returned NoneType instead of a list; return a list of click commands"),
    ],
)
def test_hooks_that_are_refused(plugin, says):
    assert says in problem(plugin)


def test_an_optional_hook_of_a_newer_core_is_passed_over():
    plugin = module(register_loss=[Hinge], register_future=of_a_newer_core)
    assert Registry.from_modules({"mine": plugin}).names("loss") == ("hinge",)


@hookimpl(specname="register_loss")
def register_more_losses():
    return []


def test_two_functions_for_one_hook_are_refused():
    plugin = module(register_loss=[Hinge], register_more_losses=register_more_losses)
    assert problem(plugin) == "has two functions for register_loss; keep one, and let it return everything"


class Plain:
    name = "plain"


@attrs.define
class Thawed:
    name: ClassVar[str] = "thawed"


@attrs.define(slots=False)
class ThawedDict:
    name: ClassVar[str] = "thawed"


@attrs.frozen
class Nameless:
    """Its name is a setting, not a class variable."""

    name: str = "nameless"


@attrs.frozen
class Untyped:
    name: ClassVar[str] = "untyped"
    beta = attrs.field(default=1)


@attrs.frozen
class Unresolvable:
    name: ClassVar[str] = "unresolvable"
    beta: "NotImported" = 1  # noqa: F821  # the name that is missing is the point


@attrs.frozen
class NeedsSettings:
    """`needs` is wrong, but only an instance can tell, and `beta` has no default."""

    name: ClassVar[str] = "needs-settings"
    layout: ClassVar[Layout] = Layout.PAIRED
    scope: ClassVar[str] = "example"
    beta: float

    @property
    def needs(self):
        return "reference"

    def __call__(self, inputs):
        raise NotImplementedError


@property
def failing(self):
    raise SystemExit(3)


def advantages(self, rollouts):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (Hinge(), "register_loss: returned an instance of Hinge in its list; return the class itself, Hinge and not Hinge()"),
        (Plain, "register_loss: class Plain: is not an attrs class; decorate it with @attrs.frozen(kw_only=True)"),
        (type("Derived", (Hinge,), {}), "class Derived: is not an attrs class; decorate it"),
        (Thawed, "class Thawed: is not frozen; decorate it with @attrs.frozen(kw_only=True)"),
        (ThawedDict, "class ThawedDict: is not frozen"),
        (Nameless, 'class Nameless: has no `name`; add the class variable  name: ClassVar[str] = "..."'),
        (Untyped, "class Untyped: field 'beta' has no type; annotate it, as in  beta: float = setting(...)"),
        (
            Unresolvable,
            "the types of its fields cannot be resolved (NameError: name 'NotImported' is not defined); import at run time",
        ),
        (variant(Hinge, name="Hinge"), "class Hinge: the name 'Hinge' is not allowed; use lower-case words joined by \"-\""),
        (variant(Hinge, name="hin_ge"), "the name 'hin_ge' is not allowed"),
        (variant(Hinge, layout="paired"), "`layout` is 'paired'; it must be one of Layout.SINGLE, Layout.PAIRED,"),
        (variant(Hinge, scope="batch"), '`scope` is \'batch\'; it must be "example" (the default of truing.Loss) or "step"'),
        (variant(Hinge, scope=property(lambda self: "batch")), "`scope` is 'batch'; it must be"),
        (variant(Hinge, scope=failing), "`scope` failed with the default settings (SystemExit: 3); make it work with them"),
        (variant(Hinge, __call__=None), "`__call__` is missing; define __call__(self, inputs: LossInputs) -> LossOutput"),
        (variant(Hinge, needs=None), "`needs` is missing; define it as a property that returns a truing.Needs"),
        (variant(Hinge, needs="reference"), "`needs` is 'reference'; it must be a truing.Needs, such as Needs.REFERENCE_LOGPS"),
        (variant(Hinge, needs=failing), "`needs` failed with the default settings (SystemExit: 3); make it work with them"),
        (
            variant(Hinge, layout=Layout.ROLLOUT),
            "`advantages` is missing; define advantages(self, rollouts: LossInputs) -> Advantages",
        ),
        (variant(Hinge, layout=Layout.ROLLOUT, advantages=advantages), "`rollout_needs` is missing; define it as a property"),
        (
            variant(Hinge, layout=Layout.ROLLOUT, advantages=advantages, rollout_needs=1),
            "`rollout_needs` is 1; it must be a truing.Needs",
        ),
        (
            variant(Hinge, advantages=advantages),
            "has `advantages`, which only Layout.ROLLOUT methods may have; its layout is Layout.PAIRED",
        ),
        (variant(Hinge, rollout_needs=Needs.NOTHING), "has `rollout_needs`, which only Layout.ROLLOUT methods may have"),
    ],
)
def test_methods_that_are_refused(loss, says):
    assert says in problem(module(register_loss=[loss]))


class RaisingName:
    @property
    def name(self):
        raise SystemExit(5)


def test_an_instance_that_raises_when_it_is_asked_for_its_name():
    assert "returned an instance of RaisingName" in problem(module(register_loss=[RaisingName()]))


def test_an_online_method_is_accepted():
    online = variant(Hinge, layout=Layout.ROLLOUT, advantages=advantages, rollout_needs=Needs.NOTHING)
    assert Registry.from_modules({"mine": module(register_loss=[online])}).get("loss", "hinge") is online


def test_needs_that_only_an_instance_knows_are_not_checked():
    registry = Registry.from_modules({"mine": module(register_loss=[NeedsSettings])})
    assert registry.get("loss", "needs-settings") is NeedsSettings


@pytest.mark.parametrize(
    ("hook", "cls", "says"),
    [
        (
            "register_dataset_strategy",
            variant(Votes, name="chat-ml"),
            "the name 'chat-ml' is not allowed; use lower-case words joined by \"_\", families",
        ),
        ("register_dataset_strategy", variant(Votes, layouts=None), "`layouts` is None; it must be a frozenset of Layout"),
        (
            "register_dataset_strategy",
            variant(Votes, layouts={Layout.PAIRED}),
            "it must be a frozenset of Layout, such as frozenset({Layout.PAIRED})",
        ),
        (
            "register_dataset_strategy",
            variant(Votes, layouts=frozenset()),
            "`layouts` is frozenset(); it must be a frozenset of Layout",
        ),
        ("register_dataset_strategy", variant(Votes, layouts=frozenset({"paired"})), "`layouts` is frozenset({'paired'})"),
        ("register_dataset_strategy", variant(Votes, parse=None), "`parse` is missing; define parse(self, row) -> Example"),
        (
            "register_reward",
            variant(Brevity, name="brevity-2"),
            "the name 'brevity-2' is not allowed; use lower-case words joined by \"_\", such as",
        ),
        (
            "register_reward",
            variant(Brevity, __call__=None),
            "`__call__` is missing; define __call__(self, completions) -> a number or None",
        ),
        ("register_rollout", variant(Echo, name="echo.2"), "the name 'echo.2' is not allowed"),
        ("register_rollout", variant(Echo, open=None), "`open` is missing; define open(self, context: OpenContext) -> LiveRollout"),
        (
            "register_dialect",
            variant(Tuner, name="tuner_2"),
            "the name 'tuner_2' is not allowed; use lower-case words joined by \"-\"",
        ),
        (
            "register_dialect",
            variant(Tuner, translate=None),
            "`translate` is missing; define translate(self, values) -> the values of a Truing configuration",
        ),
        (
            "register_dialect",
            variant(Tuner, path=attrs.field(type=str)),
            "field 'path' has no default; give it one, for `truing convert` makes dialects without settings",
        ),
        (
            "register_command",
            len,
            "returned builtin_function_or_method in its list; return click commands, made with @click.command()",
        ),
        ("register_command", click.Command("Serve"), "the name 'Serve' is not allowed"),
        ("register_command", click.Command("train"), "the command 'train' is already one of core's; choose another name"),
    ],
)
def test_other_contributions_that_are_refused(hook, cls, says):
    found = problem(module(**{hook: [cls]}))
    assert says in found
    assert found.startswith(f"{hook}: ")


def test_a_reward_with_open_needs_no_call():
    opened = variant(Brevity, __call__=None, open=lambda self, context: None)
    assert Registry.from_modules({"mine": module(register_reward=[opened])}).get("reward", "brevity") is opened


def test_dotted_format_names_are_allowed():
    dotted = variant(Votes, name="chatml.prompt_pairs")
    assert "chatml.prompt_pairs" in Registry.from_modules({"mine": module(register_dataset_strategy=[dotted])}).names(
        "dataset_strategy"
    )


def test_no_command_of_core_has_a_name_that_plugins_could_not_have():
    for name in COMMANDS:
        check_name("command", name)


def test_first_party_names_are_written_as_names_of_their_kind_are():
    for kind, dists in FIRST_PARTY.items():
        for name in dists:
            check_name(kind, name)
