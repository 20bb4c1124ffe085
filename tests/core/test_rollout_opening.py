"""What a configuration's rollout opens, and that all of it is closed again."""

from __future__ import annotations

from typing import ClassVar

import attrs
import pytest

from tests.core.conversations import LiveScripted, Scripted, opened
from tests.core.test_conversation_tools import Desk
from truing.config import RolloutConfig
from truing.errors import ConfigError, ModelError, PluginError
from truing.rollout import Rollout
from truing.rollout.opening import open_rollout
from truing.testing import check_rollout, fake_context
from truing.testing.fakes import FakeRollout


def say(request):
    return "a"


def test_without_an_environment_and_tools_the_backend_is_opened_as_it_is(tmp_path):
    assert type(open_rollout(RolloutConfig(backend=Scripted(say)), fake_context(tmp_path))) is LiveScripted


def test_all_is_closed_once(tmp_path):
    desk = Desk()
    live = opened(tmp_path, say, environments=desk)
    live.close()
    live.close()
    assert (live.engine.closed, desk.closed) == (1, 1)
    assert not live.loop.is_running()


def test_what_was_opened_is_closed_where_the_rest_cannot_be(tmp_path):
    desk = Desk()

    @attrs.frozen
    class Failing(Scripted):
        def open_environments(self, context):
            return desk

        def open(self, context):
            raise ModelError("no engine")

    with pytest.raises(ModelError, match="no engine"):
        open_rollout(RolloutConfig(backend=Failing(say)), fake_context(tmp_path))
    assert desk.closed == 1


def test_an_error_of_a_backends_own_names_it(tmp_path):
    @attrs.frozen
    class Failing(Scripted):
        def open(self, context):
            raise ZeroDivisionError("by nought")

    @attrs.frozen
    class Homeless(Failing):
        def open_environments(self, context):
            raise ZeroDivisionError("by nought")

    for backend, what in ((Failing, "rollout"), (Homeless, "the environments of rollout")):
        message = f"^opening {what} 'scripted' failed: ZeroDivisionError: by nought; mend its code \\(--debug shows where\\)$"
        with pytest.raises(PluginError, match=message):
            open_rollout(RolloutConfig(backend=backend(say)), fake_context(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"environment": "mine.Env", "environments": Desk()},
            "rollout.environment is mine.Env, and the backend scripted has envir",
        ),
        ({"environment": "mine.Env"}, "no module for 'mine.Env'"),
        ({"tools": ("mine.tool",)}, "no module for 'mine.tool'"),
        ({"tools": ("mine.tool",), "top_p": 0.5}, "rollout.top_p is 0.5, and the log-probabilities of a conversation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, say, **options)


def test_episodes_keep_the_promises_of_a_backend(tmp_path):
    """With a tool that nobody calls, an episode is one turn: what the engine promises, episodes keep."""
    (tmp_path / "mine.py").write_text('def tool():\n    """Does nothing."""\n')

    @attrs.frozen
    class Wrapped(Rollout):
        name: ClassVar[str] = "wrapped"

        def open(self, context):
            context = attrs.evolve(context, config_dir=tmp_path)
            return open_rollout(RolloutConfig(backend=FakeRollout(), tools=("mine.tool",)), context)

    check_rollout(Wrapped())
