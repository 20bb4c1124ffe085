"""Ranked answers as pairs, and Zephyr's text, written out by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import Example, Layout, RowError
from truing.registry import Registry
from truing.testing import check_dataset_strategy
from truing_zephyr import Nectar, NectarPrompt

PROMPT = "<|system|>\n</s>\n<|user|>\nq {x}?</s>\n<|assistant|>\n"


def row(*ranks: Any, texts: str = "abcdefg", prompt: Any = "q {x}?") -> dict[str, Any]:
    """Answers a, b, c and so on with these ranks."""
    return {"prompt": prompt, "answers": [{"answer": text, "rank": rank} for text, rank in zip(texts, ranks, strict=False)]}


def sides(parsed: Any) -> list[str]:
    return ["".join(example.responses) for example in ([parsed] if isinstance(parsed, Example) else parsed)]


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["zephyr"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "zephyr"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-zephyr", {"dataset_strategy": ("zephyr.nectar",)})
    assert registry.get("dataset_strategy", "zephyr.nectar", layout=Layout.PAIRED) is Nectar
    assert registry.get("dataset_strategy", "zephyr.nectar", layout=Layout.ROLLOUT) is NectarPrompt


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_zephyr; truing_zephyr.Nectar(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_text_is_zephyrs_and_the_answer_as_it_is():
    example = Nectar().parse({**row(2, 1, 3), "source": ["web"]})
    assert (example.prompt, example.responses, example.columns) == (PROMPT, ("b", "a"), {"source": ["web"]})
    assert example.add_eos
    assert NectarPrompt().parse({"prompt": "q {x}?", "answer": 3}).prompt == PROMPT
    assert NectarPrompt().parse(row(1, 2)).columns == {}


@pytest.mark.parametrize(
    ("ranks", "pairs", "expected"),
    [
        ((1, 2, 3), "best_next", ["ab"]),
        ((3, 2, 1), "best_next", ["cb"]),
        ((0, 1), "best_next", ["ab"]),
        (("2", "1.0"), "best_next", ["ba"]),
        ((1, 1, 4, 2), "best_next", ["ad"]),
        ((3, 1, 2), "best_worst", ["ba"]),
        ((1, 2, 2), "best_worst", ["ac"]),
        ((2, 1, 3), "all", ["ba", "bc", "ac"]),
        ((1, 2, 1), "all", ["ab", "cb"]),
    ],
)
def test_the_lowest_rank_is_the_best(ranks, pairs, expected):
    assert sides(Nectar(pairs=pairs).parse(row(*ranks))) == expected


@given(st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_all_pairs_are_those_of_unequal_rank(ranks):
    ranked = row(*ranks)
    if len(set(ranks)) == 1:
        with pytest.raises(RowError, match="answers of one rank only"):
            Nectar(pairs="all").parse(ranked)
        return
    rank = dict(zip("abcdefg", ranks, strict=False))
    every = sides(Nectar(pairs="all").parse(ranked))
    assert sorted(every) == sorted(good + bad for good in rank for bad in rank if rank[good] < rank[bad])
    best, worst = sides(Nectar(pairs="best_worst").parse(ranked))[0]
    assert (rank[best], rank[worst]) == (min(ranks), max(ranks))
    best, after = sides(Nectar().parse(ranked))[0]
    assert (rank[best], rank[after]) == (min(ranks), min(set(ranks) - {min(ranks)}))


def test_a_prompt_of_messages_is_turns():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "q {x}?"}]
    text = "<|user|>\nhi</s>\n<|assistant|>\nyo</s>\n<|user|>\nq {x}?</s>\n<|assistant|>\n"
    assert Nectar().parse(row(1, 2, prompt=turns)).prompt == "<|system|>\n</s>\n" + text
    said = [{"role": "system", "content": "s"}, *turns]
    assert Nectar().parse(row(1, 2, prompt=said)).prompt == "<|system|>\ns</s>\n" + text
    silent = [{"role": "system", "content": ""}, *turns]
    assert Nectar().parse(row(1, 2, prompt=silent)).prompt == "<|system|>\n</s>\n" + text


@pytest.mark.parametrize("pairs", ["best_next", "best_worst", "all"])
def test_contract(pairs):
    bad_rows = [
        {"prompt": "q"},
        row(1),
        row(1, 1),
        row(1, "first"),
        row(1, None),
        row(1, 2, texts="aa"),
        row(1, 2, prompt=" "),
        row(1, 2, prompt=[{"role": "tool", "content": "4"}]),
        {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]},
        {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": [{"role": "assistant", "content": "b"}], "rank": 2}]},
        {"prompt": "q", "answers": "ab"},
    ]
    check_dataset_strategy(Nectar(pairs=pairs), [row(2, 1, 3), row(0, 1)], bad_rows)
    check_dataset_strategy(NectarPrompt, [{"prompt": "q"}], [{"answers": []}])


def test_columns_and_keys_can_be_renamed():
    renamed = Nectar(field_prompt="ask", field_answers="replies", field_answer="text", field_rank="place")
    example = renamed.parse({"ask": "q {x}?", "replies": [{"text": "a", "place": 2}, {"text": "b", "place": 1}], "prompt": 1})
    assert (example.prompt, example.responses, example.columns) == (PROMPT, ("b", "a"), {"prompt": 1})
    with pytest.raises(RowError, match=r"replies\[0\] must be \{text, place\}, got \{'answer': 'a'"):
        renamed.parse({"ask": "q", "replies": row(1, 2)["answers"]})


def test_an_unknown_choice_of_pairs_is_refused():
    with pytest.raises(ValueError, match="must be one of best_next, best_worst, all, got 'worst'"):
        Nectar(pairs="worst")


def test_the_end_is_the_tokenizers_once():
    """A tokenizer of which the end token is </s>, as Zephyr's is: an answer gets it, one that has it gets no second."""
    from truing.data.encode import Encoder
    from truing.testing import tiny_tokenizer

    tokenizer: Any = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    ranked = {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b</s>", "rank": 2}]}
    (encoded,) = Encoder(tokenizer, Layout.PAIRED).encode([Nectar().parse(ranked)])
    assert [tokenizer.decode(branch.token_ids) for branch in encoded.tree.branches] == ["a</s>", "b</s>"]
    assert [len(branch.token_ids) for branch in encoded.tree.branches] == [2, 2]
