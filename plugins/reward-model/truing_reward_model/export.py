"""Writes a reward model as a model of transformers that classifies sequences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from truing import Layout
from truing.data.encode import Encoder
from truing.errors import ConfigError, ModelError, first_line
from truing.model.score_head import VALUE_HEAD, read_score_head
from truing_reward_model.scorer import load_parts, model_folder

_CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [truing, reward-model]
---
# Reward model

One label: the score of a completion, of which only differences between completions of one prompt mean something. A text must end
with the token that ended its completions in training, and with nothing behind it.
"""


def export(run: Path, folder: Path) -> list[str]:
    """Write the model of a run, or of a model folder, to `folder`, and return what the user should know.

    Raises ConfigError where `folder` is not empty, ModelError where transformers has no such classifier.
    """
    source = model_folder(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; give a new folder")
    model, tokenizer = load_parts(source, dtype="float32")
    merged: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    rows = next(merged.get_input_embeddings().parameters()).shape[0]
    said = _set_padding(tokenizer, rows)
    classifier = _classifier(merged, source / VALUE_HEAD, tokenizer)
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_CARD)
    return [f"{type(classifier).__name__} written to {folder}", *said]


def _classifier(model: PreTrainedModel, head: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    try:
        classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__}: transformers has no classifier of sequences for it ({first_line(error)})"
        ) from error
    linear: Any = getattr(classifier, "score", None)
    is_plain = isinstance(linear, torch.nn.Linear) and "bias" not in dict(linear.named_parameters())
    if not is_plain or type(classifier.base_model) is not type(model.base_model):
        raise ModelError(
            f"{type(classifier).__name__} does more than a linear head on the last token, so that its scores would differ"
        )
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    classifier.score.weight.data.copy_(read_score_head(head, model, torch.float32).weight.data)
    found: PreTrainedModel = classifier.eval()
    return found


def _set_padding(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[str]:
    """Give the tokenizer a pad token that ends no completion, and return what to say of it.

    transformers reads the score at the last token that is not the pad token: were that the end token, it would read the one before.
    `rows` is how many embeddings the model has.
    """
    tokenizer.padding_side = "right"
    ends = _ends(tokenizer)
    named = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token]
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    before = tokenizer.pad_token
    for token in (token for token in (*named, *special) if token is not None):
        index = tokenizer.convert_tokens_to_ids(token)
        if isinstance(index, int) and index not in ends and index < rows:
            tokenizer.pad_token = token
            return [] if token == before else [f"pad token: {token}, because {before} ends completions"]
    tokenizer.pad_token = None
    return ["no pad token: every special token ends completions, so score one text at a time (batch size 1)"]


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that a completion may end with: the end token, and what the chat template ends a turn with."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        turn_end = Encoder(tokenizer, Layout.SINGLE).turn_end.rstrip()
        ends |= set(tokenizer(turn_end, add_special_tokens=False)["input_ids"][-1:])
    return ends
