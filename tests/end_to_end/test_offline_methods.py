"""Methods of collected data that read no reference: two steps of each, and promise 1 for those that count prompt tokens."""

from __future__ import annotations

import json
import random

import pytest

from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from tests.end_to_end.steps import make_run, step
from tests.end_to_end.test_invariance import SPLITS, require_same
from truing import align
from truing.testing import tiny_model, tiny_tokenizer

METHODS = [
    "orpo",
    {"name": "orpo", "nll_on_prompt": False},
    "cpo",
    {"name": "cpo", "loss_type": "ipo"},
    "simpo",
    {"name": "simpo", "alpha": 0.25, "cpo_alpha": 0.0},
    "sft",
    {"name": "sft", "train_on": "assistant"},
    {"name": "sft", "train_on": "all"},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


def conversations(count):
    """Pairs whose prompts are conversations of one to four turns, some of them without a turn of the assistant's."""
    draw = random.Random(1)
    rows = []
    for row in preferences(count):
        earlier = [
            {"role": ("user", "assistant")[turn % 2], "content": "so " * draw.randint(1, 4)}
            for turn in range(draw.choice((0, 2, 4)))
        ]
        sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        rows.append({"prompt": [*earlier, {"role": "user", "content": row["prompt"]}], **sides})
    return rows


@every_method
def test_two_steps_lower_the_loss(tmp_path, method):
    settings = {"batch_size": 12, "learning_rate": 1e-2, "logging_steps": 1, "max_steps": 2, "lr_scheduler_type": "constant"}
    align(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        dataset=conversations(12),
        eval_dataset=conversations(4),
        method=method,
        output_dir=tmp_path / "run",
        **settings,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert any("eval_loss" in line for line in lines)


@pytest.mark.parametrize("forward", ["shared_prefix", "padded"])
@pytest.mark.parametrize("method", [METHODS[0], METHODS[7]], ids=str)
def test_loss_metrics_and_every_gradient_are_the_same_to_1e_12(tmp_path, forward, method):
    save_tiny_model(tmp_path / "model", architecture="gpt2")
    write_rows(tmp_path / "rows.jsonl", conversations(16))
    expected = step(make_run(tmp_path, "1x16", method=method, forward=forward, max_tokens_per_batch=SPLITS["1x16"]))
    for split in ("4x4", "uneven", "16x1"):
        run = make_run(tmp_path, split, method=method, forward=forward, max_tokens_per_batch=SPLITS[split])
        require_same(step(run), expected, 1e-12)


@pytest.mark.parametrize("method", [METHODS[0], METHODS[7]], ids=str)
def test_head_and_loss_by_parts_are_those_of_the_whole(tmp_path, monkeypatch, method):
    save_tiny_model(tmp_path / "model", architecture="gpt2")
    write_rows(tmp_path / "rows.jsonl", conversations(16))
    expected = step(make_run(tmp_path, "whole", method=method))
    for name, tokens in (("parts", 60), ("none", 0)):
        monkeypatch.setattr("truing.model.head.KEPT_BYTES", 4 * 260 * tokens)
        monkeypatch.setattr("truing.model.head.PART_BYTES", 4 * 260 * tokens)
        require_same(step(make_run(tmp_path, name, method=method)), expected, 1e-12)


def test_sft_over_turns_costs_what_the_plain_model_says(tmp_path):
    """Against full logits of one unpadded conversation at a time, its assistant turns found by splitting the rendered text."""
    import torch

    tokenizer, model = tiny_tokenizer(), tiny_model()
    rows = conversations(6)
    state = align(
        model=tiny_model(),
        tokenizer=tokenizer,
        dataset=rows,
        method={"name": "sft", "train_on": "assistant"},
        output_dir=tmp_path / "run",
        batch_size=6,
        max_steps=1,
        logging_steps=1,
    )
    costs = []
    for row in rows:
        ids, learned = [], []
        for message in [*row["prompt"], *row["chosen"]]:
            for text, own in (
                (f"<|im_start|>{message['role']}\n", False),
                (f"{message['content']}<|im_end|>", message["role"] == "assistant"),
                ("\n", False),
            ):
                part = tokenizer(text)["input_ids"]
                ids += part
                learned += [own] * len(part)
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        costs += [-log_probs[at - 1, ids[at]].item() for at in range(1, len(ids)) if learned[at]]
    assert state.metrics["loss"] == pytest.approx(sum(costs) / len(costs), rel=1e-5)
