"""What is refused before anything is loaded: settings that this machine or this version of core cannot honour."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping

import torch
from peft import PeftModel

from truing.config import TrainConfig
from truing.data.load import check_source
from truing.declared import all_needs, check_needs
from truing.errors import ConfigError, PluginError, SetupError
from truing.loss import Layout, Needs
from truing.model.policy import OFFERED, OFFERED_ONLINE
from truing.train.given import Given


def check_run(config: TrainConfig, given: Given) -> None:
    """Raise ConfigError, SetupError or PluginError for what would fail, or be ignored, later."""
    _check_method(config)
    _check_quantization(config)
    _check_machine(config)
    _check_given(config, given)
    for sources, rows in ((config.data, given.dataset), (config.eval_data, given.eval_dataset)):
        for source in sources if rows is None else ():
            check_source(source, config.base_dir)


def _check_method(config: TrainConfig) -> None:
    method = config.method
    check_needs(method)
    missing = all_needs(method) & ~(OFFERED if method.layout is not Layout.ROLLOUT else OFFERED | OFFERED_ONLINE)
    if missing:
        names = ", ".join(str(need.name) for need in missing)
        raise PluginError(f"method {method.name!r} needs {names}, which this version of truing does not compute")
    if Needs.MISMATCHED_LOGPS in method.needs and method.layout is not Layout.LABELED:
        raise PluginError(
            f"method {method.name!r} needs MISMATCHED_LOGPS, which exist for Layout.LABELED, and its layout is {method.layout}"
        )


def _check_quantization(config: TrainConfig) -> None:
    if config.model.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise SetupError("model.quantization: bitsandbytes is not installed; install it with: pip install truing[bitsandbytes]")


def _check_machine(config: TrainConfig) -> None:
    trainer = config.trainer
    if trainer.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("trainer.mixed_precision: fp16 needs a GPU, and there is none; use bf16 or no")
    for tracker in trainer.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise SetupError(f"trainer.report_to: {tracker} is not installed; install it with: pip install truing[{tracker}]")


def _check_given(config: TrainConfig, given: Given) -> None:
    if isinstance(given.model, PeftModel) and config.model.adapter is not None:
        raise ConfigError("the model handed over has an adapter already; give no `adapter`, or the model without one")
    for name in ("dataset", "eval_dataset"):
        rows = getattr(given, name)
        if isinstance(rows, Mapping) and all(isinstance(column, (list, tuple)) for column in rows.values()):
            raise ConfigError(f"{name} is a mapping of columns; give its rows: {name}=datasets.Dataset.from_dict(...)")
        if isinstance(rows, Mapping):  # a DatasetDict is one too
            raise ConfigError(f"{name} is a mapping of {', '.join(rows)}; give one of them, such as {name}=dataset['train']")
        if rows is not None and not isinstance(rows, Iterable):
            raise ConfigError(
                f"{name} is a {type(rows).__name__}; give a path, a hub id, a datasets.Dataset or a list of rows, each a dict"
            )
