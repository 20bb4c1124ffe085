"""Loads a model from the hub or a folder, and puts an adapter on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from truing.config.classes import LoraConfig, ModelConfig
from truing.data.paths import local_path
from truing.data.tokenizer import refuse_code
from truing.data.watch import Watch
from truing.errors import ModelError, first_line
from truing.model.mapped import detach_from_files
from truing.model.weights import ADAPTER, check_weights, conversion, find_file
from truing.redact import redact


def load_model(config: ModelConfig, base_dir: Path, *, trained: bool, key: str = "model.name") -> PreTrainedModel:
    """Return the causal language model that the configuration names, on the CPU, in memory of its own; `key` is where it does.

    With dtype auto, weights that train are float32 (half-precision weights lose small updates), all others as they are stored.
    Only safetensors are read, and no code of the model's runs unless `trust_remote_code`. Raises ModelError when there is no such
    model, when it cannot be read, or when its files change meanwhile.
    """
    dtype = ("float32" if trained else "auto") if config.dtype == "auto" else config.dtype
    folder, watch = local_path(config.name, base_dir), Watch()
    check_weights(config.name, folder, config.revision, trusts_code=config.trust_remote_code, key=key)
    try:
        for file in folder.glob("*.safetensors") if folder is not None else ():
            watch.add(file)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder or config.name),
            revision=config.revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            quantization_config=_quantization(config),
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError, SafetensorError) as error:
        refuse_code(key, config.name, error)
        raise ModelError(f"{key}: {config.name!r} cannot be loaded: {_why(config.name, error, folder)}") from error
    detach_from_files(model)
    if problem := watch.changed():
        raise ModelError(f"{key}: {problem}")
    return model


def load_adapted(
    config: ModelConfig, base_dir: Path, *, trained: bool, adapter_trained: bool = False, key: str = "model.name"
) -> PreTrainedModel | PeftModel:
    """Return the model that the configuration names, with the adapter on it where its folder or repository holds one.

    `trained` is as in `load_model`, of the weights beneath the adapter. Raises ModelError, for an adapter that does not say what
    model it is for too.
    """
    folder = local_path(config.name, base_dir)
    file = find_file(config.name, folder, config.revision, ADAPTER)
    if file is None:
        return load_model(config, base_dir, trained=trained, key=key)
    check_weights(config.name, folder, config.revision, trusts_code=config.trust_remote_code, key=key)
    name = PeftConfig.from_pretrained(str(file.parent)).base_model_name_or_path
    if not name:
        raise ModelError(
            f"{key}: {file} does not say which model the adapter is for; write its folder or hub id there, as "
            "base_model_name_or_path"
        )
    base = load_model(attrs.evolve(config, name=str(name), revision=None), base_dir, trained=trained, key=key)
    adapted: PeftModel = PeftModel.from_pretrained(
        base, str(folder or config.name), is_trainable=adapter_trained, revision=config.revision
    )
    return adapted


def _quantization(config: ModelConfig) -> BitsAndBytesConfig | None:
    if config.quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def _why(name: str, error: Exception, folder: Path | None) -> str:
    if folder is not None:
        return f"{first_line(error)}; the folder must hold config.json and *.safetensors as save_pretrained writes them"
    if "cannot be loaded with `safetensors`" in str(error):
        return (
            "it has no safetensors, and a pickle, which can run code as it is read, is not read; convert it where you trust it: "
            f"{conversion(name)}"
        )
    return f"{first_line(error)}; give a hub id such as Qwen/Qwen2.5-0.5B-Instruct that this machine can reach, or a local folder"


def add_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Return the model with a fresh low-rank adapter, the only part that trains.

    Raises ModelError when `target_modules` matches no module, naming those that exist, or `modules_to_save` names an unknown one.
    """
    names = {part for name, _ in model.named_modules() for part in (name, name.rsplit(".", 1)[-1])}
    unknown = [name for name in config.modules_to_save if name not in names]
    if unknown:
        raise ModelError(f"model.adapter.modules_to_save: this model has no module {', '.join(unknown)}; name modules that it has")
    targets = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    peft_config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        lora_alpha=2 * config.r if config.alpha is None else config.alpha,  # type: ignore[arg-type]  # peft divides it by r
        lora_dropout=config.dropout,
        target_modules=targets,
        modules_to_save=list(config.modules_to_save) or None,
        use_rslora=config.use_rslora,
    )
    try:
        adapted = get_peft_model(model, peft_config)
    except ValueError as error:
        linear = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
        raise ModelError(
            f"model.adapter.target_modules: {config.target_modules!r} does not fit this model ({first_line(error)}); "
            f"its linear modules are {', '.join(linear)}; all-linear takes them all"
        ) from error
    assert isinstance(adapted, PeftModel)
    for written in adapted.peft_config.values():  # with the adapter, for others to find its model by
        written.base_model_name_or_path = redact(written.base_model_name_or_path or "") or None
    return adapted


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to zero, so that policy and reference differ by their weights only."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # some models keep the probability as a plain number, such as attention_dropout and layerdrop
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for a while: without dropout, as a copy is that is never trained."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def context_length(model: nn.Module) -> int | None:
    """Return how many positions the model was made for, or None where its configuration does not say."""
    config: Any = model.config
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def enable_checkpointing(model: Any) -> None:
    """Make the model compute activations again in the backward instead of keeping them."""
    # transformers 5.2x gave the method a new name, and the old one goes in version 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def disable_checkpointing(model: Any) -> None:
    """Undo `enable_checkpointing`."""
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()


def is_checkpointing(model: nn.Module) -> bool:
    """Whether `enable_checkpointing` is in force."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
