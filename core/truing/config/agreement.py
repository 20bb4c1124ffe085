"""What must agree across keys, and is therefore no single key's type or bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.config.classes import DataConfig, ModelConfig, RolloutConfig, TrainConfig, TrainerConfig
from truing.config.faults import KeyPath, show
from truing.data.files import file_type
from truing.declared import all_needs
from truing.errors import ConfigError
from truing.functions import find_function
from truing.loss import Layout, Needs
from truing.rewards import DEFAULT_WARNING, DefaultReward
from truing.rollout.conversation.trajectory import unlike_the_trainer
from truing.rollout.opening import has_episodes, misfits
from truing.rollout.plan import plan_misfits

if TYPE_CHECKING:
    from truing.registry import Registry


def disagreements(sections: Mapping[str, Any], registry: Registry, base_dir: Path) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path of each key that does not fit the others, and why. `sections` are those that are right by themselves."""
    if sections.get("data") == ():
        yield ("data",), "is empty; name at least one dataset"
    for key in ("data", "eval_data"):
        yield from _data(key, sections.get(key, ()))
    if "trainer" in sections:
        yield from _lengths(sections["trainer"])
    if "model" in sections:
        yield from _quantization(sections["model"])
    if sections.get("rollout") is not None:
        yield from ((("rollout", key), message) for key, message in misfits(sections["rollout"]))
        yield from _not_found(sections["rollout"], base_dir)
    if "method" in sections:
        yield from _offline(sections, registry)
        yield from _unpair(sections, registry)
        yield from _online(sections)
        if "model" in sections:
            yield from _reference(sections["method"], sections["model"])


def _data(key: str, entries: tuple[DataConfig, ...]) -> Iterator[tuple[KeyPath, str]]:
    weighted = [entry.weight is not None for entry in entries]
    for index, entry in enumerate(entries):
        path: KeyPath = (key, index) if len(entries) > 1 else (key,)
        if entry.path is None and not entry.data_files:
            yield path, "needs a path or data_files: a hub id, a folder or a file"
        for name in ("name", "revision"):
            if getattr(entry, name) is not None and entry.path is not None and file_type(Path(entry.path)) is not None:
                yield (*path, name), f"is only for datasets of the hub, and {entry.path} is a file; remove it"
        if weighted == [True]:
            yield (*path, "weight"), "is only for several datasets that are mixed, and there is one; remove it"
        if any(weighted) and entry.weight is None:
            yield path, "has no weight, but other entries have; give one to all of them or to none"


def _lengths(trainer: TrainerConfig) -> Iterator[tuple[KeyPath, str]]:
    longest, prompt = trainer.max_length, trainer.max_prompt_length
    if longest is not None and prompt is not None and prompt >= longest:
        message = f"must be below trainer.max_length ({longest}), got {prompt}: no token would be left for the completion"
        yield ("trainer", "max_prompt_length"), message


def _quantization(model: ModelConfig) -> Iterator[tuple[KeyPath, str]]:
    if model.quantization is not None and model.adapter is None:
        message = (
            f"is {model.quantization}, which keeps weights in 4 bits that cannot be trained; train an adapter on them "
            "(model.adapter: {type: lora}), or leave quantization out"
        )
        yield ("model", "quantization"), message


def _offline(sections: Mapping[str, Any], registry: Registry) -> Iterator[tuple[KeyPath, str]]:
    method = sections["method"]
    if method.layout is Layout.ROLLOUT:
        return
    online = ", ".join(registry.names("loss", layout=Layout.ROLLOUT)) or "none is installed"
    for key in ("rewards", "rollout"):
        if sections.get(key):
            yield (
                (key,),
                f"is only for methods that sample completions ({online}); {method.name} trains on the data's own, so remove it",
            )


def _online(sections: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    method, rollout = sections["method"], sections.get("rollout")
    if rollout is None or method.layout is not Layout.ROLLOUT:
        return
    yield from ((("rollout", key), message) for key, message in plan_misfits(rollout, method))
    if Needs.BEHAVIOR_LOGPS in all_needs(method) and not has_episodes(rollout):
        whose = f"sampled tokens, which {method.name} with these settings compares with those of training,"
        yield from ((("rollout", key), message) for key, message in unlike_the_trainer(rollout, whose))


def _unpair(sections: Mapping[str, Any], registry: Registry) -> Iterator[tuple[KeyPath, str]]:
    method = sections["method"]
    if method.layout is Layout.LABELED:
        return
    labelled = ", ".join(registry.names("loss", layout=Layout.LABELED)) or "none is installed"
    for key in ("data", "eval_data"):
        entries = sections.get(key, ())
        for index, entry in enumerate(entries):
            if entry.unpair:
                path: KeyPath = (key, index, "unpair") if len(entries) > 1 else (key, "unpair")
                yield (
                    path,
                    f"is only for methods of single responses with labels ({labelled}), and {method.name} is none; remove it",
                )


def _reference(method: Any, model: ModelConfig) -> Iterator[tuple[KeyPath, str]]:
    settings = model.reference_settings
    if Needs.REFERENCE_LOGPS not in all_needs(method):
        asked: dict[KeyPath, Any] = {
            ("precompute_reference",): model.precompute_reference,
            ("reference", "name"): settings.name,
            ("reference", "sync_steps"): settings.sync_steps,
        }
        for key, value in asked.items():
            if value:
                yield ("model", *key), f"is {show(value)}, but {method.name} with these settings uses no reference; remove it"
    elif model.precompute_reference and method.layout is Layout.ROLLOUT:
        message = f"takes the reference's log-probabilities of the data's completions, and {method.name} samples its own; remove it"
        yield ("model", "precompute_reference"), message
    elif model.precompute_reference and settings.sync_steps is not None:
        message = (
            "keeps log-probabilities of a reference that stays as it is, and with model.reference.sync_steps it follows the "
            "policy; remove one of the two"
        )
        yield ("model", "precompute_reference"), message
    if settings.sync_steps is not None and settings.name is not None and model.adapter is not None:
        message = (
            f"is {settings.sync_steps}, but where an adapter is trained only a second adapter can follow it, and not the model "
            "that model.reference.name says; remove one of the two"
        )
        yield ("model", "reference", "sync_steps"), message
    if settings.sync_steps is None and settings.mixup_alpha != 0.6:
        message = f"is {settings.mixup_alpha:g}, but without sync_steps the reference never moves; set that, or remove mixup_alpha"
        yield ("model", "reference", "mixup_alpha"), message


def _not_found(rollout: RolloutConfig, base_dir: Path) -> Iterator[tuple[KeyPath, str]]:
    """Yield the keys of `rollout` that name a class or functions of a file which are not there, and why."""
    for key, names in (("environment", filter(None, [rollout.environment])), ("tools", rollout.tools)):
        for name in names:
            try:
                find_function(name, base_dir)
            except ConfigError as error:
                yield ("rollout", key), f"cannot be used: {error}"


def warnings_of(config: TrainConfig) -> list[str]:
    """Return what a valid configuration says that its author may not have meant, one sentence each."""
    is_default = [isinstance(entry.reward, DefaultReward) for entry in config.rewards]
    warnings = [DEFAULT_WARNING] if is_default and all(is_default) else []
    warnings += getattr(config.method, "warnings", [])
    if config.rollout is not None and config.rollout.max_staleness and Needs.BEHAVIOR_LOGPS not in all_needs(config.method):
        warnings.append(
            f"rollout.max_staleness is {config.rollout.max_staleness}, and {config.method.name} with these settings takes what "
            "older weights sampled for its own; correct for it: in grpo, method.importance_sampling_correction: token_truncate does"
        )
    return warnings
