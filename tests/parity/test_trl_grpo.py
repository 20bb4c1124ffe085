"""GRPO and GDPO against TRL's GRPOTrainer: advantages, loss and gradient of given log-probabilities, where TRL is installed.

TRL's own code turns rewards into advantages and log-probabilities into a loss; only the model's forward and the sampling are
replaced, by numbers that both sides get. All is in float64, but for some of TRL's metrics.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import attrs
import pytest
import torch

pytest.importorskip("trl", reason="TRL is no dependency; the environment of `make bench` has it")

from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

from truing import Layout, LossInputs, Needs
from truing.testing import reduce_step, take_branches, tiny_model, tiny_tokenizer
from truing_gdpo import GDPO
from truing_grpo import GRPO

LENGTHS = (3, 5, 8, 1, 8, 2, 4, 6)
LONGEST = 8
"""The most tokens of a completion; those of that length were cut off."""
GROUP = 4
NAMES = {
    "importance_sampling_correction": "vllm_importance_sampling_mode",
    "importance_sampling_clip_max": "vllm_importance_sampling_clip_max",
    "importance_sampling_clip_min": "vllm_importance_sampling_clip_min",
}
"""The settings that TRL has under another name."""
OURS = {"num_minibatches", "dynamic_sampling", "overlong_buffer", "overlong_penalty", "kl_estimator"}
"""The settings that TRL does not have."""
OTHERWISE = {"sampling/sampling_logp_difference/mean"}
"""The metric that differs on purpose: TRL takes it over the tokens that the sampler gave a number for."""

CLIPPED = ("dapo", "grpo", "dr_grpo", "bnpo", "gspo", "luspo")
CASES = [
    *({"loss_type": kind, "num_iterations": 1, "beta": 0.1} for kind in (*CLIPPED, "sapo", "vespo")),
    *({"loss_type": kind} for kind in (*CLIPPED, "sapo", "vespo")),
    *({"loss_type": kind, "delta": 1.45, "epsilon_high": 0.28, "beta": 0.1} for kind in CLIPPED),
    *({"loss_type": "cispo", "epsilon_high": high} for high in (1.1, 5.0)),
    *({"loss_type": kind, "importance_sampling_level": "sequence", "beta": 0.1} for kind in ("dapo", "dr_grpo", "luspo", "sapo")),
    {"loss_type": "cispo", "epsilon_high": 1.1, "importance_sampling_level": "sequence"},
    {"beta": 0.3, "use_bias_correction_kl": False},
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
    {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 2.0, "vespo_k_neg": 0.5, "vespo_lambda_neg": 1.5, "beta": 0.1},
    *({"top_entropy_quantile": share, "beta": 0.1} for share in (0.0, 0.2, 0.5, 0.9)),
    {"entropy_coef": 0.1, "loss_type": "grpo"},
    {"entropy_coef": 0.1, "top_entropy_quantile": 0.3},
    *(
        {
            "importance_sampling_correction": f"{level}_{how}",
            "importance_sampling_clip_max": 1.3,
            "importance_sampling_clip_min": low,
        }
        for level in ("token", "sequence")
        for how in ("truncate", "mask")
        for low in (None, 0.8)
    ),
    {"importance_sampling_correction": "sequence_mask", "loss_type": "gspo", "beta": 0.1},
    *({"importance_sampling_correction": f"token_{how}", "loss_type": "vespo"} for how in ("truncate", "mask")),
    {"importance_sampling_correction": "token_truncate", "off_policy_mask_threshold": 0.05, "loss_type": "grpo"},
    {"mask_truncated_completions": True},
    *({"scale_rewards": scale} for scale in ("batch", "none")),
    {"multi_objective_aggregation": "normalize_then_sum"},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: ",".join(f"{key}={value}" for key, value in case.items()))
def test_advantages_loss_gradient_and_metrics_are_those_of_trl(tmp_path, settings):
    numbers = draw()
    method = GRPO(**{"num_iterations": 2, **settings})
    expected = trls(numbers, method, settings, tmp_path)
    found = ours(numbers, method)
    assert found.advantages == pytest.approx(expected.advantages, rel=1e-9, abs=1e-12)
    assert found.loss == pytest.approx(expected.loss, rel=1e-9)
    assert found.gradient == pytest.approx(expected.gradient, rel=1e-9, abs=1e-12)
    shared = found.metrics.keys() & expected.metrics.keys()
    assert shared == found.metrics.keys() - {"loss", "off_policy_mask_ratio"}
    for name in shared - OTHERWISE:
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-6, abs=1e-9), name


def test_the_method_gdpo_is_trls_aggregation(tmp_path):
    numbers = draw()
    expected = trls(numbers, GDPO(num_iterations=2), {"multi_objective_aggregation": "normalize_then_sum"}, tmp_path)
    assert ours(numbers, GDPO(num_iterations=2)).advantages == pytest.approx(expected.advantages, rel=1e-9)


def test_defaults_are_trls(tmp_path):
    """A setting that is null here and a word there means that word; max_completion_length null is the rollout's."""
    theirs, method = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), GRPO()
    fields = {field.name for field in attrs.fields(GRPO)} - OURS - {"max_completion_length", "importance_sampling_correction"}
    for name in fields - {"importance_sampling_level"}:
        assert getattr(method, name) == getattr(theirs, NAMES.get(name, name)), name
    assert method.level == theirs.importance_sampling_level
    assert method.importance_sampling_correction == "none"  # as in TRL without vLLM


def draw():
    """Return log-probabilities, entropies and rewards of two groups of four; one reward does not apply everywhere.

    Weights and entropies are what float32 holds too, in which TRL keeps the ones and takes quantiles of the others.
    """
    generator = random.Random(3)

    def branches(around=None, spread=1.0):
        if around is None:
            return [[-generator.uniform(0.1, 3) for _ in range(length)] for length in LENGTHS]
        return [[min(x + generator.gauss(0, spread), -0.01) for x in branch] for branch in around]

    logps = branches()
    behavior = branches(before := branches(logps, 0.3), 0.15)
    behavior[1][2] = float("nan")
    rewards = [[generator.choice((0.0, 1.0)), generator.uniform(-2, 2)] for _ in LENGTHS]
    rewards[2][1] = rewards[5][0] = rewards[6][0] = rewards[6][1] = float("nan")
    return SimpleNamespace(
        logps=logps,
        before=before,
        behavior=behavior,
        reference=branches(logps, 0.4),
        entropies=[[round(-1024 * x) / 1024 for x in branch] for branch in branches()],
        rewards=rewards,
        weights=[1.0, 0.75],
    )


def ours(numbers, method):
    """Return what the method makes of the numbers, a completion that it does not keep taken out as core does."""
    lengths = torch.tensor(LENGTHS)
    needed = {
        Needs.REFERENCE_LOGPS: ("reference_token_logps", numbers.reference),
        Needs.BEHAVIOR_LOGPS: ("behavior_token_logps", numbers.behavior),
        Needs.PROXIMAL_LOGPS: ("proximal_token_logps", numbers.before if method.num_iterations > 1 else None),
        Needs.ENTROPY: ("token_entropy", numbers.entropies),
    }
    rollouts = LossInputs(
        layout=Layout.ROLLOUT,
        token_logps=flat(numbers.logps),
        sequence_ids=torch.arange(len(lengths)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(lengths) // GROUP).repeat_interleave(GROUP),
        lengths=lengths,
        rewards=torch.tensor(numbers.rewards, dtype=torch.float64),
        reward_weights=torch.tensor(numbers.weights, dtype=torch.float64),
        truncated=lengths == LONGEST,
        max_completion_length=LONGEST,
        **{name: flat(values) for need, (name, values) in needed.items() if need in method.needs and values is not None},
    )
    advantages = method.advantages(rollouts)
    kept = list(range(len(LENGTHS))) if advantages.keep is None else advantages.keep.nonzero()[:, 0].tolist()
    inputs = take_branches(attrs.evolve(rollouts, advantages=advantages.values), kept)
    inputs.token_logps.requires_grad_()
    loss, metrics = reduce_step(method(inputs), inputs)
    loss.backward()
    gradient = torch.zeros(len(LENGTHS), LONGEST, dtype=torch.float64)
    for row, branch in zip(kept, inputs.token_logps.grad.split(inputs.lengths.tolist()), strict=True):
        gradient[row, : len(branch)] = branch
    return SimpleNamespace(
        advantages=advantages.values.tolist(),
        loss=loss.item(),
        gradient=gradient.flatten().tolist(),
        metrics={name: value.item() for name, value in metrics.items()},
    )


def flat(branches):
    return torch.tensor([x for branch in branches for x in branch], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def trls(numbers, method, settings, folder):
    """Return what TRL's trainer makes of the numbers."""
    given = {NAMES.get(name, name): value for name, value in settings.items() if name != "beta"}  # which would load a reference
    if method.loss_type == "gspo":
        given |= {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    corrects = method.importance_sampling_correction != "none"
    trainer = GRPOTrainer(
        model=tiny_model(tiny_tokenizer()),
        reward_funcs=[_first, _second],
        args=GRPOConfig(
            output_dir=str(folder),
            num_generations=GROUP,
            per_device_train_batch_size=len(LENGTHS),
            max_completion_length=LONGEST,
            reward_weights=numbers.weights,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **{"num_iterations": 2, **given},
        ),
        train_dataset=Dataset.from_dict({"prompt": ["1 and "]}),
        processing_class=tiny_tokenizer(),
    )
    trainer.use_vllm, trainer.current_gradient_accumulation_steps, trainer.beta = corrects, 1, method.beta
    trainer.ref_model = "reference"
    leaf = padded(numbers.logps).requires_grad_()
    _replace_model(trainer, numbers, leaf)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "1 and "} for _ in LENGTHS])
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return SimpleNamespace(
        advantages=batch["advantages"].tolist(), loss=loss.item(), gradient=leaf.grad.flatten().tolist(), metrics=metrics
    )


def _replace_model(trainer, numbers, leaf):
    """Replace sampling, rewards and the forward."""
    end = trainer.eos_token_ids[0]
    tokens = [[7] * (length - 1) + [7 if length == LONGEST else end] for length in LENGTHS]
    sampled = numbers.behavior if trainer.use_vllm else None
    texts = ["text"] * len(LENGTHS)
    trainer._generate = lambda prompts: ([[5, 6]] * len(LENGTHS), tokens, None, texts, sampled, {}, None, None)
    trainer._calculate_rewards = lambda *_: torch.tensor(numbers.rewards)

    def forward(model, *_, **__):
        if model is not trainer.model:
            return padded(numbers.reference), None, None
        return leaf if torch.is_grad_enabled() else padded(numbers.before), padded(numbers.entropies), None

    trainer._get_per_token_logps_and_entropies = forward


def padded(branches):
    return pad_sequence([torch.tensor(branch) for branch in branches], batch_first=True)


def _first(completions, **columns):
    raise AssertionError("its scores are given")


def _second(completions, **columns):
    raise AssertionError("its scores are given")
