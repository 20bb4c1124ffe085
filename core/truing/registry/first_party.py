"""Which distribution has which first-party name, so that a missing plugin can be told from a typing error."""

from __future__ import annotations

from collections.abc import Mapping

from truing.registry.contract import Kind

FIRST_PARTY: Mapping[Kind, Mapping[str, str]] = {
    "loss": {
        "sft": "truing-sft",
        "dpo": "truing-dpo",
        "ipo": "truing-dpo",
        "online-dpo": "truing-dpo",
        "kto": "truing-kto",
        "orpo": "truing-orpo",
        "cpo": "truing-cpo",
        "simpo": "truing-cpo",
        "reward-model": "truing-reward-model",
        "ranked-reward-model": "truing-reward-model",
        "grpo": "truing-grpo",
        "gdpo": "truing-gdpo",
        "ppo": "truing-ppo",
        "reinforce": "truing-reinforce",
        "rloo": "truing-reinforce",
    },
    "dataset_strategy": {
        "chatml": "truing-chatml",
        "llama3": "truing-llama3",
        "zephyr": "truing-zephyr",
        "chat_template": "truing-chat-template",
        "user_defined": "truing-user-defined",
        "hh_rlhf": "truing-transcripts",
        "swift": "truing-transcripts",
        "sharegpt": "truing-transcripts",
    },
    "reward": {
        "math_accuracy": "truing-rewards",
        "exact_match": "truing-rewards",
        "format_think": "truing-rewards",
        "regex": "truing-rewards",
        "length": "truing-rewards",
        "cosine_length": "truing-rewards",
        "repetition_penalty": "truing-rewards",
        "soft_overlong": "truing-rewards",
        "python_tests": "truing-rewards",
        "reward_model": "truing-reward-model",
    },
    "rollout": {"transformers": "truing-transformers", "vllm": "truing-vllm", "openenv": "truing-openenv"},
    "dialect": {},
}
"""Names and their distributions; a format is known by its family, the part before the first "."."""

OTHER_TOOLS: Mapping[Kind, Mapping[str, str]] = {
    "loss": {
        "alphapo": "{name: simpo, cpo_alpha: 0, alpha: ...}",
        "tr-dpo": "dpo with model.reference: {sync_steps: ..., mixup_alpha: ...}",
    }
}
"""Names that other tools have for what is here under another, or with settings."""


def first_party_dist(kind: Kind, name: str) -> str | None:
    """Return the distribution that has this name or, for a format, its family; None when no first-party one has."""
    return FIRST_PARTY[kind].get(family(kind, name))


def family(kind: Kind, name: str) -> str:
    """Return the part of a format's name before the first "."; any other name as it is."""
    return name.split(".")[0] if kind == "dataset_strategy" else name
