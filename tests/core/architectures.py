"""Tiny random models of the architectures whose forward is proved: what `tiny_model` is given beside the name.

python -m tests.core.architectures writes the documentation's page about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from truing.model.policy import Policy
from truing.model.probe import ForwardChoice, choose_forward
from truing.testing import tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/architectures.md"
WINDOW = 16
"""Tokens that a sliding layer of a tiny model sees."""
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

SHARED_PREFIX: dict[str, dict[str, Any]] = {
    "cohere2": {**MIXED, "logit_scale": 0.5},
    "deepseek_v3": {
        **EXPERTS,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "gemma2": {**MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**MIXED, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "glm4": {},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {**MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "attention_multiplier": 0.3},
    "llama": {},
    "mistral": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16, "init_std": 0.2},
    "phi": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {**EXPERTS, "num_experts": 4},
    "smollm3": {"no_rope_layers": [1, 0]},
    "starcoder2": {},
}
FALLBACK: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "mpt": {},
    "qwen3_next": {
        **EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}


def architecture_model(architecture: str) -> PreTrainedModel:
    """Return a tiny model of one of the tables' architectures, none of whose weights is zero or one as initialisation leaves it."""
    model = tiny_model(architecture=architecture, **{**SHARED_PREFIX, **FALLBACK}[architecture])
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases, norms and attention sinks, which must count as well
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return model


def page(forwards: Mapping[str, tuple[str, str]]) -> str:
    """Return the documentation's page, from each architecture's forward and the sentence that says why."""
    rows = "".join(f"| `{name}` | `{forward}` | {why} |\n" for name, (forward, why) in sorted(forwards.items()))
    return f"""# Architectures

Which forward the probe chooses for an architecture of transformers, and what it says. Of each, a tiny random model is compared with
plain passes of single sequences by `tests/core/test_architectures.py`: log-probabilities and the gradient of every weight, in
float32, to 1e-5 of its own largest number (one that sums what cancels to 3e-5, as the test says). The test makes this page:
`python -m tests.core.architectures`.

`shared_prefix` computes every prompt once and pads nothing; `cached` computes every prompt once, in padded rows; `padded` is the
plain way ([the shared-prefix forward](../explanation/shared-prefix.md)). An architecture that is not listed is probed like the
others. With gradient checkpointing, `cached` is `padded`.

| architecture | forward | why |
|---|---|---|
{rows}"""


def forward_of(choice: ForwardChoice) -> tuple[str, str]:
    """Return what the page says of a choice; why two passes failed as well is left out, for its wording is another library's."""
    return choice.forward, choice.reason.split(", and in two passes")[0]


if __name__ == "__main__":
    from tests.core.test_architectures import TREES

    chosen = {
        name: forward_of(choose_forward(Policy(architecture_model(name), "padded"), TREES, "auto"))
        for name in (*SHARED_PREFIX, *FALLBACK)
    }
    PAGE.write_text(page(chosen))
