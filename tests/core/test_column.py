"""A column on disk is a column in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data import column
from truing.data.column import Column
from truing.data.dataset import TreeDataset
from truing.data.tree import Branch, PromptTree
from truing.errors import SetupError
from truing.loss import Layout


@given(parts=st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), max_size=9), most=st.sampled_from([0, 8, 40, 2**20]))
def test_it_holds_what_was_added(parts, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column, "MEMORY", most)
        numbers, expected = Column("i"), []
        for part in parts:
            numbers.extend(part)
            expected += part
            assert len(numbers) == len(expected)
            assert numbers.numbers.tolist() == expected


def test_data_on_disk_are_the_data_in_memory(monkeypatch):
    trees = [
        PromptTree(
            prompt_ids=tuple(range(n, n + 7)),
            prompt_mask=(False, True) * 3 + (n % 2 == 0,),
            branches=(Branch(token_ids=(n, 5), loss_mask=(True, False), label=n % 3 == 0, rank=n),),
            sample_id=n,
            margin=None if n % 2 else n / 3,
        )
        for n in range(40)
    ]

    def made():
        dataset = TreeDataset(Layout.SINGLE)
        for tree in trees:
            dataset.append(tree)
        return dataset

    in_memory = made()
    monkeypatch.setattr(column, "MEMORY", 64)
    on_disk = made()
    assert on_disk._tokens._file is not None
    assert in_memory.fingerprint == on_disk.fingerprint
    assert list(in_memory) == list(on_disk) == trees
    assert [on_disk.length(index) for index in range(40)] == [tree.num_tokens for tree in trees]
    assert in_memory.largest_id == on_disk.largest_id == 45
    assert on_disk.select([3, 1])[1].prompt_ids == trees[1].prompt_ids


def test_where_the_disk_takes_nothing_it_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(column, "MEMORY", 8)
    with pytest.raises(SetupError, match="file does not take it .*; set TRUING_CACHE"):
        Column("i").extend(range(100))
