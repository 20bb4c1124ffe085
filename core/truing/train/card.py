"""The model card that goes with a trained model."""

from __future__ import annotations

from typing import cast

import attrs
from peft import PeftModel

from truing.config import TrainConfig
from truing.redact import redact, redacted
from truing.train.console import describe
from truing.train.state import TrainState


def model_card(config: TrainConfig, state: TrainState) -> str:
    """Return Markdown with the front matter that model hubs read: what was trained from what, on what, how."""
    values = redacted(attrs.asdict(cast(attrs.AttrsInstance, config.method)))
    settings = ", ".join(f"{key} {value}" for key, value in values.items())
    datasets = "\n".join(f"- {source.path or ', '.join(source.data_files)} (as {source.format_name})" for source in config.data)
    adapter = f", {config.model.adapter.type} adapter of rank {config.model.adapter.r}" if config.model.adapter else ""
    base = "" if config.model.name.startswith("(") else f"base_model: {config.model.name}\n"  # a model without a name
    return redact(f"""---
{base}library_name: {"peft" if isinstance(state.model, PeftModel) else "transformers"}
tags: [truing, {config.method.name}]
---
# {state.output_dir.name}

{config.model.name}, aligned with {config.method.name} by Truing{adapter}.

- method: {config.method.name} ({settings})
- steps: {state.step} ({state.epoch:g} epochs), learning rate {config.trainer.learning_rate:g}, seed {config.trainer.seed}
- last metrics: {describe(state.metrics)}

Data:

{datasets}
""")
