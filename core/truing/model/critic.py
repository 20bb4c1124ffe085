"""The critic, which predicts a completion's return from each of its tokens: a model of its own, or a head on the policy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from truing.config import TrainConfig
from truing.data.paths import local_path
from truing.errors import ModelError
from truing.model.loading import add_adapter, disable_dropout, enable_checkpointing, load_adapted
from truing.model.policy import Policy
from truing.model.score_head import find_score_head, new_score_head, read_score_head
from truing.model.weights import ADAPTER, CONFIG

CRITIC_FOLDER = "critic"
"""Beside the policy's weights: the folder of a critic that is a model of its own."""


@attrs.frozen(eq=False)
class MadeCritic:
    """A critic, and a sentence that says where its weights are from."""

    model: Policy | None
    """None where it is a head on the policy's decoder."""
    head: nn.Linear
    origin: str


def make_critic(config: TrainConfig, policy: Policy, start: PreTrainedModel | PeftModel | None) -> MadeCritic:
    """Return the critic of a method that reads values, as its setting `critic` says: "separate", or else "shared".

    A separate one starts from the method's `critic_model`, or the model of a reward that scores by one, or from `start`, a copy of
    what the policy starts from. It trains as the policy does, by an adapter if that has one: its own, where it starts with one.
    Raises ModelError where the model that is named cannot be one.
    """
    method: Any = config.method
    if getattr(method, "critic", "shared") != "separate":
        return MadeCritic(None, _head(config, policy.causal_lm, None), "a value head on the policy's own model")
    named, key = getattr(method, "critic_model", None), "method.critic_model"
    if named is None:
        named, key = _of_rewards(config), "rewards"
    path = None if named is None else _folder(named, config.base_dir)
    if path is None:
        assert start is not None, "a copy is made where no model is named"
        model, origin = start, "a copy of the policy's starting weights"
    else:
        model, origin = _load(config, path, key, by_adapter=isinstance(policy.model, PeftModel)), path
    plain = Policy(model, "padded").causal_lm
    _check_fits(plain, policy, path, key)
    head = _head(config, plain, path)
    if config.trainer.disable_dropout:
        disable_dropout(model)
    if config.model.adapter is not None and not isinstance(model, PeftModel):
        model = add_adapter(model, config.model.adapter)
    if config.trainer.gradient_checkpointing:
        enable_checkpointing(model)
    critic = Policy(model, "padded", value_head=head)
    token_head = critic.causal_lm.get_output_embeddings()
    if token_head is not None and not _is_tied(critic.causal_lm):
        token_head.requires_grad_(False)  # nothing reads it
    return MadeCritic(critic, head, origin)


def needs_copy(config: TrainConfig) -> bool:
    """Whether a separate critic starts from what the policy starts from."""
    method: Any = config.method
    separate = getattr(method, "critic", "shared") == "separate"
    return separate and getattr(method, "critic_model", None) is None and _of_rewards(config) is None


def _of_rewards(config: TrainConfig) -> str | None:
    """Return the model that scores completions, where a reward has one: its setting `critic_start`."""
    found = (getattr(entry.reward, "critic_start", None) for entry in config.rewards)
    return next((str(name) for name in found if name is not None), None)


def _folder(name: str, base_dir: Path) -> str:
    """Return a model's name, or its folder: that of a run is the model in it, or the adapter."""
    folder = local_path(name, base_dir)
    if folder is None:
        return name
    of_run = folder / "model"
    return str(of_run if any((of_run / file).exists() for file in (CONFIG, ADAPTER)) else folder)


def _load(config: TrainConfig, path: str, key: str, *, by_adapter: bool) -> PreTrainedModel | PeftModel:
    """Return the model at `path`; an adapter that it has goes on training, or is merged into weights that train."""
    settings = attrs.evolve(config.model, name=path, revision=None)
    trained = config.model.adapter is None
    model = load_adapted(settings, config.base_dir, trained=trained, adapter_trained=by_adapter, key=key)
    if by_adapter or not isinstance(model, PeftModel):
        return model
    merged: Any = model.merge_and_unload()
    whole: PreTrainedModel = merged.requires_grad_(True)  # an adapter freezes what it is on
    return whole


def _head(config: TrainConfig, model: PreTrainedModel, name: str | None) -> nn.Linear:
    """Return the value head that a model was saved with, as a reward model is with a score head, or a new one."""
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    found = None if name is None else find_score_head(attrs.evolve(config.model, name=name, revision=None), config.base_dir)
    return new_score_head(model, dtype, config.trainer.seed) if found is None else read_score_head(found, model, dtype)


def _check_fits(model: PreTrainedModel, policy: Policy, name: str | None, key: str) -> None:
    """Raise ModelError for a model that cannot be computed in the policy's layout or reads other tokens."""
    own = policy.causal_lm
    sizes = [int(next(one.get_input_embeddings().parameters()).shape[0]) for one in (model, own)]
    if type(model) is not type(own) or sizes[0] != sizes[1]:
        raise ModelError(
            f"{key}: the critic {name!r} is a {type(model).__name__} with {sizes[0]:,} embeddings, and the policy a "
            f"{type(own).__name__} with {sizes[1]:,}; it must be of the same architecture and vocabulary. Name another as "
            "method.critic_model, or set method.critic to shared"
        )


def _is_tied(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
