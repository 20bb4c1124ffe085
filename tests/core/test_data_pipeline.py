"""Rows to trees of a whole run: lengths, bad rows, mixtures, and that nothing vanishes uncounted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.config.classes import DataConfig, TrainerConfig
from truing.data import DataReport, TreeDataset, prepare, prepare_rows
from truing.data.example import Example
from truing.data.strategies import FunctionStrategy, Passthrough, Preference, PreferencePrompt, PromptText, Ranked, Unpaired
from truing.errors import ConfigError, DataError, ModelError
from truing.loss import Layout
from truing.testing import tiny_tokenizer

TOKENIZER: Any = tiny_tokenizer(add_bos=True)
EOS = "<|im_end|>"


def pair(prompt: str = "q", chosen: str = "a", rejected: str = "b", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def trees_of(
    rows: Any,
    strategy: Any = None,
    *,
    layout: Layout = Layout.PAIRED,
    context: int | None = None,
    on_bad_row: Any = "error",
    reserved: int = 1,
    **trainer: Any,
) -> tuple[TreeDataset, DataReport]:
    return prepare_rows(
        rows,
        strategy or Preference(),
        layout=layout,
        tokenizer=TOKENIZER,
        trainer=TrainerConfig(**trainer),
        context_length=context,
        on_bad_row=on_bad_row,
        reserved=reserved,
    )


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(dataset: TreeDataset) -> list[tuple[str, ...]]:
    return [
        tuple(TOKENIZER.decode(list(part)) for part in (tree.prompt_ids, *(branch.token_ids for branch in tree.branches)))
        for tree in (dataset[index] for index in range(len(dataset)))
    ]


def test_rows_become_trees_in_order() -> None:
    dataset, report = trees_of([pair(), pair("r", "c", "d", margin=2)])
    assert texts(dataset) == [("<bos>q", "a" + EOS, "b" + EOS), ("<bos>r", "c" + EOS, "d" + EOS)]
    assert [dataset[0].margin, dataset[1].margin] == [None, 2.0]
    assert report.lines() == ["2 rows read, 2 kept (12 tokens)"]
    assert report.as_dict()["rows_kept"] == 2


def test_a_dataset_of_the_library_will_do() -> None:
    import datasets

    dataset, _ = trees_of(datasets.Dataset.from_list([pair(), pair("r")]))
    assert texts(dataset)[1][0] == "<bos>r"


def test_rows_over_max_length_are_dropped_and_counted() -> None:
    """`<bos>q` and `aaa<end>` are 6 tokens."""
    rows = [pair(chosen="aaa"), pair(chosen="aaaa"), pair(rejected="bbbbbb")]
    dataset, report = trees_of(rows, max_length=6)
    assert texts(dataset) == [("<bos>q", "aaa" + EOS, "b" + EOS)]
    assert report.lines() == ["3 rows read, 1 kept (8 tokens)", "2 dropped: longer than max_length 6"]
    assert trees_of(rows, context=6)[1].lines() == report.lines()


def test_truncation_cuts_completions_and_says_whose_end_is_lost() -> None:
    dataset, report = trees_of([pair(chosen="aaaaa"), pair(chosen="aaa")], max_length=6, excess_length="truncate")
    assert texts(dataset)[0] == ("<bos>q", "aaaa", "b" + EOS)
    assert (report.completions_truncated, report.ends_lost, report.rows_kept) == (1, 1, 2)
    assert report.lines()[1:] == ["1 completion truncated", "1 of these lost the end token"]


def test_truncation_of_text_without_end_token_loses_none() -> None:
    _, report = trees_of([pair(chosen="aaaaa")], Passthrough(), max_length=6, excess_length="truncate")
    assert (report.completions_truncated, report.ends_lost) == (1, 0)


def test_a_row_of_which_truncation_leaves_nothing_is_dropped_and_counted() -> None:
    _, report = trees_of([pair("qqqqqqqq"), pair()], max_length=6, excess_length="truncate")
    assert report.lines()[1] == "1 dropped: a response has no token left to train on"


def test_a_pair_that_truncation_makes_equal_is_dropped_and_counted() -> None:
    _, report = trees_of([pair(chosen="aaaax", rejected="aaaay"), pair()], max_length=6, excess_length="truncate")
    assert report.lines()[1] == "1 dropped: chosen and rejected are the same tokens"


def test_excess_length_may_be_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset, row 2: 7 tokens, over trainer\.max_length 6; raise it, or set excess_length"):
        trees_of([pair(), pair(chosen="aaaa")], max_length=6, excess_length="error")


def test_a_long_prompt_loses_its_beginning_but_not_the_beginning_token() -> None:
    dataset, report = trees_of([pair("abcdef"), pair("ab")], max_prompt_length=3)
    assert [row[0] for row in texts(dataset)] == ["<bos>ef", "<bos>ab"]
    assert report.lines()[1:] == ["1 prompt truncated to 3 tokens, from the beginning"]


def test_a_prompt_without_beginning_token_keeps_its_last_tokens() -> None:
    row = {
        "prompt": [{"role": "user", "content": "x"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    dataset, _ = trees_of([row], max_prompt_length=10)
    assert texts(dataset) == [("assistant\n", "a" + EOS, "b" + EOS)]


def test_a_prompt_to_be_answered_needs_room_for_the_answer() -> None:
    rows = [{"prompt": "abc"}, {"prompt": "abcd"}]
    online = {"layout": Layout.ROLLOUT, "max_length": 7, "reserved": 3}
    dataset, report = trees_of(rows, PromptText(), **online)
    assert (len(dataset), report.rows_too_long, report.prompts_truncated) == (1, 1, 0)
    dataset, report = trees_of(rows, PromptText(), **online, excess_length="truncate")
    assert (len(dataset), report.rows_too_long, report.prompts_truncated) == (2, 0, 1)
    assert [len(dataset[index].prompt_ids) for index in (0, 1)] == [4, 4]
    with pytest.raises(ConfigError, match="rollout.max_completion_length is 7, which leaves no room for a prompt within 7 tokens"):
        trees_of(rows, PromptText(), layout=Layout.ROLLOUT, max_length=7, reserved=7)


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_length is 9, and the model was made for 8 tokens"):
        trees_of([pair()], max_length=9, context=8)
    with pytest.raises(ConfigError, match=r"trainer\.max_prompt_length is 8, which leaves no room for a response within 8 tokens"):
        trees_of([pair()], max_prompt_length=8, context=8)


def test_a_bad_row_stops_the_run_or_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = [pair(chosen="b"), pair(chosen=""), {"prompt": "q"}, {**pair(), "prompt": 3}, pair(chosen="half \ud800")]
    path.write_text("".join(json.dumps(row) + "\n" for row in [pair(), *bad]) + "{broken\n")
    source = DataConfig(path="rows.jsonl", format=Preference())
    common: dict[str, Any] = {
        "layout": Layout.PAIRED,
        "tokenizer": TOKENIZER,
        "trainer": TrainerConfig(),
        "context_length": None,
        "base_dir": tmp_path,
    }
    with pytest.raises(DataError) as failure:
        prepare([source], **common)
    assert str(failure.value) == (
        f"{path}:2: chosen equals rejected ('b'); a pair needs two different responses. "
        "data.on_bad_row: skip leaves such rows out and counts them"
    )
    dataset, report = prepare([attrs.evolve(source, on_bad_row="skip")], **common)
    assert len(dataset) == 1 and report.rows_skipped == 6
    assert report.lines()[1:] == [
        "6 skipped: cannot be read",
        f"  skipped {path}:2: chosen equals rejected ('b'); a pair needs two different responses",
        f"  skipped {path}:3: column 'chosen' is empty (''); it needs text",
        f"  skipped {path}:4: column 'chosen' is missing; the row has 'prompt': rename a column, or choose the format that fits",
        "  and 3 more",
    ]


def test_a_row_in_memory_that_is_none_is_named() -> None:
    with pytest.raises(DataError, match="dataset, row 1: a row must be a mapping of columns, got str 'q'"):
        trees_of(["q"])


def test_no_rows_left_says_why() -> None:
    with pytest.raises(
        DataError, match=r"no row of the dataset can be trained on: 2 rows read, 0 kept .*2 dropped: longer than max_length 3"
    ):
        trees_of([pair(), pair()], max_length=3)
    with pytest.raises(DataError, match="0 rows read"):
        trees_of([])
    with pytest.raises(
        DataError, match=r"1 row read.*1 skipped: cannot be read; skipped dataset, row 1: column 'prompt' is missing"
    ):
        trees_of([{"chosen": "a", "rejected": "b"}], on_bad_row="skip")


@attrs.frozen(kw_only=True)
class Careless:
    name: ClassVar[str] = "careless"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})

    def parse(self, row: Mapping[str, Any]) -> Example:
        return Example(prompt=row["question"], responses=("a", "b"))


def test_a_format_that_fails_is_a_bad_row() -> None:
    with pytest.raises(DataError, match="dataset, row 1: the format careless failed: KeyError: 'question'"):
        trees_of([{"q": 1}], Careless())


def test_a_format_of_another_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.format: ranked reads rows for RANKED, and the method's layout is PAIRED"):
        trees_of([pair()], Ranked())


def test_messages_without_template_are_an_error_even_if_bad_rows_are_skipped() -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    rows = [{"prompt": [{"role": "user", "content": "q"}]}]
    with pytest.raises(ModelError, match="no chat template"):
        prepare_rows(
            rows,
            PromptText(),
            layout=Layout.ROLLOUT,
            tokenizer=bare,
            trainer=TrainerConfig(),
            context_length=None,
            on_bad_row="skip",
        )


def test_notes_of_formats_are_counted() -> None:
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (1, 1, "true", True)]
    dataset, report = trees_of(rows, Unpaired(), layout=Layout.LABELED)
    assert [dataset[index].branches[0].label for index in range(4)] == [True] * 4
    assert report.lines()[1:] == ["2 labels 1 read as true", "1 labels 'true' read as true"]
    assert report.as_dict()["notes"] == {"labels 1 read as true": 2, "labels 'true' read as true": 1}


def test_a_function_gets_configuration_index_and_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "formats.py").write_text(
        "def make(cfg, dataset_idx=None):\n"
        "    def transform(example, tokenizer):\n"
        "        return {'prompt': f'{cfg.trainer.seed} {dataset_idx} {tokenizer.eos_token} ' + example['q']}\n"
        "    return transform, {'remove_columns': ['q']}\n"
    )
    write(tmp_path / "rows.jsonl", [{"q": "x", "answer": "y"}])
    function: Any = FunctionStrategy(name="formats.make", base_dir=tmp_path)
    source = DataConfig(path="rows.jsonl", format=function)
    dataset, _ = prepare(
        [source, source],
        layout=Layout.ROLLOUT,
        tokenizer=TOKENIZER,
        trainer=TrainerConfig(seed=7),
        context_length=None,
        base_dir=tmp_path,
    )
    assert [dataset.prompt(0), dataset.prompt(1)] == [f"7 0 {EOS} x", f"7 1 {EOS} x"]
    assert dataset[1].columns == {"answer": "y"}


def mixed(tmp_path: Path, sizes: Sequence[int], weights: Sequence[float | None], seed: int = 0) -> tuple[TreeDataset, DataReport]:
    sources = []
    for index, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        write(tmp_path / f"{index}.jsonl", [pair(f"{index}:{row}") for row in range(size)])
        sources.append(DataConfig(path=f"{index}.jsonl", format=Preference(), weight=weight))
    return prepare(
        sources, layout=Layout.PAIRED, tokenizer=TOKENIZER, trainer=TrainerConfig(seed=seed), context_length=None, base_dir=tmp_path
    )


def test_datasets_without_weights_follow_each_other(tmp_path: Path) -> None:
    dataset, _ = mixed(tmp_path, [2, 1], [None, None])
    assert [row[0] for row in texts(dataset)] == ["<bos>0:0", "<bos>0:1", "<bos>1:0"]


def test_a_mixture_has_the_shares_and_repeats_no_row(tmp_path: Path) -> None:
    """Shares 0.75 and 0.25 of 30 and 40 rows: N = min(30 / 0.75, 40 / 0.25) = 40, so 30 and 10 rows."""
    dataset, report = mixed(tmp_path, [30, 40], [3, 1])
    prompts = [row[0].removeprefix("<bos>") for row in texts(dataset)]
    assert [sum(prompt.startswith(f"{index}:") for prompt in prompts) for index in (0, 1)] == [30, 10]
    assert len(set(prompts)) == 40
    assert [dataset[index].sample_id for index in range(40)] == list(range(40))
    assert "30 left out: beyond their dataset's share of the mixture" in report.lines()
    assert report.rows_kept == 40


def test_a_mixture_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (mixed(tmp_path, [5, 50], [1, 1], seed)[0] for seed in (1, 1, 2))
    assert texts(first) == texts(again) and first.fingerprint == again.fingerprint
    assert texts(first) != texts(other) and first.fingerprint != other.fingerprint


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10)), min_size=2, max_size=4))
def test_a_mixture_is_as_long_as_it_can_be(tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, float]]) -> None:
    sizes, weights = zip(*parts, strict=True)
    shares = np.array(weights) / sum(weights)
    expected = np.floor(shares * min(np.array(sizes) / shares) + 1e-9)
    if 0 in expected:
        with pytest.raises(DataError, match=r"the mixture leaves no row of \d\.jsonl, of which the share is"):
            mixed(tmp_path_factory.mktemp("mix"), sizes, weights)
        return
    dataset, _ = mixed(tmp_path_factory.mktemp("mix"), sizes, weights)
    prompts = [row[0] for row in texts(dataset)]
    assert [sum(prompt.startswith(f"<bos>{index}:") for prompt in prompts) for index in range(len(sizes))] == list(expected)
    assert any(count == size for count, size in zip(expected, sizes, strict=True))


def test_either_all_have_a_weight_or_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"some datasets have a weight, but not 1\.jsonl; give every one a weight"):
        mixed(tmp_path, [1, 1], [1.0, None])


def test_trees_come_back_as_they_went_in() -> None:
    ranked = [{"prompt": "q", "answers": [{"answer": "a", "rank": 0}, {"answer": "b", "rank": 0}, {"answer": "c", "rank": 1}]}]
    dataset, _ = trees_of(ranked, Ranked(), layout=Layout.RANKED)
    assert [branch.rank for branch in dataset[0].branches] == [0, 0, 1]
    assert [branch.role for branch in dataset[0].branches] == ["completion"] * 3
    pairs, _ = trees_of([pair(), pair("r", "cc", "d")])
    assert [branch.role for branch in pairs[1].branches] == ["chosen", "rejected"]
    assert (pairs.length(1), pairs[1].num_tokens) == (7, 7)
    assert pairs[-1] == pairs[1] and pairs[1].sample_id == 1
    with pytest.raises(IndexError, match="sample 2 of 2"):
        pairs[2]


def test_extra_columns_are_kept_for_rewards_and_dropped_elsewhere() -> None:
    rows = [pair(answer=[1, None])]
    prompts, _ = trees_of(rows, PreferencePrompt(), layout=Layout.ROLLOUT)
    assert prompts[0].columns == {"answer": [1, None]} and prompts.prompt(0) == "q" and prompts[0].branches == ()
    assert trees_of(rows)[0][0].columns == {}


class Picture:
    """Shows its address as pictures of PIL do."""

    def __str__(self) -> str:
        return f"<Picture at 0x{id(self):X}>"


def test_the_fingerprint_of_prompts_changes_with_what_rewards_read() -> None:
    def prints(*answers: object) -> str:
        rows = [pair(answer=answer) for answer in answers]
        return trees_of(rows, PreferencePrompt(), layout=Layout.ROLLOUT)[0].fingerprint

    assert prints("1", None) == prints("1", None)
    assert len({prints("1", None), prints("2", None), prints(None, "1"), prints("1", [1])}) == 4
    assert prints(object(), b"x") == prints(object(), b"x") != prints(object(), b"y")
    assert prints([Picture()]) == prints([Picture()]), "an address differs from process to process, however it is written"
    assert prints({"a", "b"}) == prints({"b", "a"}) != prints({"a"})


def test_the_fingerprint_changes_with_anything_that_training_reads() -> None:
    rows = [pair(), pair("r")]
    same = trees_of(rows)[0].fingerprint
    assert trees_of(rows)[0].fingerprint == same
    changed = [
        [pair(), pair("s")],
        [pair("r"), pair()],
        [pair(), pair("r", margin=1.0)],
        [pair(), pair("r", "b", "a")],
        [pair(), pair("rb", "a", "b")],
        [pair()],
    ]
    assert same not in {trees_of(rows)[0].fingerprint for rows in changed}
    labels = [
        {trees_of([{"prompt": "q", "completion": "a", "label": x}], Unpaired(), layout=Layout.LABELED)[0].fingerprint}
        for x in (True, False)
    ]
    assert labels[0] != labels[1]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    for prompt in ("a", "b", "c"):
        write(tmp_path / "rows.jsonl", [pair(prompt, "x", "y")])
        source = DataConfig(path="rows.jsonl", format=Preference())
        dataset, _ = prepare(
            [source], layout=Layout.PAIRED, tokenizer=TOKENIZER, trainer=TrainerConfig(), context_length=None, base_dir=tmp_path
        )
        assert texts(dataset)[0][0] == f"<bos>{prompt}"
