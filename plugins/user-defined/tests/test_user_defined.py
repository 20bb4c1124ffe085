"""Columns and text as the configuration says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import Layout, RowError
from truing.registry import Registry
from truing.testing import check_dataset_strategy
from truing_user_defined import FORMATS, UserDefined, UserDefinedCompletion, UserDefinedLabeled, UserDefinedPrompt

ROW = {"prompt": "q {x}?", "chosen": "good", "rejected": "bad"}
LABELED = {"prompt": "q {x}?", "completion": "good", "label": True}
LAYOUTS = (Layout.PAIRED, Layout.ROLLOUT, Layout.SINGLE, Layout.LABELED)


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["user-defined"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "user-defined"]
    assert (plugin.problem, plugin.dist) == (None, "truing-user-defined")
    assert dict(plugin.names) == {"dataset_strategy": ("user_defined", "user_defined.default")}
    for layout in LAYOUTS:
        short = registry.get("dataset_strategy", "user_defined", layout=layout)
        assert issubclass(registry.get("dataset_strategy", "user_defined.default", layout=layout), short)


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_user_defined; truing_user_defined.UserDefined(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_settings_the_columns_are_the_text():
    example = UserDefined().parse({**ROW, "margin": 1, "id": 7})
    assert (example.prompt, example.responses, example.margin, example.columns) == ("q {x}?", ("good", "bad"), 1, {"id": 7})
    example = UserDefinedPrompt().parse({**ROW, "answer": 3})
    assert (example.prompt, example.responses, example.columns) == ("q {x}?", (), {"answer": 3})
    assert UserDefinedPrompt().parse({"prompt": "q"}).prompt == "q"
    example = UserDefinedLabeled().parse({**LABELED, "label": "false"})
    assert (example.prompt, example.responses, example.label) == ("q {x}?", ("good",), False)
    assert example.notes == ("labels 'false' read as false",)
    assert UserDefinedCompletion().parse({"prompt": "q", "completion": "good"}).responses == ("good",)


@pytest.mark.parametrize(("said", "expected"), [({}, ""), ({"s": None}, ""), ({"s": ""}, ""), ({"s": " {b} "}, " {b} ")])
def test_columns_and_text_are_as_configured(said, expected):
    formats = {
        "prompt_format": "<{system}>{prompt}{{prompt}}\n",
        "chosen_format": " {chosen}!",
        "rejected_format": "{{{rejected}}}",
    }
    strategy = UserDefined(field_prompt="q", field_system="s", field_chosen="win", field_rejected="lose", **formats)
    row = {"q": "{prompt} {{x}}", "win": "{chosen}", "lose": "}{", **said}
    example = strategy.parse(row)
    assert example.prompt == f"<{expected}>" + "{prompt} {{x}}{prompt}\n"
    assert (example.responses, example.columns) == ((" {chosen}!", "{}{}"), {})
    check_dataset_strategy(strategy, [row], [ROW, {**row, "q": 3}, {**row, "s": ["x"]}, {**row, "lose": ""}])
    labeled = UserDefinedLabeled(field_completion="reply", field_label="good", completion_format="A: {completion}")
    assert labeled.parse({"prompt": "q", "reply": "{}", "good": 0}).responses == ("A: {}",)


@given(st.text(max_size=30), st.text(max_size=30), st.text(min_size=1).filter(str.strip))
def test_literal_text_and_data_come_through_unchanged(before, after, data):
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in (before, after)]
    strategy = UserDefinedPrompt(prompt_format=escaped[0] + "{prompt}" + escaped[1])
    assert strategy.parse({"prompt": data}).prompt == before + data + after


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_format": "{promt}"}, r"prompt_format is '\{promt\}' and has the placeholder \{promt\}; did you mean 'prompt'\?"),
        (
            {"prompt_format": "{question} {prompt}"},
            r"has the placeholder \{question\}. Known: \{prompt\}, \{system\}; \{\{ is a brace",
        ),
        ({"chosen_format": "{prompt}{chosen}"}, r"chosen_format .* has the placeholder \{prompt\}. Known: \{chosen\}"),
        ({"rejected_format": "{chosen}"}, r"rejected_format .* the placeholder \{chosen\}"),
        ({"prompt_format": "{} {prompt}"}, r"has the placeholder \{\}. Known"),
        ({"prompt_format": "{prompt.text}"}, r"has the placeholder \{prompt.text\}"),
        ({"prompt_format": "{prompt!r}"}, r"\{prompt\} takes no conversion and no format"),
        ({"prompt_format": "{prompt:>9}"}, r"\{prompt\} takes no conversion and no format"),
        (
            {"prompt_format": "{prompt} }"},
            r"prompt_format is '\{prompt\} \}': Single '\}' encountered.*; write \{\{ and \}\} for braces",
        ),
        ({"prompt_format": "{prompt"}, r"prompt_format is '\{prompt': "),
        ({"prompt_format": "{system}"}, r"lacks \{prompt\}, so that it would be the same text for every row"),
        ({"chosen_format": ""}, r"chosen_format is '' and lacks \{chosen\}"),
        ({"field_chosen": 3}, "field_chosen"),
    ],
)
def test_a_format_string_that_cannot_be_filled_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        UserDefined(**settings)


def test_the_format_strings_of_one_response_are_checked_too():
    with pytest.raises(ValueError, match=r"completion_format .* has the placeholder \{chosen\}. Known: \{completion\}"):
        UserDefinedLabeled(completion_format="{chosen}")


def test_contract():
    rows = {"paired": ROW, "rollout": ROW, "single": LABELED, "labeled": LABELED}
    for cls in FORMATS:
        (layout,) = cls.layouts
        check_dataset_strategy(cls, [rows[layout.value]], [{}, {**rows[layout.value], "prompt": ""}])
    with pytest.raises(RowError, match="chosen equals rejected"):
        UserDefined().parse({**ROW, "rejected": "good"})


@pytest.mark.parametrize(
    ("formats", "ends"),
    [
        ({}, ["good<pad>", "bad<pad>"]),
        (
            {"chosen_format": "{chosen}<|im_end|>\n", "rejected_format": "{rejected}<|im_end|>\n"},
            ["good<|im_end|>", "bad<|im_end|>"],
        ),
        ({"chosen_format": "{chosen}.\n", "rejected_format": "{rejected}.\n"}, ["good.\n<pad>", "bad.\n<pad>"]),
        ({"chosen_format": "{chosen}<|im_end|>"}, ["good<|im_end|><pad>", "bad<pad>"]),
    ],
)
def test_a_special_token_at_the_end_of_every_format_is_the_end(formats, ends):
    """For a tokenizer that knows <|im_end|> and has another end token."""
    from truing.data.encode import Encoder
    from truing.testing import tiny_tokenizer

    tokenizer: Any = tiny_tokenizer()
    tokenizer.eos_token = "<pad>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    (encoded,) = Encoder(tokenizer, Layout.PAIRED).encode([UserDefined(**formats).parse(ROW)])
    assert [tokenizer.decode(branch.token_ids) for branch in encoded.tree.branches] == ends
