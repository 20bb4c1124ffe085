"""The registry: what it refuses and how it says so, what it isolates, and what it answers for a name that is not there."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import types

import click
import pytest

import truing
from tests.core.plugins import LOSS_MODULE, Brevity, Echo, Hinge, Tuner, Votes, info, module, site, variant
from truing import ConfigError, Layout, PluginError, hookimpl
from truing.registry import HOOKS, Registry
from truing.registry.first_party import FIRST_PARTY


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.delenv("TRUING_PLUGINS", raising=False)
    monkeypatch.delenv("TRUING_BLOCK_PLUGINS", raising=False)
    with site(tmp_path) as folder:
        yield folder


def test_every_kind_is_registered_by_name():
    @click.command("serve-echo")
    def serve():
        """Serve."""

    plugin = module(
        register_loss=[Hinge],
        register_dataset_strategy=[Votes],
        register_reward=[Brevity],
        register_rollout=[Echo],
        register_dialect=[Tuner],
        register_command=[serve],
    )
    registry = Registry.from_modules({"mine": plugin})
    assert info(registry, "mine").problem is None
    assert registry.get("loss", "hinge") is Hinge
    assert registry.get("dataset_strategy", "votes", layout=Layout.PAIRED) is Votes
    assert registry.get("reward", "brevity") is Brevity
    assert registry.get("rollout", "echo") is Echo
    assert registry.get("dialect", "tuner") is Tuner
    assert registry.classes("loss") == (Hinge,)
    assert registry.commands() == {"serve-echo": serve}
    assert set(info(registry, "mine").hooks) == set(HOOKS)
    assert info(registry, "mine").names["loss"] == ("hinge",)


def test_cores_own_contributions_come_through_the_same_hooks():
    registry = Registry.from_modules({})
    assert info(registry, "core").problem is None
    assert set(registry.names("dataset_strategy")) == {"preference", "text", "passthrough", "unpaired", "ranked"}
    assert registry.names("reward") == ("default", "environment")
    assert registry.names("loss") == registry.names("rollout") == registry.names("dialect") == ()


def test_registries_share_nothing():
    Registry.from_modules({"mine": module(register_loss=[Hinge])})
    assert Registry.from_modules({}).names("loss") == ()


def test_a_hook_is_called_once():
    calls = []

    @hookimpl
    def register_loss():
        calls.append(1)
        return [Hinge]

    registry = Registry.from_modules({"mine": module(register_loss=register_loss)})
    registry.get("loss", "hinge")
    assert calls == [1]


def test_one_broken_contribution_breaks_the_whole_plugin_and_asking_for_any_says_why():
    registry = Registry.from_modules({"mine": module(register_loss=[Hinge], register_reward=[variant(Brevity, __call__=None)])})
    assert registry.names("loss") == ()
    with pytest.raises(
        PluginError, match=r"method 'hinge' is not available: plugin 'mine' \(dummy\) is broken: register_reward: class"
    ):
        registry.get("loss", "hinge")
    with pytest.raises(PluginError, match="method 'mine' is not available: plugin 'mine'"):
        registry.get("loss", "mine")
    assert registry.claims("loss", "hinge")
    assert not registry.claims("loss", "hinges")


def test_a_taken_name_names_both_owners_and_the_first_keeps_it():
    other = variant(Hinge, name="hinge")
    registry = Registry.from_modules({"b": module(register_loss=[other]), "a": module(register_loss=[Hinge])})
    assert registry.get("loss", "hinge") is Hinge
    assert info(registry, "b").problem == (
        "register_loss: the name 'hinge' of plugin 'b' (dummy) is already that of plugin 'a' (dummy); "
        "rename one, or leave one out with TRUING_BLOCK_PLUGINS"
    )


def test_core_keeps_its_names():
    mine = variant(Brevity, name="default")
    registry = Registry.from_modules({"a": module(register_reward=[mine])})
    assert registry.get("reward", "default") is not mine
    assert f"is already that of plugin 'core' (truing {truing.__version__})" in info(registry, "a").problem


def test_a_format_name_is_unique_per_layout():
    labelled = variant(Votes, layouts=frozenset({Layout.LABELED}))
    registry = Registry.from_modules(
        {"a": module(register_dataset_strategy=[Votes]), "b": module(register_dataset_strategy=[labelled])}
    )
    assert registry.get("dataset_strategy", "votes", layout=Layout.PAIRED) is Votes
    assert registry.get("dataset_strategy", "votes", layout=Layout.LABELED) is labelled
    with pytest.raises(PluginError, match=r"'votes' has a class for each of several layouts \(labeled, paired\); say which layout"):
        registry.get("dataset_strategy", "votes")
    twice = Registry.from_modules({"twice": module(register_dataset_strategy=[Votes, variant(Votes)])})
    assert "the name 'votes' of plugin 'twice' (dummy) is already that of plugin 'twice' (dummy)" in info(twice, "twice").problem


def test_a_wrong_layout_says_what_serves_it():
    more = [variant(Votes, name=name, layouts=frozenset({Layout.RANKED})) for name in ("polls", "polls.secret", "polls.open")]
    registry = Registry.from_modules({"a": module(register_dataset_strategy=[Votes, *more])})
    with pytest.raises(ConfigError) as raised:
        registry.get("dataset_strategy", "votes", layout=Layout.RANKED)
    assert str(raised.value) == (
        "format 'votes' is for the layouts paired, not ranked; choose one for ranked (polls.*, ranked), of which `truing explain "
        "data.format` says what it reads, a function of yours (file.function), or a method for such data, of which `truing "
        "methods` has a table"
    )


def test_names_by_layout():
    registry = Registry.from_modules(
        {"a": module(register_loss=[Hinge], register_dataset_strategy=[Votes], register_rollout=[Echo])}
    )
    assert registry.names("loss", layout=Layout.PAIRED) == ("hinge",)
    assert registry.names("loss", layout=Layout.RANKED) == ()
    assert "votes" in registry.names("dataset_strategy", layout=Layout.PAIRED)
    assert "votes" not in registry.names("dataset_strategy", layout=Layout.RANKED)
    assert registry.names("rollout", layout=Layout.PAIRED) == ("echo",)


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("loss", "grpo", "method 'grpo' is not installed; install its plugin with: pip install truing-grpo"),
        ("loss", "alphapo", "unknown method 'alphapo'; here it is {name: simpo, cpo_alpha: 0, alpha: ...}"),
        ("loss", "rloo", "method 'rloo' is not installed; install its plugin with: pip install truing-reinforce"),
        (
            "dataset_strategy",
            "chatml.intel",
            "format 'chatml.intel' is not installed; install its plugin with: pip install truing-chatml",
        ),
        (
            "dataset_strategy",
            "hh_rlhf",
            "format 'hh_rlhf' is not installed; install its plugin with: pip install truing-transcripts",
        ),
        ("reward", "math_accuracy", "reward 'math_accuracy' is not installed; install its plugin with: pip install truing-rewards"),
        ("rollout", "vllm", "rollout 'vllm' is not installed; install its plugin with: pip install truing-vllm"),
        ("loss", "gpro", "unknown method 'gpro'; did you mean 'grpo' (pip install truing-grpo)? Installed: hinge"),
        ("loss", "hingee", "unknown method 'hingee'; did you mean 'hinge'? Installed: hinge"),
        ("loss", "something-else", "unknown method 'something-else'. Installed: hinge"),
        ("rollout", "something-else", "unknown rollout 'something-else'. Installed: none"),
    ],
)
def test_unknown_names(kind, name, says):
    with pytest.raises(PluginError) as raised:
        Registry.from_modules({"a": module(register_loss=[Hinge])}).get(kind, name)
    assert str(raised.value) == says
    assert raised.value.exit_code == 3


def test_entry_points_are_sorted_and_carry_their_distribution(installed):
    installed.install("zulu", version="2.5", requires="truing >=0.1")
    installed.install("alpha-two", dist="acme-truing")
    registry = Registry.load()
    names = [info.name for info in registry.plugins]
    assert names[0] == "core"
    assert names[1:] == sorted(names[1:])
    assert {"alpha-two", "zulu"} <= set(names)
    assert (info(registry, "zulu").dist, info(registry, "zulu").version) == ("truing-zulu", "2.5")
    assert info(registry, "alpha-two").label == "plugin 'alpha-two' (acme-truing 1.0)"
    assert registry.get("loss", "zulu").name == "zulu"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import no_such_module_at_all",
            "cannot be imported (ModuleNotFoundError: No module named 'no_such_module_at_all'); reinstall or",
        ),
        (
            "raise SystemExit(4)",
            "cannot be imported (SystemExit: 4); reinstall or uninstall truing-bad, or leave it out with TRUING_BLOCK_PLUGINS=bad",
        ),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "cannot be imported (Odd: odd)"),
        ("def broken(:", "cannot be imported (SyntaxError: invalid syntax"),
    ],
)
def test_an_entry_point_that_raises_is_named_and_skipped(installed, caplog, code, says):
    installed.install("bad", code)
    installed.install("good")
    registry = Registry.load()
    assert says in info(registry, "bad").problem
    assert f"plugin 'bad' (truing-bad 1.0) is skipped: {info(registry, 'bad').problem}" in caplog.messages
    assert registry.get("loss", "good").name == "good"
    with pytest.raises(PluginError) as raised:
        registry.get("loss", "bad")
    assert str(raised.value).startswith(
        "method 'bad' is not available: plugin 'bad' (truing-bad 1.0) is broken: cannot be imported"
    )


def test_quiet_does_not_warn(installed, caplog):
    installed.install("bad", "raise SystemExit(4)")
    Registry.load(quiet=True)
    assert caplog.messages == []


def test_an_interrupt_is_not_taken_for_a_broken_plugin(installed):
    installed.install("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry.load()


def test_a_broken_first_party_plugin_answers_for_all_its_names(installed):
    installed.install("grpo", "import no_such_module_at_all")
    installed.install("chat-template", "import no_such_module_at_all")
    installed.install("reinforce", "raise SystemExit(4)")
    registry = Registry.load()
    for kind, name in (("loss", "grpo"), ("loss", "rloo"), ("dataset_strategy", "chat_template.argilla")):
        with pytest.raises(PluginError, match=rf"'{name}' is not available: .* is broken: cannot be imported"):
            registry.get(kind, name)


def test_an_installed_first_party_plugin_without_the_name_is_to_be_upgraded(installed, monkeypatch):
    monkeypatch.setitem(FIRST_PARTY["rollout"], "later", "truing-later")  # a plugin that nobody has installed beside this one
    installed.install("later")  # with a method, and no backend
    with pytest.raises(PluginError) as raised:
        Registry.load().get("rollout", "later")
    assert str(raised.value) == (
        "rollout 'later' is not in plugin 'later' (truing-later 1.0), which has none; try: pip install --upgrade truing-later"
    )


def test_a_plugin_whose_files_were_deleted_breaks_no_other(installed):
    package = installed.folder / "dummy_truing_gone.py"
    installed.install("gone")
    installed.install("good")
    package.unlink()
    shutil.rmtree(installed.folder / "__pycache__", ignore_errors=True)
    registry = Registry.load()
    assert "cannot be imported (ModuleNotFoundError: No module named 'dummy_truing_gone')" in info(registry, "gone").problem
    assert registry.get("loss", "good").name == "good"


def test_a_distribution_without_metadata_breaks_no_other(installed):
    installed.install("odd")
    (installed.folder / "dummy_truing_odd-1.0.dist-info" / "METADATA").unlink()
    registry = Registry.load()
    assert "odd" in registry.names("loss")
    assert info(registry, "odd").label == "plugin 'odd' (unknown distribution)"


@pytest.mark.parametrize("requires", ["truing>=99", "Truing ==0.0.1", 'truing[dpo]<0.0.5; python_version >= "3"'])
def test_a_plugin_for_another_core_is_refused_before_it_is_imported(installed, requires):
    installed.install("other", "raise AssertionError('imported')", requires=requires)
    assert info(Registry.load(), "other").problem.endswith(
        f"and this is truing {truing.__version__}; install versions that fit each other: pip install --upgrade truing truing-other"
    )


@pytest.mark.parametrize("requires", ["truing", "truing>=0.0.1", 'truing>=99; python_version < "3"', "attrs>=99"])
def test_a_plugin_for_this_core_is_accepted(installed, requires):
    installed.install("fits", requires=requires)
    assert info(Registry.load(), "fits").problem is None


def test_two_distributions_with_one_entry_point(installed):
    installed.install("twin", dist="a-twin")
    installed.install("twin", dist="b-twin")
    twins = [info for info in Registry.load().plugins if info.name == "twin"]
    assert [info.problem for info in twins] == [
        None,
        "the entry point 'twin' is already that of plugin 'twin' (a-twin 1.0); uninstall b-twin or a-twin",
    ]


def test_one_module_behind_two_entry_points():
    empty = module(register_loss=[])
    registry = Registry.from_modules({"a": empty, "b": empty})
    assert info(registry, "a").problem is None
    assert info(registry, "b").problem.startswith("cannot be registered (ValueError: Plugin already registered")


def test_only_limits_what_is_loaded(installed, monkeypatch):
    installed.install("one")
    installed.install("two", "raise AssertionError('imported')")
    monkeypatch.setenv("TRUING_PLUGINS", " one ,")
    registry = Registry.load()
    assert registry.names("loss") == ("one",)
    assert (info(registry, "two").status, info(registry, "two").problem) == (
        "blocked",
        "TRUING_PLUGINS does not name it; add it there to load it",
    )
    assert Registry.load(only=["core"]).names("loss") == Registry.load(only=[]).names("loss") == ()


def test_an_empty_variable_limits_nothing(installed, monkeypatch):
    installed.install("one")
    monkeypatch.setenv("TRUING_PLUGINS", "")
    assert "one" in Registry.load().names("loss")


def test_only_with_an_unknown_plugin_suggests(installed, monkeypatch):
    installed.install("zebra")
    monkeypatch.setenv("TRUING_PLUGINS", "zebar")
    with pytest.raises(PluginError, match="TRUING_PLUGINS names the plugin 'zebar', which is not installed; did you mean 'zebra'"):
        Registry.load()
    with pytest.raises(PluginError, match=r"only names the plugin 'quagga', which is not installed. Installed: .*zebra"):
        Registry.load(only=["quagga"])


def test_a_blocked_plugin_is_listed_and_answers_for_its_names(installed, monkeypatch, caplog):
    installed.install("kto", "raise AssertionError('imported')")
    monkeypatch.setenv("TRUING_BLOCK_PLUGINS", "kto,ktoo")
    registry = Registry.load()
    assert info(registry, "kto").status == "blocked"
    assert "TRUING_BLOCK_PLUGINS names the plugin 'ktoo', which is not installed; did you mean 'kto'?" in caplog.messages
    with pytest.raises(PluginError) as raised:
        registry.get("loss", "kto")
    assert str(raised.value) == (
        "method 'kto' is not available: plugin 'kto' (truing-kto 1.0) is blocked: "
        "TRUING_BLOCK_PLUGINS names it; take it out of there to load it"
    )
    assert info(Registry.load(block=["kto"]), "kto").problem == "block names it; take it out of there to load it"


def test_two_hundred_plugins_load_in_a_second(installed):
    for number in range(200):
        installed.install(f"dummy-{number:03}", requires="truing>=0.1")
    compileall.compile_dir(installed.folder, quiet=1)  # as pip does
    program = (
        "import time; from truing.registry import Registry; started = time.process_time()\n"
        "registry = Registry.load(only=[f'dummy-{number:03}' for number in range(200)])\n"
        "print(time.process_time() - started, sum(name.startswith('dummy-') for name in registry.names('loss')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed.folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split()
    assert loaded == "200"
    assert float(seconds) < 1


def test_a_namespace_with_hooks_is_a_plugin_too():
    plugin = types.SimpleNamespace(register_loss=module(register_loss=[Hinge]).register_loss)
    assert Registry.from_modules({"mine": plugin}).get("loss", "hinge") is Hinge


def test_what_a_plugin_prints_does_not_get_into_the_output(installed, capsys):
    code = "print('at import')\n" + LOSS_MODULE.format(name="loud")
    code = code.replace("    return [Dummy]", "    print('in a hook')\n    return [Dummy]")
    code = code.replace("        return Needs.NOTHING", "        print('in a check')\n        return Needs.NOTHING")
    installed.install("loud", code)
    assert info(Registry.load(), "loud").problem is None
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(words in shown.err for words in ("at import", "in a hook", "in a check"))
