"""Defaults, what each setting makes the method read, and the settings that are refused."""

from __future__ import annotations

import attrs
import pytest

from truing import Layout, Needs
from truing.settings import describe_bounds
from truing_grpo import GRPO


def test_settings_and_bounds():
    """The defaults are those of TRL's GRPOConfig, where it has the setting: tests/parity compares them."""
    bounds = {field.name: (field.default, describe_bounds(field)) for field in attrs.fields(GRPO)}
    assert bounds == {
        "loss_type": ("dapo", ""),
        "importance_sampling_level": (None, ""),
        "epsilon": (0.2, "> 0 and < 1"),
        "epsilon_high": (None, "> 0"),
        "delta": (None, "> 1"),
        "sapo_temperature_pos": (1.0, "> 0"),
        "sapo_temperature_neg": (1.05, "> 0"),
        "vespo_k_pos": (2.0, ">= 0"),
        "vespo_lambda_pos": (3.0, "> 0"),
        "vespo_k_neg": (3.0, ">= 0"),
        "vespo_lambda_neg": (2.0, "> 0"),
        "beta": (0.0, ">= 0"),
        "kl_estimator": ("k3", ""),
        "use_bias_correction_kl": (True, ""),
        "scale_rewards": ("group", ""),
        "multi_objective_aggregation": ("sum_then_normalize", ""),
        "mask_truncated_completions": (False, ""),
        "overlong_buffer": (None, ">= 1"),
        "overlong_penalty": (1.0, "> 0"),
        "top_entropy_quantile": (1.0, ">= 0 and <= 1"),
        "entropy_coef": (0.0, ">= 0"),
        "off_policy_mask_threshold": (None, "> 0"),
        "importance_sampling_correction": ("none", ""),
        "importance_sampling_clip_max": (3.0, "> 0"),
        "importance_sampling_clip_min": (None, "> 0"),
        "num_iterations": (1, ">= 1"),
        "num_minibatches": (1, ">= 1"),
        "dynamic_sampling": (0, ">= 0"),
        "max_completion_length": (None, ">= 1"),
    }
    assert (GRPO.name, GRPO.layout) == ("grpo", Layout.ROLLOUT)


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"loss_type": "gspo", "epsilon": 3e-4, "delta": 4.0}, Needs.NOTHING),
        ({"scale_rewards": "none", "mask_truncated_completions": True, "overlong_buffer": 9}, Needs.NOTHING),
        ({"num_iterations": 2, "num_minibatches": 2, "dynamic_sampling": 3, "max_completion_length": 64}, Needs.NOTHING),
        ({"beta": 0.04}, Needs.REFERENCE_LOGPS),
        ({"importance_sampling_correction": "sequence_mask"}, Needs.BEHAVIOR_LOGPS),
        ({"off_policy_mask_threshold": 0.5}, Needs.BEHAVIOR_LOGPS),
        ({"entropy_coef": 0.01}, Needs.ENTROPY),
        ({"top_entropy_quantile": 0.2}, Needs.ENTROPY),
        ({"beta": 0.04, "entropy_coef": 1.0}, Needs.REFERENCE_LOGPS | Needs.ENTROPY),
    ],
)
def test_it_needs_only_what_its_settings_read(settings, needs):
    """Beside the log-probabilities at the start of the update, which core takes where an update has several steps."""
    method = GRPO(**settings)
    assert method.needs == needs | Needs.PROXIMAL_LOGPS and GRPO().needs == Needs.PROXIMAL_LOGPS
    assert method.least_generations == 2
    assert method.rollout_needs == Needs.REWARDS | Needs.NO_LOGPS


def test_levels():
    assert GRPO().level == GRPO(loss_type="luspo").level == GRPO(importance_sampling_level="token").level == "token"
    assert GRPO(loss_type="gspo").level == GRPO(loss_type="gspo", importance_sampling_level="sequence").level == "sequence"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "cispo"}, "cispo needs epsilon_high: there it is the largest weight .* set it to 5, for example"),
        (
            {"loss_type": "sapo", "epsilon": 0.3},
            "epsilon is 0.3, but loss_type sapo does not read it; leave it out, or use one of dapo, ",
        ),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "epsilon": 0.3}, "epsilon is 0.3, but loss_type cispo does not read it"),
        ({"loss_type": "vespo", "epsilon_high": 0.3}, "epsilon_high is 0.3, but loss_type vespo .* dapo, .*, luspo, cispo"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 9.0}, "delta is 9, but loss_type cispo does not read it"),
        (
            {"sapo_temperature_pos": 2.0},
            "sapo_temperature_pos is 2, but loss_type dapo does not read it; leave it out, or use sapo",
        ),
        ({"vespo_k_neg": 2.0}, "vespo_k_neg is 2, but loss_type dapo does not read it; leave it out, or use vespo"),
        ({"delta": 1.2}, r"delta is 1.2, but .* 1 \+ epsilon_high \(1.2\) leaves alone; set it above that, for example to 4"),
        ({"delta": 1.3, "epsilon_high": 0.4}, r"delta is 1.3, .* \(1.4\)"),
        ({"kl_estimator": "k1"}, "kl_estimator is k1, but beta 0, which .* does not read it; leave it out, or set beta above 0"),
        ({"use_bias_correction_kl": False}, "use_bias_correction_kl is false, but beta 0"),
        (
            {"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False},
            "k1 without use_bias_correction_kl has a gradient that is 0 on average.* use k2 or k3",
        ),
        (
            {"importance_sampling_clip_max": 2.0},
            "^importance_sampling_clip_max is 2, but importance_sampling_correction none does not read it; leave it out, or set "
            "that to sequence_mask, for example$",
        ),
        (
            {"loss_type": "vespo", "importance_sampling_clip_max": 2.0},
            "^importance_sampling_clip_max is 2, but importance_sampling_correction none does not read it; leave it out, or set "
            "that to token_mask, for example$",
        ),
        ({"importance_sampling_clip_min": 0.5}, "importance_sampling_clip_min is 0.5, but importance_sampling_correction none"),
        (
            {"importance_sampling_correction": "token_mask", "importance_sampling_clip_min": 3.0},
            "importance_sampling_clip_min is 3 and importance_sampling_clip_max 3, so that no ratio is between them",
        ),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
            "^scale_rewards is none, but multi_objective_aggregation normalize_then_sum, which divides each reward by its group's "
            "deviation, does not read it; leave it out, or set that to sum_then_normalize$",
        ),
        ({"overlong_penalty": 2.0}, "overlong_penalty is 2, but a run without overlong_buffer does not read it"),
        (
            {"overlong_buffer": 300, "max_completion_length": 256},
            r"overlong_buffer is 300, which is more than max_completion_length \(256\)",
        ),
        ({"loss_type": "gspo", "importance_sampling_level": "token"}, "gspo is grpo with the importance ratios of whole sequences"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo makes its own weights of whole sequences"),
        (
            {"loss_type": "vespo", "importance_sampling_correction": "sequence_truncate"},
            "importance_sampling_correction is sequence_truncate; set it to token_truncate",
        ),
        ({"epsilon": 0.0}, "epsilon must be > 0 and < 1, got 0"),
        ({"loss_type": "dappo"}, "dappo"),
        ({"num_iterations": 0}, "num_iterations must be >= 1, got 0"),
        ({"top_entropy_quantile": 1.5}, "top_entropy_quantile must be >= 0 and <= 1, got 1.5"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GRPO(**settings)


def test_settings_that_go_together():
    GRPO(loss_type="cispo", epsilon_high=5.0, importance_sampling_level="sequence")
    GRPO(loss_type="vespo", importance_sampling_correction="token_mask", importance_sampling_level="token")
    GRPO(beta=0.1, kl_estimator="k2", use_bias_correction_kl=False)
    GRPO(overlong_buffer=256, max_completion_length=256)
