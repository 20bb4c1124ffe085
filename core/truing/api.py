"""The Python API: one call trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from truing.config import LoraConfig, ModelConfig, TrainConfig, TrainerConfig, build_config, checked
from truing.data.example import DatasetStrategy
from truing.errors import ConfigError
from truing.loss import Loss
from truing.registry import Registry
from truing.rewards import Reward
from truing.rollout import Rollout
from truing.suggest import did_you_mean
from truing.train.given import Given
from truing.train.state import TrainState

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GIVEN_MODEL, GIVEN_ROWS = "(a model handed to truing.align)", "(rows handed to truing.align)"


def align(
    *,
    config: TrainConfig | None = None,
    model: str | Path | PreTrainedModel | PeftModel | None = None,
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | None = None,
    method: str | Mapping[str, Any] | Loss = "dpo",
    format: str | Mapping[str, Any] | DatasetStrategy | None = None,
    num_epochs: float = 1,
    learning_rate: float = 5e-6,
    batch_size: int = 4,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eval_dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | None = None,
    rewards: Sequence[str | Mapping[str, Any] | Reward | Callable[..., Any]] | None = None,
    rollout: str | Mapping[str, Any] | Rollout | None = None,
    adapter: Mapping[str, Any] | LoraConfig | None = None,
    output_dir: str | Path | None = None,
    resume: bool | str | Path = False,
    **kwargs: Any,
) -> TrainState:
    """Align a model with preferences, and return the state of the run with the trained model in it.

    A full TrainConfig as `config` overrides the rest, except for objects that are loaded already: a model with its tokenizer, and
    rows. Otherwise `model` is a hub id, a folder or a loaded model (then with
    `tokenizer`), `dataset` a path, a hub id, a `datasets.Dataset` or a list of rows, and `kwargs` are fields of the trainer or of
    the method. Without `format`, the columns of the first row say which it is. Never exits the process. It starts others for
    rewards that are named, and where the rollout backend does, as `vllm` with mode spawn.

    Raises ConfigError for a wrong or missing argument, naming all of them, and the other errors of truing.errors.

    Example:

        state = truing.align(model="Qwen/Qwen2.5-0.5B-Instruct", dataset="pairs.jsonl", beta=0.05, output_dir="output/pairs")
        state.metrics["rewards/accuracies"], state.model, state.tokenizer
    """
    from truing.train.loop import train

    given = _given(model, tokenizer, dataset, eval_dataset)
    if config is not None:
        if kwargs:
            raise ConfigError(f"config is a whole configuration, so {', '.join(kwargs)} would be ignored; set it in config")
        return train(checked(config, registry=Registry.load()), given, resume=resume)
    registry = Registry.load()
    trainer = {"num_epochs": num_epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    values = {
        "method": _place_settings(kwargs, trainer, method, registry),
        "model": {
            "name": _name(model, GIVEN_MODEL),
            "adapter": attrs.asdict(adapter) if isinstance(adapter, LoraConfig) else adapter,
        },
        "data": {"path": _name(dataset, GIVEN_ROWS), "format": format},
        "eval_data": None if eval_dataset is None else {"path": _name(eval_dataset, GIVEN_ROWS), "format": format},
        "rewards": rewards,
        "rollout": rollout,
        "trainer": trainer,
        "output": {"dir": None if output_dir is None else str(output_dir)},
    }
    return train(build_config(_without_none(values), registry=registry), given, resume=resume)


def _given(model: Any, tokenizer: PreTrainedTokenizerBase | None, dataset: Any, eval_dataset: Any) -> Given:
    """Return the arguments that are objects; names and paths belong to the configuration."""
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    objects = {
        name: None if isinstance(value, str | Path) else value
        for name, value in (("model", model), ("dataset", dataset), ("eval_dataset", eval_dataset))
    }
    if objects["model"] is not None and not isinstance(model, PreTrainedModel | PeftModel):
        raise ConfigError(f"model is a {type(model).__name__}; give a hub id, a folder, or a model of transformers or peft")
    if objects["model"] is not None and tokenizer is None:
        raise ConfigError("model is a loaded model, so tokenizer must be given too: align(model=model, tokenizer=tokenizer, ...)")
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"tokenizer is a {type(tokenizer).__name__}; give a loaded one, such as AutoTokenizer.from_pretrained(...), "
            "or none for the one in the model's folder"
        )
    return Given(tokenizer=tokenizer, **objects)


def _name(value: Any, given: str) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, str | Path) else given


def _place_settings(
    settings: Mapping[str, Any], trainer: dict[str, Any], method: str | Mapping[str, Any] | Loss, registry: Registry
) -> dict[str, Any] | Loss:
    """Put keyword arguments into `trainer`, or into the method's mapping; return that, or the method that is an instance."""
    if not isinstance(method, (str, Mapping)):
        own = [key for key in settings if key not in attrs.fields_dict(TrainerConfig)]
        if own:
            cls = type(method).__qualname__
            raise ConfigError(f"method is an instance of {cls}; set {', '.join(own)} on it: {cls}({own[0]}=...)")
        trainer.update(settings)
        return method
    method_settings = dict(method) if isinstance(method, Mapping) else {"name": method}
    if "name" not in method_settings:
        raise ConfigError(
            f"method is a mapping without `name`: {method_settings}; give one, such as {{'name': 'dpo', 'beta': 0.2}}"
        )
    for key, value in settings.items():
        _place(key, value, trainer, method_settings, registry)
    return method_settings


def _place(key: str, value: Any, trainer: dict[str, Any], method: dict[str, Any], registry: Registry) -> None:
    """Put a keyword argument where the configuration has it."""
    if key in attrs.fields_dict(TrainerConfig):
        trainer[key] = value
        return
    fields = attrs.fields_dict(registry.get("loss", method["name"]))
    if key not in fields:
        known = sorted({*attrs.fields_dict(TrainerConfig), *fields})
        raise ConfigError(
            f"align() has no argument {key!r}, nor has the trainer or method {method['name']!r} such a field"
            + (_also_called(key, fields) or did_you_mean(key, known) or _elsewhere(key))
        )
    method[key] = value


def _also_called(key: str, fields: Mapping[str, Any]) -> str:
    meant = next((name for name, field in fields.items() if key in field.metadata.get("also", ())), None)
    return f"; did you mean {meant!r}?" if meant else ""


def _elsewhere(key: str) -> str:
    if key not in attrs.fields_dict(ModelConfig):
        return ""
    return f"; {key} is a key of `model`, which a configuration can set: align(config=truing.config.load_config(...))"


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _without_none(value) if isinstance(value, dict) else value for key, value in values.items() if value is not None}
