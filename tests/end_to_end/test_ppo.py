"""PPO with all its models: policy, reference, reward model, and a critic that starts from that."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import truing
import truing.train.step
from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing.config import build_config
from truing.registry import Registry
from truing.train.loop import train
from truing.train.replay import replay
from truing_ppo import PPO

ONLINE = {"num_generations": 3, "max_completion_length": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a reward model that was made of it."""
    path = tmp_path_factory.mktemp("ppo")
    save_tiny_model(path / "model")
    train_rewards(path, "rewards")
    return path


@pytest.fixture(scope="module")
def adapted(folder):
    """The run of a reward model that is an adapter."""
    return train_rewards(folder, "adapted", adapter={"r": 2}, learning_rate=0.1)


def train_rewards(path, name, **options):
    truing.align(
        model=path / "model",
        dataset=write_rows(path / "pairs.jsonl", preferences()),
        method="reward-model",
        format="preference",
        output_dir=path / name,
        **{"max_steps": 3, "learning_rate": 1e-3, **options},
    )
    return path / name


def align(folder, name, **options):
    return truing.align(
        model=folder / "model",
        format="text",
        rollout=ONLINE,
        output_dir=folder / name,
        logging_steps=1,
        **{
            "rewards": [{"name": "reward_model", "model": str(folder / "rewards")}],
            "dataset": [{"prompt": row["prompt"]} for row in preferences(8)],
            "batch_size": 4,
            "max_steps": 4,
            **options,
        },
    )


def test_a_critic_starts_as_the_reward_model_and_only_moves_where_it_learns(folder, capsys):
    started = load_file(folder / "rewards/model/value_head.safetensors")["weight"]
    still = align(folder, "still", method=PPO(num_ppo_epochs=2), learning_rate=0.0)
    assert f"critic: {folder / 'rewards/model'}" in capsys.readouterr().out
    assert torch.equal(still.heads["critic"].value_head.weight, started)
    moved = align(folder, "moved", method=PPO(num_ppo_epochs=2), learning_rate=1e-3)
    assert not torch.equal(moved.heads["critic"].value_head.weight, started)
    names = {path.name for path in (folder / "moved/model/critic").iterdir()}
    assert {"config.json", "model.safetensors", "value_head.safetensors"} <= names


def test_rewards_are_the_models_scores_and_the_divergence_begins_at_zero(folder):
    state = align(folder, "scores", method=PPO(num_ppo_epochs=2), learning_rate=1e-3)
    first = state.history[0]
    lines = [json.loads(line) for line in (folder / "scores/completions.jsonl").read_text().splitlines()]
    scores = [line["rewards"]["reward_model"] for line in lines if line["step"] == 1]
    assert len(set(scores)) > 1
    assert first["objective/scores"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    # the second step is on the same completions, and the third on new ones, which the policy has moved for
    assert state.history[1]["val/ratio"] != 1 and abs(state.history[2]["objective/kl"]) > 1e-6


def test_a_reference_that_is_another_model(folder, tmp_path):
    values = {
        "method": {"name": "grpo", "beta": 0.1},
        "model": {"name": str(folder / "model"), "reference": {"name": str(save_tiny_model(tmp_path / "other", seed=7))}},
        "data": {"path": str(folder / "pairs.jsonl"), "format": "text"},
        "rollout": ONLINE,
        "rewards": [{"name": "regex", "pattern": "[a-m]"}],
        "trainer": {"batch_size": 2, "max_steps": 2, "logging_steps": 1},
        "output": {"dir": str(tmp_path / "run")},
    }
    state = train(build_config(values, registry=Registry.load()))
    assert state.history[0]["kl"] > 1e-3


def test_a_step_with_a_critic_is_computed_again(folder, monkeypatch):
    real = truing.train.step.judge
    monkeypatch.setattr(
        truing.train.step, "judge", lambda run, *arguments: ["loss"] if run.state.step == 1 else real(run, *arguments)
    )
    rows = write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in preferences(8)])
    state = align(folder, "skipped", method="ppo", dataset=rows, learning_rate=1e-3, num_ppo_epochs=2)
    again, logged = replay(folder / "skipped", 2), state.history[1]
    assert (again.loss, again.grad_norm) == pytest.approx((logged["loss"], logged["grad_norm"]), rel=1e-4, abs=1e-6)


def test_a_setting_that_changes_nothing_says_so_once_and_changes_nothing(folder, capsys):
    found = []
    for name, size in (("sized", 1), ("free", None)):
        state = align(folder, name, method=PPO(local_rollout_forward_batch_size=size), max_steps=1, learning_rate=1e-3)
        found.append((state.weights(), " ".join(capsys.readouterr().out.split())))
    (sized, said), (free, not_said) = found
    warning = "method.local_rollout_forward_batch_size is 1, which changes nothing: forwards are filled by tokens"
    assert said.count(warning) == 1 and said.index(warning) < said.index("step 1/1") and "local_rollout" not in not_said
    assert all(torch.equal(weight, free[name]) for name, weight in sized.items())


def test_a_named_critic_comes_before_the_reward_model(folder, capsys):
    align(folder, "named", method=PPO(critic_model=str(folder / "model")), max_steps=1)
    assert f"critic: {folder / 'model'}" in capsys.readouterr().out


def test_an_adapter_trains_policy_and_critic(folder):
    state = align(folder, "lora", method=PPO(num_ppo_epochs=1), adapter={"r": 2}, learning_rate=1e-3)
    trained = state.weights()
    assert all("lora" in name or name == "critic.value_head.weight" for name in trained)
    assert any(name.startswith("critic.model") for name in trained)
    assert (folder / "lora/model/critic/adapter_model.safetensors").exists()


def test_a_shared_critic_on_an_adapter_trains_its_head_and_resumes(folder):
    def run(name, **options):
        return align(folder, name, method=PPO(critic="shared", num_ppo_epochs=2), adapter={"r": 2}, save_steps=1, **options)

    start, trained = run("shared-still", learning_rate=0.0).weights(), run("shared", learning_rate=1e-3)
    weights = trained.weights()
    assert {name for name in weights if "lora" not in name} == {"value_head.weight"} and start.keys() == weights.keys()
    assert not torch.equal(weights["value_head.weight"], start["value_head.weight"])
    assert any(not torch.equal(weight, start[name]) for name, weight in weights.items() if "lora_B" in name)
    assert all(line["loss/value_avg"] > 0 for line in trained.history)
    written = folder / "shared/model"
    assert torch.equal(load_file(written / "value_head.safetensors")["weight"], weights["value_head.weight"])
    assert (written / "adapter_model.safetensors").exists() and not (written / "critic").exists()
    shutil.copytree(folder / "shared", folder / "shared-resumed")
    for step in (2, 3, 4):  # the first of two steps on a rollout batch is left
        shutil.rmtree(folder / f"shared-resumed/checkpoints/step-{step:08d}")
    shutil.rmtree(folder / "shared-resumed/model")
    resumed = run("shared-resumed", learning_rate=1e-3, resume=True).weights()
    assert resumed.keys() == weights.keys() and all(torch.equal(weight, weights[name]) for name, weight in resumed.items())


@pytest.mark.parametrize("named", [".", "model"], ids=["run", "model"])
def test_a_critic_starts_as_a_reward_model_that_is_an_adapter_and_trains_as_a_whole(folder, adapted, named):
    rewards = [{"name": "reward_model", "model": str(adapted / named)}]
    still = align(folder, f"merged-{named}", method="ppo", rewards=rewards, learning_rate=0.0, max_steps=1)
    base, start = (
        load_file(folder / "model/model.safetensors"),
        load_file(folder / f"merged-{named}/model/critic/model.safetensors"),
    )
    merged = {name for name, weight in start.items() if not torch.equal(weight, base[name])}
    assert any("q_proj" in name for name in merged) and all("_proj" in name for name in merged)
    head = load_file(adapted / "model/value_head.safetensors")["weight"]
    assert torch.equal(still.heads["critic"].value_head.weight, head)
    moved = align(folder, f"moved-{named}", method="ppo", rewards=rewards, learning_rate=1e-3, max_steps=1)
    trained = {name: weight for name, weight in moved.weights().items() if name.startswith("critic.model.")}
    assert not any("lora" in name for name in trained) and "critic.model.model.embed_tokens.weight" in trained
    assert all(not torch.equal(weight, start[name.removeprefix("critic.model.")]) for name, weight in trained.items())


def test_a_critic_goes_on_with_the_adapter_of_its_reward_model_where_the_policy_trains_one(folder, adapted):
    rewards = [{"name": "reward_model", "model": str(adapted)}]
    options = {"method": "ppo", "rewards": rewards, "adapter": {"r": 4}, "max_steps": 1}
    align(folder, "kept", **options, learning_rate=0.0)
    align(folder, "trained", **options, learning_rate=1e-3)
    file = "adapter_model.safetensors"
    start, kept, trained = (
        load_file(path / file) for path in (adapted / "model", folder / "kept/model/critic", folder / "trained/model/critic")
    )
    assert kept.keys() == start.keys() == trained.keys()
    assert all(torch.equal(kept[name], start[name]) and not torch.equal(trained[name], start[name]) for name in start)
    again = align(folder, "again", method=PPO(critic_model=str(folder / "trained/model/critic")), max_steps=1, learning_rate=0.0)
    assert torch.equal(
        again.heads["critic"].value_head.weight, load_file(folder / "trained/model/critic/value_head.safetensors")["weight"]
    )
