"""The markup, written out by hand. What the formats read is the same for every family: truing-chatml's tests go through it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import Layout
from truing.registry import Registry
from truing.testing import check_dataset_strategy

REGISTRY = Registry.load(only=["llama3"])
PLAIN = "<|start_header_id|>user<|end_header_id|>\n\nq?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
WITH_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\nbe {kind}<|eot_id|>" + PLAIN
SIDES = ("good<|eot_id|>", "bad<|eot_id|>")
PAIR = {"system": "be {kind}", "prompt": "q?", "chosen": "good", "rejected": "bad"}
QUESTION, ANSWERS = {"role": "user", "content": "q?"}, [{"role": "assistant", "content": text} for text in ("good", "bad")]
ROWS: dict[str, dict[str, Any]] = {
    "llama3": PAIR,
    "llama3.default": PAIR,
    "llama3.argilla": {
        "system": "be {kind}",
        "instruction": "q?",
        "chosen_response": "good",
        "rejected_response": "bad",
    },
    "llama3.icr": {"system": "be {kind}", "input": "q?", "chosen": "good", "rejected": "bad"},
    "llama3.intel": {"system": "be {kind}", "question": "q?", "chosen": "good", "rejected": "bad"},
    "llama3.prompt_pairs": PAIR,
    "llama3.ultra": {**PAIR, "chosen": ANSWERS[:1], "rejected": [QUESTION, ANSWERS[1]]},
    "llama3.argilla_chat": {
        side: [{"role": "system", "content": "be {kind}"}, QUESTION, answer]
        for side, answer in zip(("chosen", "rejected"), ANSWERS, strict=True)
    },
}


def fmt(name: str, layout: Layout = Layout.PAIRED) -> Any:
    return REGISTRY.get("dataset_strategy", name, layout=layout)()


def test_it_is_found_by_its_entry_point():
    (plugin,) = [plugin for plugin in REGISTRY.plugins if plugin.name == "llama3"]
    assert (plugin.problem, plugin.dist, sorted(plugin.names["dataset_strategy"])) == (None, "truing-llama3", sorted(ROWS))


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_llama3; truing_llama3.FORMATS[0](); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ROWS)
def test_text(name):
    row = ROWS[name]
    example = fmt(name).parse(row)
    assert (example.prompt, example.responses, example.columns, example.turn_end) == (WITH_SYSTEM, SIDES, {}, "<|eot_id|>")
    assert fmt(name, Layout.ROLLOUT).parse(row).prompt == WITH_SYSTEM
    assert fmt(name, Layout.SINGLE).parse(row).responses == SIDES[:1]
    check_dataset_strategy(type(fmt(name)), [row], [{}])


@pytest.mark.parametrize("said", [{}, {"system": None}, {"system": ""}])
def test_a_system_that_says_nothing_is_no_turn(said):
    row = {"question": "q?", "completion": "good", "label": 1, **said}
    example = fmt("llama3.intel", Layout.LABELED).parse(row)
    assert (example.prompt, example.responses, example.label) == (PLAIN, SIDES[:1], True)


def test_turns_follow_each_other_without_a_line_break():
    turns = [QUESTION, ANSWERS[1], {"role": "user", "content": "more?\n"}]
    example = fmt("llama3.argilla_chat", Layout.LABELED).parse({"completion": [*turns, ANSWERS[0]], "label": True})
    assert example.prompt == PLAIN + (
        "bad<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nmore?\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@given(st.text(min_size=1, max_size=20).filter(str.strip))
def test_content_is_never_changed(text):
    example = fmt("llama3", Layout.SINGLE).parse({"prompt": text, "completion": text + "."})
    before, after = PLAIN.split("q?")
    assert (example.prompt, example.responses) == (before + text + after, (text + ".<|eot_id|>",))


def test_the_token_that_begins_a_text_comes_once_and_the_turns_end_is_the_only_end():
    """A tokenizer that puts <bos> before a text, knows <|eot_id|>, and has another end token, as the base model's has."""
    from truing.data.encode import Encoder
    from truing.testing import tiny_tokenizer

    tokenizer: Any = tiny_tokenizer(add_bos=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]})
    (encoded,) = Encoder(tokenizer, Layout.PAIRED).encode([fmt("llama3").parse(PAIR)])
    tree = encoded.tree
    assert tokenizer.decode(tree.prompt_ids) == "<bos>" + WITH_SYSTEM
    assert [tokenizer.decode(branch.token_ids) for branch in tree.branches] == list(SIDES)
    assert all(
        len(branch.token_ids) == len(text) + 1 and all(branch.loss_mask)
        for branch, text in zip(tree.branches, ("good", "bad"), strict=True)
    )
