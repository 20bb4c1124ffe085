"""Single-edit typos over all keys: the right key is suggested, and no typo is accepted."""

from __future__ import annotations

import copy
import random
import string
from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.config_fakes import DPO, ONLINE, REGISTRY, load
from truing import ConfigError
from truing.config import build_config
from truing.config.dump import plain
from truing.config.faults import KeyPath
from truing.suggest import closest, did_you_mean, distance


def edited(word: str, random_: random.Random) -> str:
    """Return the word with a letter removed, added, replaced or swapped with its neighbour."""
    at = random_.randrange(len(word))
    letter = random_.choice(string.ascii_lowercase + "_")
    return random_.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + letter + word[at:],
            word[:at] + letter + word[at + 1 :],
            word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
        ]
    )


def keys(values: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every key of a configuration; those of a user's own mapping are none."""
    if isinstance(values, dict) and path != ("method", "groups"):
        for key, value in values.items():
            yield (*path, key)
            yield from keys(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from keys(value, (*path, index))


def with_typo(values: dict[str, Any], path: KeyPath, typo: str) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    parent: Any = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[typo] = parent.pop(path[-1])
    return changed


def siblings(values: Any, path: KeyPath) -> set[str]:
    for key in path[:-1]:
        values = values[key]
    return set(values)


def test_a_thousand_typos_are_refused_and_95_percent_answered_rightly(tmp_path):
    full = [
        plain(load(tmp_path, ONLINE)),
        plain(load(tmp_path, DPO, "model.adapter.r=2", "data.format={name: user.columns, field_chosen: c}")),
    ]
    places = [(values, path) for values in full for path in keys({k: v for k, v in values.items() if v is not None})]
    assert len({path[-1] for _, path in places}) > 70
    random_ = random.Random(7)
    right = tried = 0
    while tried < 1000:
        values, path = random_.choice(places)
        typo = edited(str(path[-1]), random_)
        if typo in siblings(values, path):
            continue  # a swap of equal letters
        tried += 1
        with pytest.raises(ConfigError) as caught:
            build_config(with_typo(values, path, typo), registry=REGISTRY)
        right += f"did you mean {path[-1]!r}" in str(caught.value)
    assert right >= 950, f"{right} of 1,000"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", "", 0),
        ("beta", "beta", 0),
        ("bta", "beta", 1),
        ("beta", "btea", 1),
        ("ca", "abc", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
    ],
)
def test_distance(first, second, expected):
    assert distance(first, second) == distance(second, first) == expected


def test_only_near_words_are_suggested():
    assert closest("lerning_rate", ["learning_rate", "max_length"]) == "learning_rate"
    assert closest("x", ["beta", "name"]) is None
    assert closest("y" * 100_000, ["beta"]) is None
    assert closest("beta", []) is None
    assert did_you_mean("bta", ["beta"]) == "; did you mean 'beta'?"
    assert did_you_mean("quux", ["beta"]) == ""


def test_of_equally_near_words_the_more_alike_is_suggested():
    assert closest("pth", ["patch", "path", "pith_of"]) == "path"
