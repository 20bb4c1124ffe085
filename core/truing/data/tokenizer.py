"""Loads the tokenizer that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truing.config.classes import ModelConfig
from truing.data.paths import local_path, may_be_hub_id, where_looked
from truing.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(config: ModelConfig, base_dir: Path) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, or the one that `model.tokenizer` names, with `model.chat_template` if given.

    A missing padding token becomes the end token: no embedding is added, and masks, not token ids, say what is counted. Raises
    ModelError where there is no such tokenizer, template file or end token.
    """
    from transformers import AutoTokenizer

    key, name = ("model.tokenizer", config.tokenizer) if config.tokenizer else ("model.name", config.name)
    folder = local_path(name, base_dir)
    if folder is None and not may_be_hub_id(name):
        raise ModelError(f"{key}: no folder {where_looked(name, base_dir)}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder or name),
            revision=None if config.tokenizer else config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except Exception as error:  # transformers, huggingface_hub and the Rust tokenizers share no type of error
        refuse_code(key, name, error)
        hint = (
            "the folder must hold tokenizer.json and tokenizer_config.json, or model.tokenizer name one that does"
            if folder
            else f"no folder {where_looked(name, base_dir)}; give a local folder, or a hub id that this machine can reach"
        )
        raise ModelError(f"{key}: no tokenizer in {name!r} ({first_line(error)}); {hint}") from error
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template, base_dir)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{key}: the tokenizer of {name!r} has no end token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_code(key: str, name: str, error: Exception) -> None:
    """Raise ModelError where transformers' error says that a repository brings code of its own."""
    if "custom code" in str(error):
        raise ModelError(
            f"{key}: {name!r} needs Python code of its own, which is not run; read it and, if you trust it, set "
            "model.trust_remote_code: true"
        ) from error


def _read_template(template: str, base_dir: Path) -> str:
    if "{" in template or "\n" in template:
        return template
    file = local_path(template, base_dir)
    if file is None or not file.is_file():
        raise ModelError(f"model.chat_template: no file {where_looked(template, base_dir)}; give a file, or the Jinja text itself")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"model.chat_template: {file} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error


def load_context_length(config: ModelConfig, base_dir: Path) -> int | None:
    """Return how many positions the model was made for, without loading it; None where its configuration does not say.

    Raises ModelError where the model has no configuration that can be read.
    """
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(
            str(local_path(config.name, base_dir) or config.name),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except Exception as error:
        refuse_code("model.name", config.name, error)
        raise ModelError(
            f"model.name: no config.json of a model that can be read in {config.name!r}: {first_line(error)}"
        ) from error
    length = getattr(loaded.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def decode_after(before: Sequence[int], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of tokens that follow others; on their own, some tokenizers drop the first space of a text."""
    start, whole = str(tokenizer.decode(list(before))), str(tokenizer.decode([*before, *ids]))
    return whole[len(start) :] if whole.startswith(start) else str(tokenizer.decode(list(ids)))
