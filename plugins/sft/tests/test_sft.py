"""SFT on numbers derived by hand, what holds for all inputs, and which tokens of a row are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import Layout, LossInputs, Needs
from truing.config.classes import TrainerConfig
from truing.data import TreeDataset, prepare_rows
from truing.data.strategies import ResponseText
from truing.declared import prompt_tokens_of
from truing.reduce import StepCounts, reduce_output
from truing.testing import check_loss, tiny_tokenizer
from truing_sft import SFT

Row = tuple[Sequence[float], Sequence[float]]
ROWS: list[Row] = [([-1.0, -3.0], [-0.5, -0.5]), ([], [-2.0, -1.0, -4.0])]
METHODS = [SFT(), SFT(train_on="assistant"), SFT(train_on="all")]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.train_on)
few_examples = settings(max_examples=30, deadline=None)


def make_inputs(rows: Sequence[Row], *, with_prompt: bool = True) -> LossInputs:
    """SINGLE inputs of rows (counted prompt tokens, completion), each a list of log-probs."""
    lengths = torch.tensor([len(completion) for _, completion in rows])
    prompts = torch.tensor([x for prompt, _ in rows for x in prompt], dtype=torch.float64).requires_grad_()
    owners = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(prompt) for prompt, _ in rows]))
    return LossInputs(
        layout=Layout.SINGLE,
        token_logps=torch.tensor([x for _, completion in rows for x in completion], dtype=torch.float64).requires_grad_(),
        sequence_ids=torch.arange(len(rows)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(rows)),
        lengths=lengths,
        prompt_token_logps=prompts if with_prompt else None,
        prompt_tree_ids=owners if with_prompt else None,
    )


def counts(rows: Sequence[Row], *, with_prompt: bool = True) -> StepCounts:
    tokens = sum(len(completion) + with_prompt * len(prompt) for prompt, completion in rows)
    return StepCounts(sequence=len(rows), example=len(rows), token=tokens)


def test_completions_alone():
    """0.5 + 0.5 + 2 + 1 + 4 over 5 tokens, not the mean of 0.5 and 7/3; completions sum to -1 and -7."""
    inputs = make_inputs(ROWS, with_prompt=False)
    loss, metrics = reduce_output(SFT()(inputs), counts(ROWS, with_prompt=False))
    assert loss.item() == pytest.approx(8 / 5)
    assert metrics["logps/completion"].item() == pytest.approx(-4.0)


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_with_the_prompt(train_on):
    """The prompt's 1 + 3 come to it: 12 over 7 tokens."""
    loss, metrics = reduce_output(SFT(train_on=train_on)(make_inputs(ROWS)), counts(ROWS))
    assert loss.item() == pytest.approx(12 / 7)
    assert metrics["logps/completion"].item() == pytest.approx(-4.0)


def test_what_it_reads():
    assert SFT.layout is Layout.SINGLE and SFT() == SFT(train_on="completion")
    found = {method.train_on: (method.needs, prompt_tokens_of(method)) for method in METHODS}
    assert found == {
        "completion": (Needs.NOTHING, "none"),
        "assistant": (Needs.PROMPT_LOGPS, "assistant"),
        "all": (Needs.PROMPT_LOGPS, "all"),
    }


@every_method
def test_promises_to_core(method):
    check_loss(method)


logps = st.lists(st.floats(-9, 0), min_size=1, max_size=5)
batches = st.lists(st.tuples(st.lists(st.floats(-9, 0), max_size=4), logps), min_size=1, max_size=5)


@few_examples
@given(rows=batches, data=st.data())
def test_it_is_the_mean_of_all_tokens_however_the_step_is_cut(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    step = counts(rows)
    parts = [reduce_output(SFT(train_on="all")(make_inputs(part)), step)[0] for part in (rows[:cut], rows[cut:]) if part]
    costs = [-x for prompt, completion in rows for x in (*prompt, *completion)]
    assert sum(parts).item() == pytest.approx(sum(costs) / len(costs), rel=1e-12, abs=1e-12)


@few_examples
@given(rows=batches)
def test_every_token_has_the_same_gradient(rows):
    inputs = make_inputs(rows)
    reduce_output(SFT(train_on="all")(inputs), counts(rows))[0].backward()
    every = torch.cat((inputs.token_logps.grad, inputs.prompt_token_logps.grad))
    assert every.tolist() == pytest.approx([-1 / len(every)] * len(every), rel=1e-12)


def learned(row: dict[str, Any], train_on: str, tokenizer: Any = None) -> list[str]:
    """The runs of text that are learned of a row, each in the order of its tree."""
    tokenizer = tokenizer or tiny_tokenizer()
    dataset = prepared(row, train_on, tokenizer)
    tree = dataset[0]
    ids = (*tree.prompt_ids, *tree.branches[0].token_ids)
    mask = (*(tree.prompt_mask or (False,) * len(tree.prompt_ids)), *tree.branches[0].loss_mask)
    runs, before = [], False
    for token, counted in zip(ids, mask, strict=True):
        if counted:
            runs = [*runs[:-1], [*runs[-1], token]] if before else [*runs, [token]]
        before = counted
    return [tokenizer.decode(run) for run in runs]


def prepared(row: dict[str, Any], train_on: str, tokenizer: Any) -> TreeDataset:
    method = SFT(train_on=train_on)
    dataset, _ = prepare_rows(
        [row],
        ResponseText(),
        layout=method.layout,
        tokenizer=tokenizer,
        trainer=TrainerConfig(),
        context_length=None,
        prompt_tokens=prompt_tokens_of(method),
    )
    return dataset


END = "<|im_end|>"
TALK = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "count"}}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "it is 2"},
    ]
}


def test_which_turns_of_a_conversation_are_learned():
    """The template writes no tool call, so that the turn of one is its end token alone."""
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "(message['content'] or '')")
    assert learned(TALK, "completion", tokenizer) == [f"it is 2{END}"]
    assert learned(TALK, "assistant", tokenizer) == [f"1{END}", END, f"it is 2{END}"]
    (everything,) = learned(TALK, "all", tokenizer)
    assert everything.startswith("system\nbe brief") and everything.endswith(f"it is 2{END}")


@pytest.mark.parametrize(("train_on", "runs"), [("completion", [f"b{END}"]), ("assistant", [f"b{END}"]), ("all", [f"ab{END}"])])
def test_text_has_no_turns(train_on, runs):
    assert learned({"prompt": "a", "completion": "b"}, train_on, tiny_tokenizer(add_bos=True)) == runs


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_text_alone_is_learned_from_its_first_token(train_on, bos):
    assert learned({"text": "ab"}, train_on, tiny_tokenizer(add_bos=bos)) == [f"ab{END}"]
