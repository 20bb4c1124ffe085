"""What anybody says, as data."""

from __future__ import annotations

import json
import pickle
import threading

import msgspec
import numpy as np
import pytest

from truing.rollout.plain import DEEPEST, plain, well_formed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, True, None, "é"]}, {"a": [1, 2.5, True, None, "é"]}),
        ({"n": 10**22, "m": -(2**63), "o": 2**64 - 1}, {"n": "1" + "0" * 22, "m": -(2**63), "o": 2**64 - 1}),
        ("\ud83d!", "\ufffd!"),
        ("\ud83d\ude00", "\U0001f600"),
        ({3: (1, 2), "\ude00": 1}, {"3": [1, 2], "\ufffd": 1}),
        ({"v": np.float32(0.5), "a": np.arange(2), "s": np.str_("x")}, {"v": 0.5, "a": [0, 1], "s": "x"}),
        (b"\x00", "b'\\x00'"),
    ],
)
def test_values_become_data(value, expected):
    assert plain(value) == expected


class Rude:
    def __repr__(self):
        raise ValueError("no")


NO_DATA = [threading.Lock(), Rude(), 10**5000, object, {Rude: threading.Lock()}, "\udfff" * 9]


@pytest.mark.parametrize("value", NO_DATA, ids=range(len(NO_DATA)))
def test_what_is_no_data_can_be_sent_kept_and_written(value):
    found = plain({"it": value})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found)) == pickle.loads(pickle.dumps(found)) == found
    assert json.loads(json.dumps(found)) == found and len(str(found)) < 300


def test_what_is_endless_ends():
    endless: list[object] = []
    endless.append(endless)
    found = plain(endless)
    for _ in range(DEEPEST - 1):
        [found] = found
    assert found == ["[[[[[[[...]]]]]]]"]


def test_text_that_is_well_formed_stays_as_it_is():
    assert well_formed("a\U0001f600\ufeffé") == "a\U0001f600\ufeffé" and well_formed("\ufeffa") == "\ufeffa"
