"""Plugins and configurations for the tests of truing.config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs

from tests.core.plugins import module
from truing import Layout, Loss, Needs, TrainConfig, setting
from truing.config import load_config
from truing.registry import Registry


@attrs.frozen(kw_only=True)
class Pairs(Loss):
    """A method for pairs with a field of every type."""

    name: ClassVar[str] = "dpo"
    layout: ClassVar[Layout] = Layout.PAIRED
    beta: float = setting(0.1, gt=0, help="Scale.")
    loss_type: Literal["sigmoid", "ipo"] | tuple[Literal["sigmoid", "ipo"], ...] = setting("sigmoid", help="The loss, or several.")
    loss_weights: tuple[float, ...] = setting((), ge=0, help="One for each loss.")
    label_smoothing: float = setting(0.0, ge=0, lt=0.5, help="Share of flipped labels.")
    clip_range: tuple[float, float] | None = setting(None, help="Lowest and highest ratio.")
    offsets: tuple[float | None, ...] = setting((), help="One for each loss, or none.")
    groups: Mapping[str, int] = setting(factory=dict, help="Sizes by name.")
    reference_free: bool = setting(False, help="Without a reference.")

    def __attrs_post_init__(self) -> None:
        if self.label_smoothing and self.loss_type == "ipo":
            raise ValueError("label_smoothing means nothing to ipo; set it to 0")

    @property
    def needs(self) -> Needs:
        return Needs.NOTHING if self.reference_free else Needs.REFERENCE_LOGPS

    def __call__(self, inputs):
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Sampled(Loss):
    """A method that samples completions."""

    name: ClassVar[str] = "grpo"
    layout: ClassVar[Layout] = Layout.ROLLOUT
    beta: float = setting(0.0, ge=0, help="Scale of the KL.")
    num_iterations: int = setting(1, gt=0, help="Updates per batch.")
    needs = Needs.NOTHING
    rollout_needs = Needs.REWARDS

    def __call__(self, inputs):
        raise NotImplementedError

    def advantages(self, rollouts):
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Columns:
    """Pairs from columns of any name."""

    name: ClassVar[str] = "user.columns"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    field_chosen: str = setting("chosen", help="Column of the chosen answer.")

    def parse(self, row):
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Brevity:
    """Short is good."""

    name: ClassVar[str] = "brevity"
    limit: int = setting(200, gt=0, help="Characters.")

    def __call__(self, completions):
        return [0.0 for _ in completions]


@attrs.frozen(kw_only=True)
class Server:
    """Samples elsewhere."""

    name: ClassVar[str] = "vllm"
    port: int = setting(8000, gt=0, help="Port.")

    def open(self, context):
        raise AssertionError("a configuration is read, and nothing is opened")


@attrs.frozen(kw_only=True)
class InProcess:
    """Samples here."""

    name: ClassVar[str] = "transformers"

    def open(self, context):
        raise AssertionError("a configuration is read, and nothing is opened")


@attrs.frozen(kw_only=True)
class Careless:
    """Raises what a plugin should not raise."""

    name: ClassVar[str] = "careless"

    def __attrs_post_init__(self) -> None:
        raise ZeroDivisionError("float division by zero")

    def __call__(self, completions):
        raise NotImplementedError


REGISTRY = Registry.from_modules(
    {
        "fakes": module(
            register_loss=[Pairs, Sampled],
            register_dataset_strategy=[Columns],
            register_reward=[Brevity, Careless],
            register_rollout=[Server, InProcess],
        )
    }
)

DPO = """\
recipe: align
method: dpo
model:
  name: meta-llama/Llama-3.1-8B-Instruct
data:
  path: data/preferences.jsonl
  format: preference
trainer:
  batch_size: 4
  gradient_accumulation: 4
  learning_rate: 5e-6
  num_epochs: 1
  mixed_precision: bf16
output:
  dir: output/dpo-align
"""

ONLINE = """\
method: {name: grpo, beta: 0.001}
model:
  name: Qwen/Qwen2.5-1.5B-Instruct
  adapter: {type: lora, r: 16, target_modules: [q_proj, v_proj]}
data:
  - {path: openai/gsm8k, name: main, format: text, weight: 1}
  - {path: more.jsonl, format: text, weight: 0.5, data_files: [a.json, b.json]}
eval_data: {path: openai/gsm8k, name: main, split: test, format: text}
rollout: {name: vllm, port: 9000, num_generations: 4}
rewards:
  - {name: brevity, limit: 7, weight: 2}
  - brevity
trainer: {max_steps: 10, max_length: null, report_to: tensorboard}
output: {dir: output/grpo}
"""


def load(folder: Path, text: str, *overrides: str, registry: Registry = REGISTRY) -> TrainConfig:
    """Write the text to run.yaml in the folder and load it."""
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    return load_config(path, overrides, registry=registry)


def failure(folder: Path, text: str, *overrides: str, registry: Registry = REGISTRY) -> str:
    """Return the message of the error that loading the text raises, with paths relative to the folder."""
    from truing.errors import TruingError

    try:
        config: Any = load(folder, text, *overrides, registry=registry)
    except TruingError as error:
        return str(error).replace(f"{folder}/", "")
    raise AssertionError(f"no error, but {config}")
