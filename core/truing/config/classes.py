"""The configuration as classes: one attrs class per mapping of the YAML, one field per key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs

from truing.data.example import DatasetStrategy
from truing.loss import Loss
from truing.rewards import Reward
from truing.rollout import Rollout
from truing.settings import setting


@attrs.frozen(kw_only=True)
class LoraConfig:
    """Low-rank adapters, trained instead of the model's own weights (Hu et al. 2021, arXiv:2106.09685)."""

    type: Literal["lora"] = setting("lora", help="The kind of adapter.")
    r: int = setting(16, gt=0, help="Rank.")
    alpha: float | None = setting(None, gt=0, help="Scale; the update is multiplied by alpha / r. null is 2 r.")
    dropout: float = setting(0.0, ge=0, lt=1, help="Dropout on the adapter's input.")
    target_modules: str | tuple[str, ...] = setting("all-linear", help="Names of the modules to adapt, or all-linear.")
    modules_to_save: tuple[str, ...] = setting((), help="Modules trained whole beside the adapter.")
    use_rslora: bool = setting(False, help="Scale by alpha / sqrt(r) (arXiv:2312.03732).")


@attrs.frozen(kw_only=True)
class ReferenceConfig:
    """A reference of another model, or one that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656)."""

    name: str | None = setting(
        None, help="Hub id or local folder of the reference; null takes the weights that the policy starts from."
    )
    sync_steps: int | None = setting(
        None, gt=0, help="Optimiser steps between moves of the reference towards the policy; null never."
    )
    mixup_alpha: float = setting(
        0.6, gt=0, le=1, help="Share of the policy in what the reference becomes at a move; 1 is the policy."
    )


@attrs.frozen(kw_only=True)
class ModelConfig:
    """The policy, and what its reference is."""

    name: str = setting(help="Hub id or local folder of the model.")
    revision: str | None = setting(None, help="Branch, tag or commit of the hub repository.")
    tokenizer: str | None = setting(None, help="Hub id or folder of the tokenizer; null takes the model's.")
    chat_template: str | None = setting(None, help="Jinja text, or a file with it, for a tokenizer that has none or another one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = setting(
        "auto", help="Type of the weights; auto is float32 for weights that train, and as stored beneath an adapter."
    )
    quantization: Literal["nf4", "fp4"] | None = setting(
        None, help="Keep linear layers in 4 bits, of this type, by bitsandbytes; an adapter is trained on them (arXiv:2305.14314)."
    )
    adapter: LoraConfig | None = setting(None, help="Train an adapter instead of the model's weights.")
    reference: Literal["auto", "copy"] | ReferenceConfig = setting(
        "auto",
        help="auto: with an adapter, the same weights with it off; else a frozen copy. copy: always a copy. A mapping: another "
        "model, or one that follows the policy.",
    )
    precompute_reference: bool = setting(
        False, help="Compute the reference's log-probabilities once, before training, and keep them for later runs."
    )
    trust_remote_code: bool = setting(False, help="Run code from the model's repository. Only for repositories that you trust.")

    @property
    def reference_settings(self) -> ReferenceConfig:
        """The mapping that `reference` is; where it is a word, one with nothing set."""
        return self.reference if isinstance(self.reference, ReferenceConfig) else ReferenceConfig()


@attrs.frozen(kw_only=True)
class DataConfig:
    """One dataset: where it is, and how a row is read."""

    path: str | None = setting(None, help="Hub id, folder, or .json, .jsonl, .csv, .parquet, .txt file (.gz too).")
    format: DatasetStrategy | None = setting(
        None, help="How a row is read: a dataset strategy, or file.function; null chooses by the first row's columns."
    )
    name: str | None = setting(None, help="Configuration of a hub dataset.")
    split: str = setting("train", help="Split, slices included: train[:10%].")
    revision: str | None = setting(None, help="Branch, tag or commit of a hub dataset.")
    ds_type: Literal["json", "csv", "parquet", "text"] | None = setting(None, help="Type of data_files, where path is not given.")
    data_files: tuple[str, ...] = setting((), help="Files, instead of path or within it.")
    weight: float | None = setting(
        None, gt=0, help="Share of this dataset where several are mixed; rows beyond it are never seen. All of them need one."
    )
    limit: int | None = setting(None, gt=0, help="Use only the first rows.")
    on_bad_row: Literal["error", "skip"] = setting("error", help="What a row that cannot be read does: stop, or be counted.")
    unpair: bool = setting(
        False,
        help="Read pairs, and take each apart: chosen is desirable, rejected is not. For methods of labels; a format that reads no "
        "labels does so of itself.",
    )

    @property
    def format_name(self) -> str:
        """The format's name, or that it is yet to be chosen."""
        return "its columns say" if self.format is None else self.format.name


@attrs.frozen(kw_only=True)
class RewardEntry:
    """One reward of an online method: its weight in the sum, and what its failures cost."""

    reward: Reward
    weight: float = setting(1.0, help="Factor of this reward in the sum.")
    timeout: float = setting(60.0, gt=0, help="Seconds that one call may take before it counts as failed.")
    on_error: Literal["mask", "fail"] | float = setting(
        "mask", help="What a failed call does: mask leaves its samples out, fail ends the run, a number is their score."
    )
    max_error_rate: float = setting(
        0.5, ge=0, le=1, help="The run ends when a larger share of a rollout batch's samples has no score because calls failed."
    )


DEFAULT_ROLLOUT = "transformers"
"""The backend of a rollout that names none."""


@attrs.frozen(kw_only=True)
class RolloutConfig:
    """Where an online method's completions come from, how many there are and how they are drawn."""

    backend: Rollout
    num_generations: int | None = setting(None, gt=0, help="Completions of each prompt; null: the method's default.")
    prompts_per_batch: int | None = setting(
        None, gt=0, help="Prompts of one rollout batch, sampled and scored together; null: those of the steps of one pass."
    )
    max_completion_length: int | None = setting(
        None, gt=0, help="Most tokens of a completion; null is the method's max_completion_length, or else 256."
    )
    temperature: float = setting(1.0, ge=0, help="Softmax temperature, of the trainer's log-probabilities too; 0 is greedy.")
    top_p: float = setting(1.0, gt=0, le=1, help="Nucleus: smallest set of tokens with at least this probability; 1 is off.")
    top_k: int = setting(0, ge=0, help="Draw from the k most probable tokens; 0 is off.")
    max_staleness: int = setting(
        0, ge=0, help="How many versions behind the policy the weights that sampled a completion may be; 0 samples, then trains."
    )
    environment: str | None = setting(
        None, help="What the policy acts in: file.Class with reset and step; null for none but the backend's own."
    )
    tools: tuple[str, ...] = setting((), help="Functions file.function that the policy may call; their docstrings describe them.")
    environment_timeout: float = setting(
        60.0, gt=0, help="Seconds that a tool, or the environment, may take to answer; a late one ends the episode, or is told so."
    )
    max_turns: int = setting(8, gt=0, help="Most turns that the policy writes in one episode.")
    max_turn_length: int | None = setting(None, gt=0, help="Most tokens of one turn; null is what is left of the completion.")
    max_error_rate: float = setting(
        0.5, ge=0, le=1, help="The run ends when the backend failed on a larger share of a rollout batch's completions."
    )
    num_eval_generations: int | None = setting(None, gt=0, help="Completions of each prompt of eval_data; null: num_generations.")
    pass_reward: float = setting(1.0, help="A completion whose weighted rewards sum to this or more passes (eval_pass@k).")
    table_steps: int | None = setting(None, gt=0, help="Steps between tables of samples in the terminal; null: up to ten in a run.")


@attrs.frozen(kw_only=True)
class TrainerConfig:
    """The loop. Names are those of transformers' TrainingArguments where one exists."""

    batch_size: int = setting(4, gt=0, help="Prompts (trees) per device and accumulation step.")
    gradient_accumulation: int = setting(1, gt=0, help="An optimiser step is batch_size x this x processes prompts.")
    learning_rate: float = setting(5e-6, ge=0, help="Peak learning rate.")
    num_epochs: float = setting(1.0, gt=0, help="Passes over the data; a fraction is allowed.")
    max_steps: int | None = setting(None, gt=0, help="Optimiser steps; overrides num_epochs.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", help="Autocast type of the forward.")
    optimizer: Literal["adamw"] = setting("adamw", help="The optimiser.")
    adam_beta1: float = setting(0.9, ge=0, lt=1, help="Decay of Adam's first moment.")
    adam_beta2: float = setting(0.999, ge=0, lt=1, help="Decay of Adam's second moment.")
    adam_epsilon: float = setting(1e-8, gt=0, help="Adam's epsilon.")
    weight_decay: float = setting(0.0, ge=0, help="Decoupled weight decay; not on biases and norms.")
    max_grad_norm: float = setting(1.0, ge=0, help="Gradients are scaled down to this norm; 0 never.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_min_lr"
    ] = setting("linear", help="Shape of the learning rate over the run.")
    warmup_ratio: float = setting(0.0, ge=0, le=1, help="Share of the steps with a rising learning rate.")
    warmup_steps: int | None = setting(None, ge=0, help="Steps with a rising learning rate; overrides warmup_ratio.")
    seed: int = setting(42, ge=0, le=2**32 - 1, help="Seeds data order, dropout and everything else drawn at random.")
    gradient_checkpointing: bool = setting(False, help="Recompute activations in the backward: less memory, more time.")
    disable_dropout: bool = setting(True, help="Turn the model's dropout off, so that policy and reference agree.")
    max_length: int | None = setting(None, gt=0, help="Most tokens of prompt plus completion; null is the model's context.")
    max_prompt_length: int | None = setting(
        None, gt=0, help="Longer prompts lose their beginning; where completions are sampled, as excess_length says."
    )
    excess_length: Literal["drop", "truncate", "error"] = setting(
        "drop",
        help="What happens to a row over max_length: left out and counted, its completions cut, or an error. Where completions are "
        "sampled, also to a prompt over max_prompt_length, of which truncate cuts the beginning.",
    )
    max_tokens_per_batch: int | None = setting(
        None, gt=0, help="Token budget of one forward; null takes what fits into memory, measured at the start."
    )
    forward: Literal["auto", "shared_prefix", "padded"] = setting(
        "auto", help="auto probes whether the model is exact with shared prefixes, and pads if not."
    )
    torch_compile: bool = setting(
        False, help="Compile the model's layers: a slower start, and faster steps where a GPU waits for the host."
    )
    logging_steps: int = setting(10, gt=0, help="Steps between lines of the log.")
    eval_steps: int | None = setting(None, gt=0, help="Steps between evaluations; null: at the end only.")
    save_steps: int | None = setting(None, gt=0, help="Steps between checkpoints; null: at the end only.")
    save_total_limit: int | None = setting(None, gt=0, help="How many checkpoints are kept, the newest.")
    save_in_background: bool = setting(True, help="Write checkpoints while training goes on, where memory allows a copy.")
    save_timeout: float = setting(1800.0, gt=0, help="Seconds that a checkpoint may take to write before it counts as failed.")
    max_skipped_steps: int = setting(10, gt=0, help="Steps left out in a row before the run stops.")
    skip_spikes: float | None = setting(
        None,
        gt=0,
        help="Leave out a step whose log gradient norm is more than so many standard deviations above the mean of the last good "
        "steps'; null: never.",
    )
    reward_workers: int | None = setting(
        None, gt=0, help="Processes that call the rewards named in a configuration; null is one for each CPU, up to 4."
    )
    reward_memory_mb: int = setting(
        4096, gt=0, help="Memory that each of these processes may allocate, in MiB; a call that needs more fails."
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = setting((), help="Trackers to send metrics to.")


@attrs.frozen(kw_only=True)
class OutputConfig:
    """Where the run writes."""

    dir: Path = setting(help="Run directory.")


@attrs.frozen(kw_only=True)
class TrainConfig:
    """A whole run: what one YAML file says."""

    recipe: Literal["align"] = setting("align", help="The kind of run.")
    method: Loss = setting(help="The method: a name, or a mapping with name and its fields.")
    model: ModelConfig = setting(help="The model.")
    data: tuple[DataConfig, ...] = setting(help="A dataset, or a list of them: concatenated, or mixed by weight.")
    eval_data: tuple[DataConfig, ...] = setting((), help="Data to evaluate on, like data.")
    rollout: RolloutConfig | None = setting(None, help="Where an online method's completions come from.")
    rewards: tuple[RewardEntry, ...] = setting((), help="What scores an online method's completions.")
    trainer: TrainerConfig = setting(factory=TrainerConfig, help="The loop.")
    output: OutputConfig = setting(help="Where the run writes.")
    base_dir: Path = attrs.field(default=Path(), metadata={"internal": True})
    """The folder that file.function names refer to: that of the YAML file."""
