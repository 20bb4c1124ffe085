"""Critics: what they start from, that they train, and that they are saved, resumed and written."""

from __future__ import annotations

import shutil
from typing import ClassVar

import attrs
import pytest
import torch
from peft import LoraConfig as LoraSettings
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import truing
from tests.core.good_losses import Stateful
from tests.end_to_end.helpers import save_tiny_model
from tests.end_to_end.test_online import ROWS, letter
from truing import ModelError
from truing.config import LoraConfig, RolloutConfig
from truing.testing import tiny_model, tiny_tokenizer
from truing.testing.fakes import FakeRollout


@attrs.frozen(kw_only=True)
class Valued(Stateful):
    """A method with a critic."""

    name: ClassVar[str] = "valued"
    critic: str = truing.setting("separate", help="Which.")
    critic_model: str | None = truing.setting(None, help="Of what.")

    @property
    def num_iterations(self):
        return 2

    def __call__(self, inputs):
        return attrs.evolve(super().__call__(inputs), state=None)


def align(folder, method, **options):
    tokenizer = tiny_tokenizer()
    trainer = {"batch_size": 2, "learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1}
    return truing.align(
        model=options.pop("model", None) or tiny_model(tokenizer),
        tokenizer=tokenizer,
        dataset=ROWS,
        method=method,
        format="text",
        rollout=RolloutConfig(backend=FakeRollout(), num_generations=4, max_completion_length=6),
        rewards=[letter],
        output_dir=folder,
        **trainer | options,
    )


def test_a_separate_critic_trains_beside_the_policy_and_is_written_with_its_head(tmp_path, capsys):
    state = align(tmp_path / "run", Valued())
    assert "critic: a copy of the policy's starting weights" in capsys.readouterr().out
    critic = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model/critic")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    start = tiny_model(tiny_tokenizer())
    for name, weight in start.model.named_parameters():
        moved = [dict(model.model.named_parameters())[name] for model in (critic, policy)]
        assert not torch.equal(moved[0], weight) and not torch.equal(moved[1], weight) and not torch.equal(*moved)
    head = load_file(tmp_path / "run/model/critic/value_head.safetensors")["weight"]
    assert torch.equal(head, state.heads["critic"].value_head.weight)
    checkpoint = load_file(tmp_path / "run/checkpoints/step-00000004/weights.safetensors")
    assert {"critic.value_head.weight", "critic.model.model.norm.weight", "model.norm.weight"} <= checkpoint.keys()


def test_a_critic_of_a_model_that_has_an_adapter_trains_one_too(tmp_path):
    adapted = get_peft_model(tiny_model(tiny_tokenizer()), LoraSettings(r=2, target_modules=["q_proj"], lora_dropout=0.0))
    state = align(tmp_path / "run", Valued(), model=adapted)
    matrices = [weight for name, weight in state.weights().items() if name.startswith("critic.") and "lora_B" in name]
    assert matrices and all(weight.any() for weight in matrices)
    assert (tmp_path / "run/model/critic/adapter_model.safetensors").exists()


def test_a_shared_critic_is_a_head(tmp_path):
    state = align(tmp_path / "run", Valued(critic="shared"))
    assert list(state.heads) == ["value_head"] and not (tmp_path / "run/model/critic").exists()
    written = load_file(tmp_path / "run/model/value_head.safetensors")["weight"]
    assert torch.equal(written, state.heads["value_head"].weight)


@pytest.mark.parametrize("method", [Valued(), Valued(critic="shared")], ids=["separate", "shared"])
@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2)], ids=["full", "lora"])
def test_resume_is_bitwise(tmp_path, method, adapter):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    one = align(whole, method, adapter=adapter, save_steps=1)
    shutil.copytree(whole, resumed)
    for step in (2, 3, 4):
        shutil.rmtree(resumed / f"checkpoints/step-{step:08d}")
    shutil.rmtree(resumed / "model")
    other = align(resumed, method, adapter=adapter, save_steps=1, resume=True)
    first, second = one.weights(), other.weights()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_named_model_gives_weights_and_head(tmp_path, capsys):
    folder = save_tiny_model(tmp_path / "scored", seed=5)
    torch.manual_seed(0)
    from safetensors.torch import save_file

    save_file({"weight": torch.full((1, 32), 0.5)}, folder / "value_head.safetensors")
    state = align(tmp_path / "run", Valued(critic_model=str(folder)), learning_rate=0.0)
    assert torch.equal(state.heads["critic"].value_head.weight, torch.full((1, 32), 0.5))
    assert f"critic: {folder}" in capsys.readouterr().out
    other = save_tiny_model(tmp_path / "other", vocab_size=400)
    with pytest.raises(ModelError, match="method.critic_model: the critic .* with 400 embeddings"):
        align(tmp_path / "no", Valued(critic_model=str(other)))
