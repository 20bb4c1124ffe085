"""Methods that sample their completions: the loop around a fake backend, its buffer, its record, and its evaluation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import ClassVar

import attrs
import pytest
import torch
from safetensors.torch import load_file

import truing
import truing.train.step
from tests.core.good_losses import Grpo, OnlinePairs
from tests.end_to_end.helpers import save_tiny_model, write_rows
from tests.end_to_end.test_resume import history
from truing import Advantages, ConfigError, PluginError, Term
from truing.config import RolloutConfig
from truing.loss import Layout, Needs
from truing.rollout.functions import FunctionRollout
from truing.testing import tiny_model, tiny_tokenizer
from truing.testing.fakes import FakeRollout, LiveFakeRollout
from truing.train.replay import replay
from truing_transformers import TransformersRollout

ROWS = [{"prompt": f"{number}+{number}=", "answer": number} for number in range(10)]


@attrs.frozen(kw_only=True)
class Repeated(Grpo):
    """Two passes of two steps over every rollout batch."""

    name: ClassVar[str] = "repeated"
    num_iterations: int = truing.setting(2, gt=0, help="Passes.")
    num_minibatches: int = truing.setting(2, gt=0, help="Steps of a pass.")


@attrs.frozen(kw_only=True)
class Pairs(OnlinePairs):
    """The best and the worst of a group."""

    name: ClassVar[str] = "pairs"
    trained_layout: ClassVar[Layout] = Layout.PAIRED

    def advantages(self, rollouts):
        made = super().advantages(rollouts)
        return attrs.evolve(made, metrics={"best": Term(rollouts.rewards[made.pairs[:, 0], 0] * 4, "sequence")})


@attrs.frozen(kw_only=True)
class KeepsFew(Grpo):
    """Leaves out what was cut off, or all."""

    name: ClassVar[str] = "keeps-few"
    few: bool = truing.setting(True, help="Some, not none.")

    def advantages(self, rollouts):
        return attrs.evolve(super().advantages(rollouts), keep=~rollouts.truncated & self.few)


def letter(prompt, response):
    """The share of the letter a."""
    return response.count("a") / max(1, len(response))


def align(folder, method=None, *, resume=False, rewards=None, rollout=None, dataset=None, eval_dataset=None, **trainer):
    tokenizer = tiny_tokenizer()
    return truing.align(
        model=tiny_model(tokenizer),
        tokenizer=tokenizer,
        dataset=dataset or ROWS,
        eval_dataset=eval_dataset,
        method=method or Grpo(),
        format="text",
        rollout=RolloutConfig(**{"backend": FakeRollout(), "num_generations": 4, "max_completion_length": 6, **(rollout or {})}),
        rewards=rewards or [letter],
        output_dir=folder,
        resume=resume,
        **{"batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, **trainer},
    )


def completions(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def test_a_run_samples_every_prompt_once_in_an_epoch_and_records_it(tmp_path):
    state = align(tmp_path / "run", num_epochs=2)
    lines = completions(tmp_path / "run")
    assert state.step == 10 and len(lines) == 2 * len(ROWS) * 4
    assert set(Counter(line["sample"] for line in lines).values()) == {2 * 4}
    assert all(line["version"] == line["step"] - 1 and line["tokens"] <= 6 for line in lines)
    assert all(line["reward"] == line["rewards"]["letter"] for line in lines)
    by_step = [[line["reward"] for line in lines if line["step"] == step] for step in range(1, 11)]
    assert [line["reward"] for line in history(tmp_path / "run")] == pytest.approx([sum(row) / len(row) for row in by_step])
    assert {line["prompt"] for line in lines} == {row["prompt"] for row in ROWS}


def test_the_same_seed_samples_the_same_and_another_does_not(tmp_path):
    runs = [("a", 1), ("b", 1), ("c", 2)]
    for name, seed in runs:
        align(tmp_path / name, seed=seed, max_steps=2)
    one, same, other = (completions(tmp_path / name) for name, _ in runs)
    assert one == same and [line["completion"] for line in other] != [line["completion"] for line in one]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_resume_in_the_middle_of_a_rollout_batch_is_bitwise(tmp_path, step):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    align(whole, Repeated(), max_steps=6, save_steps=1)
    shutil.copytree(whole, resumed)
    for later in range(step + 1, 7):
        shutil.rmtree(resumed / "checkpoints" / f"step-{later:08d}")
    shutil.rmtree(resumed / "model")
    align(resumed, Repeated(), max_steps=6, save_steps=1, resume=True)
    assert history(resumed) == history(whole)
    assert completions(resumed) == completions(whole)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_resume_within_a_rollout_batch_needs_what_was_kept_of_it(tmp_path):
    @attrs.frozen(kw_only=True)
    class Corrected(Repeated):
        corrected: bool = truing.setting(False, help="Whether the sampler's log-probabilities are read.")

        @property
        def needs(self):
            return super().needs | (Needs.BEHAVIOR_LOGPS if self.corrected else Needs.NOTHING)

    align(tmp_path / "run", Corrected(), save_steps=1, max_steps=5)
    before = history(tmp_path / "run")
    message = (
        "the checkpoint has 3 steps left on completions that were kept without their behavior_token_logps, which the method reads "
        "with the settings that it has now; resume with those that it had before, and change them after these steps, or resume "
        r"from a checkpoint after which a rollout batch begins \(--resume CHECKPOINT\)"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        align(tmp_path / "run", Corrected(corrected=True), max_steps=6, resume=True)
    assert history(tmp_path / "run") == before
    between = tmp_path / "run/checkpoints/step-00000004"
    assert align(tmp_path / "run", Corrected(corrected=True), max_steps=6, resume=between).step == 6


def test_a_resume_notices_what_rewards_read_and_says_what_evaluation_reads(tmp_path, capsys):
    align(tmp_path / "run", max_steps=2, eval_dataset=ROWS[:2])
    with pytest.raises(ConfigError, match="belongs to a run with other data "):
        align(tmp_path / "run", max_steps=3, resume=True, dataset=[{**row, "answer": 0} for row in ROWS])
    assert "evaluation data" not in capsys.readouterr().out
    align(tmp_path / "run", max_steps=3, resume=True, eval_dataset=ROWS[:3])
    assert "which is allowed, and gives the run another course: trainer.max_steps (2, now 3), evaluation data" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("number", [float("nan"), torch.tensor([1.0, float("inf")])])
def test_a_state_that_is_not_finite_is_not_taken_over(tmp_path, number):
    @attrs.frozen(kw_only=True)
    class Remembers(Grpo):
        name: ClassVar[str] = "remembers"

        def initial_state(self):
            return {"average": 0.5}

        def advantages(self, rollouts):
            return attrs.evolve(super().advantages(rollouts), state={"average": number})

    assert align(tmp_path / "run", Remembers(), max_steps=1).loss_state == {"average": 0.5}


def test_several_passes_take_every_prompt_once_each_and_measure_the_ratio_against_their_start(tmp_path):
    state = align(tmp_path / "run", Repeated(), num_epochs=1)
    lines = completions(tmp_path / "run")
    seconds = ["seconds/sampling" in json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert seconds == [True, False, False, False] * 3
    # 10 prompts in rollout batches of 4, each for 4 steps
    assert state.step == 12 and [len({line["sample"] for line in lines if line["step"] == step}) for step in (1, 5, 9)] == [4, 4, 2]
    assert state.epoch == 1.0


def test_any_seed_shuffles(tmp_path):
    assert align(tmp_path / "run", Repeated(), max_steps=2, seed=2**32 - 1).step == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(3)}, "gives values of shape \\[3\\], and it must be"),
        ({"keep": torch.ones(2, dtype=torch.bool)}, "gives keep of shape \\[2\\]"),
        ({"columns": {"returns": torch.zeros(1)}}, "gives column 'returns' of shape \\[1\\]"),
    ],
)
def test_what_a_method_gives_must_fit_the_batch(tmp_path, change, message):
    @attrs.frozen(kw_only=True)
    class Misfit(Grpo):
        name: ClassVar[str] = "misfit"

        def advantages(self, rollouts):
            return attrs.evolve(super().advantages(rollouts), **change)

    with pytest.raises(PluginError, match=f"method 'misfit': its `advantages` {message}"):
        align(tmp_path / "run", Misfit(), max_steps=1)


def test_pairs_are_trained_on_as_pairs(tmp_path):
    state = align(tmp_path / "run", Pairs(), max_steps=2)
    lines = [line for line in completions(tmp_path / "run") if line["step"] == 1]
    by_prompt = {
        sample: [line["reward"] for line in lines if line["sample"] == sample] for sample in {line["sample"] for line in lines}
    }
    assert state.history[0]["best"] == pytest.approx(sum(map(max, by_prompt.values())) / 2)
    with pytest.raises(PluginError, match="trained_layout ROLLOUT, and its `advantages` gives pairs"):
        align(tmp_path / "other", OnlinePairs(), max_steps=1)


def test_completions_that_the_method_leaves_out_are_not_trained_on(tmp_path):
    state = align(tmp_path / "run", KeepsFew(), max_steps=2)
    assert {line["advantage"] for line in completions(tmp_path / "run") if line["finish_reason"] == "length"} == {None}
    assert state.metrics["completions/clipped_ratio"] > 0


def test_a_step_of_which_nothing_is_kept_changes_no_weight(tmp_path):
    before = {name: weight.clone() for name, weight in tiny_model(tiny_tokenizer()).named_parameters()}
    state = align(tmp_path / "run", KeepsFew(few=False), max_steps=2)
    assert all(line["advantage"] is None for line in completions(tmp_path / "run"))
    assert all(torch.equal(weight, before[name]) for name, weight in state.model.named_parameters())


def test_held_out_prompts_are_completed_too(tmp_path):
    rollout = {"num_eval_generations": 3, "pass_reward": 0.1}
    state = align(tmp_path / "run", eval_dataset=ROWS[:5], max_steps=2, eval_steps=1, rollout=rollout)
    assert 0 <= state.metrics["eval_pass@1"] <= state.metrics["eval_pass@3"] <= 1
    evaluations = [line for line in history(tmp_path / "run") if "eval_reward" in line]
    # the fake backend does not look at weights, so that the same seeds give the same
    assert len(evaluations) == 2 and evaluations[0]["eval_reward"] == evaluations[1]["eval_reward"]


def test_groups_of_equal_rewards_are_sampled_anew(tmp_path):
    @attrs.frozen(kw_only=True)
    class Dynamic(Grpo):
        name: ClassVar[str] = "dynamic"
        dynamic_sampling: int = truing.setting(5, ge=0, help="Times.")

    held_out = {"max_steps": 1, "batch_size": 8, "eval_dataset": ROWS[:5]}
    (plain, *_, plain_eval), (dynamic, *_, dynamic_eval) = (
        align(tmp_path / method.name, method, **held_out).history for method in (Grpo(), Dynamic())
    )
    # of held-out prompts nothing is sampled anew: what is measured there is the policy
    assert plain_eval["eval_reward"] == dynamic_eval["eval_reward"]
    assert plain["frac_reward_zero_std"] > dynamic["frac_reward_zero_std"]
    assert 0 < dynamic["dynamic_sampling/resampled"] <= 5 * 8


@attrs.frozen(kw_only=True)
class Gap(Grpo):
    """Measures how far the sampler's log-probabilities are from the trainer's."""

    name: ClassVar[str] = "gap"

    @property
    def rollout_needs(self):
        return Needs.REWARDS | Needs.BEHAVIOR_LOGPS

    def advantages(self, rollouts):
        gap = (rollouts.behavior_token_logps - rollouts.token_logps).abs().max()
        return attrs.evolve(super().advantages(rollouts), metrics={"gap": Term(gap, "constant")})


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree_on_log_probabilities(tmp_path, temperature):
    rollout = {"backend": TransformersRollout(), "temperature": temperature}
    state = align(tmp_path / "run", Gap(), rollout=rollout, max_steps=3)
    assert all(0 < line["gap"] < 1e-5 for line in state.history)


@attrs.frozen(kw_only=True)
class Forgetful(FakeRollout):
    """Knows the log-probabilities of the first completion of each prompt alone."""

    name: ClassVar[str] = "forgetful"

    def open(self, context):
        class Live(LiveFakeRollout):
            def generate(self, requests):
                for completion in super().generate(requests):
                    yield completion if completion.index == 0 else attrs.evolve(completion, token_logps=None)

        return Live(context.tokenizer)


@attrs.frozen(kw_only=True)
class Agreement(Gap):
    """Measures of how many tokens the sampler's log-probabilities are the trainer's."""

    name: ClassVar[str] = "agreement"

    @property
    def needs(self):
        return super().needs | Needs.BEHAVIOR_LOGPS

    def advantages(self, rollouts):
        same = (rollouts.behavior_token_logps == rollouts.token_logps).float()
        return attrs.evolve(super().advantages(rollouts), metrics={"agreement": Term(rollouts.mean(same), "sequence")})


def test_the_trainer_scores_what_a_backend_has_no_log_probabilities_of(tmp_path):
    state = align(tmp_path / "run", Agreement(), rollout={"backend": Forgetful()}, max_steps=2)
    assert [line["agreement"] for line in state.history] == [0.75, 0.75]


def test_a_function_of_a_file_samples_with_the_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def draw(model, processing_class, prompts, generation_config=None):\n"
        "    inputs = processing_class(prompts, return_tensors='pt', padding=True, padding_side='left')\n"
        "    ids = model.generate(**inputs, generation_config=generation_config)\n"
        "    return processing_class.batch_decode(ids[:, inputs['input_ids'].shape[1]:], skip_special_tokens=True)\n"
    )
    state = align(tmp_path / "run", rollout={"backend": FunctionRollout(name="mine.draw", base_dir=tmp_path)}, max_steps=2)
    assert state.step == 2 and len(completions(tmp_path / "run")) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"prompts_per_batch": 3}, "rollout.prompts_per_batch is 3, and a step has 2 prompts"),
        ({"max_completion_length": 5000}, "leaves no room for a prompt"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, rollout, message):
    with pytest.raises(ConfigError, match=message):
        align(tmp_path / "run", rollout=rollout, max_steps=1)


def test_an_error_of_the_method_names_it(tmp_path):
    @attrs.frozen(kw_only=True)
    class Broken(Grpo):
        name: ClassVar[str] = "broken"

        def advantages(self, rollouts) -> Advantages:
            raise ZeroDivisionError("float division by zero")

    @attrs.frozen(kw_only=True)
    class Worthless(Broken):
        name: ClassVar[str] = "worthless"
        advantages = Grpo.advantages

        def worth(self, rollouts):
            raise ZeroDivisionError("float division by zero")

    @attrs.frozen(kw_only=True)
    class Misfit(Worthless):
        name: ClassVar[str] = "misfit"

        def worth(self, rollouts):
            return rollouts.rewards

    for method in (Broken(), Worthless()):
        with pytest.raises(PluginError, match=f"{method.name}' .* failed on the rewards before step 1: ZeroDivisionError"):
            align(tmp_path / method.name, method, max_steps=1)
    with pytest.raises(PluginError, match=r"method 'misfit': its `worth` gives shape \[4, 1\], and it must be \[4\]"):
        align(tmp_path / "misfit", Misfit(), max_steps=1)


def test_a_step_that_was_left_out_is_computed_again(tmp_path, monkeypatch):
    real = truing.train.step.judge

    def judge(run, *arguments):
        return ["loss"] if run.state.step == 1 else real(run, *arguments)

    monkeypatch.setattr(truing.train.step, "judge", judge)
    state = truing.align(
        model=save_tiny_model(tmp_path / "model"),
        dataset=write_rows(tmp_path / "rows.jsonl", ROWS),
        method={"name": "grpo", "beta": 0.1, "num_iterations": 2},
        format="text",
        rollout={"num_generations": 4, "max_completion_length": 6},
        rewards=[{"name": "regex", "pattern": "[a-m]"}],
        output_dir=tmp_path / "run",
        batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        max_steps=3,
    )
    assert state.skipped_steps == 1
    again = replay(tmp_path / "run", 2)
    logged = state.history[1]
    assert (again.loss, again.grad_norm) == pytest.approx((logged["loss"], logged["grad_norm"]), rel=1e-4, abs=1e-6)
    assert [sample.sample_id for sample in again.samples] == [tree.sample_id for tree in again.skipped.trees]
