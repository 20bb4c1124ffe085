"""Asks a model the quickstart's questions, and marks its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tasks import check_answer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 48


def as_messages(prompt: str) -> list[dict[str, str]]:
    """Return the prompt as a conversation of one turn."""
    return [{"role": "user", "content": prompt}]


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, seed: int | None = None
) -> list[str]:
    """Return the model's answer to each prompt: sampled at temperature 1 with a seed, or the greedy one without."""
    texts = [tokenizer.apply_chat_template(as_messages(text), tokenize=False, add_generation_prompt=True) for text in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(model.device)
    if seed is not None:
        torch.manual_seed(seed)
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if seed is not None else {"do_sample": False}
    generate: Any = model.generate
    output: torch.Tensor = generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=MAX_NEW_TOKENS, **drawn
    )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def share_right(prompts: Sequence[str], texts: Sequence[str]) -> float:
    """Return the share of answers that are right."""
    return sum(map(check_answer, prompts, texts)) / len(prompts)


@torch.no_grad()
def completion_logps(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], column: str
) -> torch.Tensor:
    """Return [rows] the log-probability of each row's completion in `column`, given its prompt."""
    prompts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    wholes = [tokenizer.apply_chat_template([*row["prompt"], *row[column]], tokenize=False) for row in rows]
    starts = torch.tensor([len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]], device=model.device)
    batch = tokenizer(wholes, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False).to(model.device)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logps: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[:, :-1]
    counted = mask[:, 1:].bool() & (torch.arange(1, ids.shape[1], device=model.device) >= starts[:, None])
    return logps.gather(-1, ids[:, 1:, None]).squeeze(-1).where(counted, 0).sum(-1)


def preference_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of pairs whose chosen answer the model finds more probable than the rejected one."""
    chosen, rejected = (completion_logps(model, tokenizer, rows, column) for column in ("chosen", "rejected"))
    return (chosen > rejected).double().mean().item()
