"""Opens what a configuration's `rollout` says: a backend, and where it acts in something, the driver of episodes around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs

from truing.context import OpenContext
from truing.errors import ConfigError, RowError, naming
from truing.rollout.completion import LiveRollout, Rollout, is_concurrent
from truing.rollout.conversation.trajectory import unlike_the_trainer
from truing.rollout.environment import Environments

if TYPE_CHECKING:
    from truing.config.classes import RolloutConfig
    from truing.rollout.conversation.episodes import LiveConversations
    from truing.rollout.conversation.rendering import ChatRenderer

EPISODES_LOG = "episodes.log"
"""The file in the run directory with a line for each episode that failed."""
_OF_EPISODES = ("max_turns", "max_turn_length", "environment_timeout")


def acts_in_environment(config: RolloutConfig) -> bool:
    """Return whether episodes are acted out in an environment, which rewards them."""
    return config.environment is not None or has_environments(config.backend)


def has_episodes(config: RolloutConfig) -> bool:
    """Return whether what is sampled are episodes: with an environment or tools."""
    return acts_in_environment(config) or bool(config.tools)


def has_environments(backend: Rollout) -> bool:
    """Return whether a backend brings environments of its own."""
    return hasattr(backend, "open_environments")


def _unread(config: RolloutConfig) -> Iterator[tuple[str, str]]:
    fields = attrs.fields_dict(type(config))
    for name in _OF_EPISODES:
        value = getattr(config, name)
        if value != fields[name].default:
            message = (
                f"is {value}, and nothing reads it without rollout.environment or rollout.tools; leave it out, or set one of them"
            )
            yield name, message


def misfits(config: RolloutConfig) -> Iterator[tuple[str, str]]:
    """Yield each key of `rollout` that does not fit the others, and why."""
    if not has_episodes(config):
        yield from _unread(config)
        return
    if config.environment is not None and has_environments(config.backend):
        message = (
            f"is {config.environment}, and the backend {config.backend.name} has environments of its own; remove one of the two"
        )
        yield "environment", message
    yield from unlike_the_trainer(config)


def open_rollout(config: RolloutConfig, context: OpenContext) -> LiveRollout:
    """Return the live backend, or, with an environment or tools, a live rollout whose samples are episodes.

    Raises ConfigError for settings that do not fit each other, and for functions and classes that cannot be found or used, and
    PluginError, naming it, for an error of a backend's own.
    """
    for key, message in misfits(config):
        raise ConfigError(f"rollout.{key} {message}")
    if not has_episodes(config):
        return _engine(config, context)
    with ExitStack() as held:
        environments = _open_environments(config, context)
        if environments is not None:
            held.callback(environments.close)
        engine = _engine(config, context)
        held.callback(engine.close)
        try:
            live = _conversations(config, context, environments, engine, held)
        except RowError as error:
            raise ConfigError(f"rollout: {error}") from error
        live.held = held.pop_all()
    return live


def _engine(config: RolloutConfig, context: OpenContext) -> LiveRollout:
    with naming(f"opening rollout {config.backend.name!r} failed"):
        return config.backend.open(context)


def _open_environments(config: RolloutConfig, context: OpenContext) -> Environments | None:
    backend: Any = config.backend
    if has_environments(backend):
        with naming(f"opening the environments of rollout {backend.name!r} failed"):
            own: Environments = backend.open_environments(attrs.evolve(context, environment_timeout=config.environment_timeout))
        return own
    if config.environment is None:
        return None
    from truing.rollout.conversation.python_environments import load_environments

    return load_environments(config.environment, context.config_dir, config.environment_timeout)


def _conversations(
    config: RolloutConfig, context: OpenContext, environments: Environments | None, engine: LiveRollout, held: ExitStack
) -> LiveConversations:
    from truing.data.encode import Encoder
    from truing.loss import Layout
    from truing.model.loading import context_length
    from truing.rewards.pool import Log
    from truing.rollout.conversation.episode import Stage
    from truing.rollout.conversation.episodes import ConcurrentConversations, LiveConversations
    from truing.rollout.conversation.rendering import ChatRenderer, TextRenderer
    from truing.rollout.conversation.tools import TurnReader, open_tools
    from truing.threads import running_loop

    toolbox = open_tools(config.tools, context.config_dir, config.environment_timeout)
    held.callback(toolbox.close)
    schemas = (*toolbox.schemas, *(environments.tools if environments is not None else ()))
    encoder = Encoder(context.tokenizer, Layout.ROLLOUT)
    chat, text = ChatRenderer(encoder, schemas), TextRenderer(encoder)
    policy = context.models.get("policy")
    stage = Stage(
        engine=config.backend.name,
        reader=TurnReader(context.tokenizer, schemas),
        toolbox=toolbox,
        environments=environments,
        max_turns=config.max_turns,
        max_turn_length=config.max_turn_length,
        timeout=config.environment_timeout,
        context_length=None if policy is None else context_length(policy),
    )
    if both := sorted(stage.offered & toolbox.functions.keys()):
        raise ConfigError(f"rollout.tools has {both[0]!r}, and so has the environment, which would answer it; rename the function")
    cls: Any = ConcurrentConversations if is_concurrent(engine) else LiveConversations
    live: LiveConversations = cls(
        engine=engine,
        stage=stage,
        renderer_of=lambda request: text if isinstance(request.prompt, str) else chat,
        about="; ".join([*_said(engine), *_about(config, stage, chat)]),
        log=Log(context.run_dir / EPISODES_LOG),
        loop=held.enter_context(running_loop("truing-episodes")),
    )
    return live


def _said(engine: LiveRollout) -> Iterator[str]:
    if about := getattr(engine, "about", ""):
        yield str(about)


def _about(config: RolloutConfig, stage: Any, chat: ChatRenderer) -> Iterator[str]:
    from truing.rollout.conversation.tools import tool_name

    acting = f"episodes of up to {config.max_turns} turns"
    if stage.environments is not None:
        acting += f" in {stage.environments.name}"
    if chat.tools:
        acting += f" with the tools {', '.join(map(tool_name, chat.tools))}"
    yield acting
    if chat.encoder.tokenizer.chat_template is None:
        return
    if chat.hides_tools:
        yield "the chat template does not tell the policy of its tools, so that the data's prompts must"
    if roles := chat.rewritten:
        yield (
            f"the chat template renders history otherwise before messages of {' or '.join(roles)} (some drop earlier thinking): "
            "where it does, the conversation is rendered anew in a row of its own, and the rows of an episode share its advantage"
        )
