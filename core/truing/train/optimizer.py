"""The optimiser and the learning rate's schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from truing.config.classes import TrainerConfig

MIN_LR_RATE = 0.1
"""Where `cosine_with_min_lr` ends, as a share of the peak."""


def make_optimizer(model: nn.Module, config: TrainerConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter, arXiv:1711.05101) over what trains, without weight decay on biases and norms."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in trained if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=all(weight.device.type in {"cpu", "cuda"} for weight in trained),
    )


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainerConfig, total_steps: int) -> LRScheduler:
    """Return the schedule of `trainer.lr_scheduler_type`, a function of the step alone."""
    warmup = math.ceil(config.warmup_ratio * total_steps) if config.warmup_steps is None else config.warmup_steps
    special = {"min_lr_rate": MIN_LR_RATE} if config.lr_scheduler_type == "cosine_with_min_lr" else None
    schedule: LRScheduler = get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=special,
    )
    return schedule
