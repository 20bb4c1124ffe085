"""Runs whose policy acts: in an environment of a Python class, with tools, with templates that rewrite history."""

from __future__ import annotations

import json
import shutil

import attrs
import pytest
import torch
from safetensors.torch import load_file

import truing
from tests.core.conversations import TOOLS_TEMPLATE
from tests.end_to_end.test_online import Gap, completions
from tests.end_to_end.test_resume import history
from truing.config import RolloutConfig
from truing.rollout import Completion, Fork, RolloutRequest, Sampling
from truing.rollout.opening import open_rollout
from truing.testing import fake_context, tiny_model, tiny_tokenizer
from truing_transformers import TransformersRollout

GAME = '''
import random

class Ascii:
    """Asks twice for ASCII, or for anything else; a turn is worth the share of it that is what was asked for."""

    def reset(self, seed=None, hint=""):
        self.ascii, self.left = random.Random(seed).random() < 0.5, 2
        return f"Write {'ASCII' if self.ascii else 'others'}{hint}"

    def step(self, text):
        self.left -= 1
        return "again", sum(one.isascii() == self.ascii for one in text) / max(1, len(text)), self.left == 0

class Picky(Ascii):
    def step(self, text):
        if sum(map(ord, text)) % 6 == 0:
            raise ValueError("not six, please")
        return super().step(text)

def look(place: str) -> str:
    """Looks somewhere.

    Args:
        place: Where.
    """
    return f"nothing in {place}"
'''
ROWS = [{"prompt": [{"role": "user", "content": f"Go {number}"}], "hint": "?" * (number % 3)} for number in range(6)]
REWRITES = TOOLS_TEMPLATE.replace(
    "{{ message.content }}", "{{ message.content if message.role != 'assistant' or loop.last else '(said)' }}"
)
EPISODE = {"environment": "game.Ascii", "max_turn_length": 5, "max_completion_length": 60}


@pytest.fixture(autouse=True)
def game(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "game.py").write_text(GAME)


def align(folder, method="grpo", *, resume=False, rewards=None, template=None, **change):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    rollout = {"num_generations": 4, **EPISODE, **change.pop("rollout", {})}
    return truing.align(
        model=tiny_model(tokenizer),
        tokenizer=tokenizer,
        dataset=ROWS,
        method=method,
        format="text",
        rollout=rollout,
        output_dir=folder,
        resume=resume,
        **({"rewards": rewards} if rewards else {}),
        **{"batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "max_steps": 3, **change},
    )


def test_a_run_in_an_environment_learns_from_its_rewards(tmp_path):
    state = align(tmp_path / "run")
    lines = completions(tmp_path / "run")
    assert len(lines) == 3 * 2 * 4 and state.step == 3
    for line in lines:
        assert line["turns"] == 2 and line["rows"] == 1 and 0 < line["written_tokens"] <= 10 < line["tokens"]
        roles = [message["role"] for message in line["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert line["messages"][0]["content"].startswith("Write ")
        assert line["completion"] == "\n".join(message["content"] for message in line["messages"] if message["role"] == "assistant")
        assert line["reward"] == line["rewards"]["environment"] and line["finish_reason"] == "stop"
    tasks = {(line["sample"], line["messages"][0]["content"]) for line in lines}
    assert len(tasks) == len(ROWS) and len({task.partition("?")[0] for _, task in tasks}) == 2  # episodes of a prompt are alike
    assert state.history[0]["completions/mean_turns"] == 2.0
    assert any(line["advantage"] for line in lines)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trainer_and_sampler_agree_on_log_probabilities_over_turns(tmp_path, temperature):
    state = align(tmp_path / "run", Gap(), rollout={"temperature": temperature})
    assert all(0 < line["gap"] < 1e-4 for line in state.history)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_resume_in_the_middle_is_bitwise(tmp_path, step):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = {"method": {"name": "grpo", "num_iterations": 2}, "max_steps": 4, "save_steps": 1}
    align(whole, **options)
    shutil.copytree(whole, resumed)
    for later in range(step + 1, 5):
        shutil.rmtree(resumed / "checkpoints" / f"step-{later:08d}")
    shutil.rmtree(resumed / "model")
    align(resumed, **options, resume=True)
    assert history(resumed) == history(whole)
    assert completions(resumed) == completions(whole)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_episodes_that_fail_are_left_out_and_counted(tmp_path):
    state = align(tmp_path / "run", rollout={"environment": "game.Picky"}, max_steps=1)
    lost = state.history[0]["completions/lost"]
    assert len(completions(tmp_path / "run")) == 8 - lost and 0 < lost < 8
    log = (tmp_path / "run/episodes.log").read_text().splitlines()
    assert len(log) == lost and log[0].endswith("error: the environment's step failed: ValueError: not six, please")


def used_tools(completions, **columns):
    return [float("tool" in text) - len(text) / 100 for text in completions]


def test_a_run_with_tools(tmp_path):
    """The policy is random, and calls none: an episode is a turn, behind a prompt that describes the tool."""
    rollout = {"environment": None, "tools": ["game.look"], "max_completion_length": 12}
    state = align(tmp_path / "run", rollout=rollout, template=TOOLS_TEMPLATE, rewards=[used_tools], max_steps=2)
    lines = completions(tmp_path / "run")
    assert state.step == 2 and all(line["turns"] == 1 and line["tokens"] == line["written_tokens"] for line in lines)


def test_a_run_whose_template_rewrites_history_trains_on_all_rows(tmp_path, capsys):
    rewards = ["environment", {"name": "length", "target": 5, "weight": 0.01}]  # the second in a process of its own
    state = align(tmp_path / "run", template=REWRITES, rewards=rewards, max_steps=2)
    assert "the chat template renders history otherwise before messages of user" in capsys.readouterr().out
    lines = completions(tmp_path / "run")
    assert all(line["rows"] == 2 and line["turns"] == 2 for line in lines)
    assert state.skipped_steps == 0 and all(line["grad_norm"] > 0 for line in state.history)


def test_log_probabilities_of_forks_are_those_of_plain_passes(tmp_path):
    """Both rows of an episode, the first with its own prompt."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = REWRITES
    context = attrs.evolve(fake_context(tmp_path), tokenizer=tokenizer, config_dir=tmp_path)
    live = open_rollout(RolloutConfig(backend=TransformersRollout(), environment="game.Ascii", max_turn_length=5), context)
    text = tokenizer.apply_chat_template(ROWS[0]["prompt"], tokenize=False, add_generation_prompt=True)
    request = RolloutRequest(
        id="r",
        prompt=ROWS[0]["prompt"],
        prompt_ids=tuple(tokenizer.encode(text)),
        seeds=(1, 2),
        sampling=Sampling(max_completion_length=80),
    )
    found = list(live.generate([request]))
    other = attrs.evolve(request, id="other", seeds=(3, 2))
    beside = {(one.request_id, one.index): one for one in live.generate([other, request])}
    assert all(beside["r", one.index].token_ids == one.token_ids for one in found)  # whatever is sampled beside it
    live.close()
    model = context.models["policy"]
    for completion in found:
        [fork] = completion.forks
        assert "(said)" in tokenizer.decode(list(completion.prompt_ids)) and "(said)" not in tokenizer.decode(list(fork.prompt_ids))
        for row in (fork, completion):
            assert torch.allclose(torch.tensor(row.token_logps), plain_logps(model, row), atol=1e-4)


def plain_logps(model: torch.nn.Module, row: Completion | Fork) -> torch.Tensor:
    """Log-probabilities of a row's counted tokens by one pass over it alone, 0 elsewhere."""
    ids = torch.tensor([[*row.prompt_ids, *row.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, ids[0, len(row.prompt_ids) :, None]).squeeze(-1)
    return logps.where(torch.tensor(row.loss_mask), 0.0)


def test_the_command_line_runs_a_configuration_with_an_environment(tmp_path):
    from tests.end_to_end.helpers import save_tiny_model, write_rows
    from truing.config import load_config
    from truing.registry import Registry

    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    config = {
        "method": "grpo",
        "model": {"name": str(tmp_path / "model")},
        "data": {"path": "rows.jsonl", "format": "text"},
        "rollout": {"num_generations": 4, **EPISODE},
        "trainer": {"batch_size": 2, "max_steps": 1},
        "output": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    loaded = load_config(tmp_path / "config.yaml", registry=Registry.load(quiet=True))
    assert [entry.reward.name for entry in loaded.rewards] == ["environment"]
    assert truing.align(config=loaded).step == 1
