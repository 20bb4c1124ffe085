"""The score head: the number of a completion, a linear function of the decoder's output at its last token."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.config.classes import ModelConfig
from truing.data.paths import local_path
from truing.errors import ModelError, first_line
from truing.model.weights import find_file

VALUE_HEAD = "value_head.safetensors"
"""Beside a model's weights or its adapter: the head, as the one tensor `weight` [1, H]."""
_KEY = "weight"


def find_score_head(config: ModelConfig, base_dir: Path) -> Path | None:
    """Return the file of the head that the model was saved with, None where it was saved without."""
    return find_file(config.name, local_path(config.name, base_dir), config.revision, VALUE_HEAD)


def new_score_head(model: PreTrainedModel, dtype: torch.dtype, seed: int) -> nn.Linear:
    """Return a head drawn from a normal distribution as wide as that of the model's own initial weights."""
    head = _empty(model, dtype)
    spread = float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    with torch.no_grad():
        head.weight.normal_(std=spread, generator=torch.Generator().manual_seed(seed))
    return head


def read_score_head(path: Path, model: PreTrainedModel, dtype: torch.dtype) -> nn.Linear:
    """Return the head in a file. Raises ModelError where it is not one of this model."""
    head = _empty(model, dtype)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}); copy it again from its source") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != {_KEY: tuple(head.weight.shape)}:
        raise ModelError(f"{path} holds {shapes}; a score head of this model is {{'{_KEY}': {tuple(head.weight.shape)}}}")
    if not found[_KEY].float().isfinite().all():
        raise ModelError(f"{path}: the score head is not finite; take that of an earlier run")
    with torch.no_grad():
        head.weight.copy_(found[_KEY])
    return head


def write_score_head(weight: Tensor, folder: Path) -> None:
    """Write the head's weight, [1, H], beside those of the model."""
    save_file({_KEY: weight.cpu().contiguous()}, folder / VALUE_HEAD)


def freeze_unread(model: PreTrainedModel) -> None:
    """Stop what is beyond the decoder from training: where no log-probability is read, nothing of it gets a gradient."""
    decoder = {id(weight) for weight in model.get_decoder().parameters()}
    for weight in model.parameters():
        if id(weight) not in decoder:
            weight.requires_grad_(False)


def _empty(model: PreTrainedModel, dtype: torch.dtype) -> nn.Linear:
    # what the token head reads, which some models make narrower or wider than their hidden size
    width = next(model.get_output_embeddings().parameters()).shape[-1]
    head: nn.Linear = nn.utils.skip_init(nn.Linear, width, 1, bias=False, dtype=dtype)
    return head
