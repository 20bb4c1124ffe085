"""The one YAML file: its classes, and reading, merging, checking and explaining it."""

from truing.config.classes import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    ReferenceConfig,
    RewardEntry,
    RolloutConfig,
    TrainConfig,
    TrainerConfig,
)
from truing.config.dump import dump_config
from truing.config.load import build_config, checked, load_config

__all__ = [
    "DataConfig",
    "LoraConfig",
    "ModelConfig",
    "OutputConfig",
    "ReferenceConfig",
    "RewardEntry",
    "RolloutConfig",
    "TrainConfig",
    "TrainerConfig",
    "build_config",
    "checked",
    "dump_config",
    "load_config",
]
