"""check_dataset_strategy passes formats that keep their promises, and names the promise that a format breaks."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from truing.data.example import DatasetStrategy, Example
from truing.errors import RowError
from truing.loss import Layout
from truing.settings import setting
from truing.testing import check_dataset_strategy

ROWS = [{"prompt": "1+1=", "good": "2", "bad": "3"}, {"prompt": "", "good": "é", "bad": "x"}]
BAD_ROWS = [{"prompt": "1+1=", "good": "2"}, {"prompt": "1+1=", "good": "2", "bad": "2"}]


@attrs.frozen(kw_only=True)
class Pairs(DatasetStrategy):
    name: ClassVar[str] = "pairs"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
    bad: str = setting("bad", help="Column of the rejected answer.")
    roles: tuple[str, ...] = setting(("user", "assistant"), help="Roles.")

    def parse(self, row):
        if not row.get(self.bad) or row[self.bad] == row["good"]:
            raise RowError(f"column {self.bad!r} is missing, or the same as 'good'")
        return Example(prompt=row["prompt"], responses=(row["good"], row[self.bad]))


def strategy(change=None, *, layout: Layout = Layout.PAIRED, **members: Any):
    """The good format with one thing made wrong; `change` gets (row, what the good one returns)."""
    body = {"__module__": __name__, "__annotations__": {}, "layouts": frozenset({layout}), **members}
    if change is not None:
        body["parse"] = lambda self, row: change(row, Pairs.parse(self, row))
    return attrs.frozen(kw_only=True)(type("Bad", (Pairs,), body))


def breaks(candidate, message, rows=ROWS, bad_rows=()):
    with pytest.raises(AssertionError, match=message):
        check_dataset_strategy(candidate, rows, bad_rows)


@pytest.mark.parametrize("candidate", [Pairs, Pairs(roles=("a",)), strategy()])
def test_good_formats_pass(candidate):
    check_dataset_strategy(candidate, ROWS, BAD_ROWS)


def test_a_row_may_give_several_examples():
    def both(row, good):
        return [Example(prompt=good.prompt, responses=(side,), label=side == row["good"]) for side in good.responses]

    check_dataset_strategy(strategy(both, layout=Layout.LABELED), ROWS, BAD_ROWS)
    breaks(strategy(lambda row, good: [good, good.prompt]), "a truing.Example or a list of them, got str for row 0")
    breaks(strategy(lambda row, good: []), "makes nothing of row 0.*raise truing.RowError")
    breaks(strategy(lambda row, good: [good, attrs.evolve(good, responses=("a",))]), "row 0 does not fit its layout PAIRED")


def test_messages_and_the_other_layouts_pass():
    chat = [{"role": "user", "content": "Hi"}]
    answer = [{"role": "assistant", "content": "Yo"}]
    check_dataset_strategy(
        strategy(lambda row, good: Example(prompt=chat, responses=(answer,), label=False), layout=Layout.LABELED), ROWS
    )
    check_dataset_strategy(strategy(lambda row, good: Example(prompt=chat), layout=Layout.ROLLOUT), ROWS)
    check_dataset_strategy(strategy(lambda row, good: attrs.evolve(good, ranks=(0, 1)), layout=Layout.RANKED), ROWS)


def test_no_row():
    breaks(Pairs, "needs at least one row", rows=[])


def test_a_class_that_the_registry_refuses():
    breaks(strategy(name="Not Allowed"), "the registry would refuse this plugin")


@attrs.frozen(kw_only=True)
class Loose(Pairs):
    """A format with a field that checks nothing itself."""

    width: int = 2


def test_settings_that_a_configuration_cannot_make():
    breaks(
        Pairs(roles="user"), r"written as a configuration and read again, Pairs\(bad='bad', roles=\('user',\)\); compare by value"
    )
    breaks(Loose(width="2"), "the settings .* of Loose cannot be read from a configuration, for they do not have the types")
    breaks(strategy(__eq__=lambda self, other: self is other, __hash__=None), "written as a configuration and read again")


def test_a_required_setting_takes_an_instance():
    @attrs.frozen(kw_only=True)
    class Required(Pairs):
        column: str = setting(help="A column.")

    breaks(Required, "Required needs column; pass an instance instead of the class")
    check_dataset_strategy(Required(column="c"), ROWS)


def test_a_good_row_that_is_refused():
    breaks(Pairs, "Pairs.parse failed on row 0, .*RowError: column 'bad' is missing", rows=BAD_ROWS)


def test_a_result_that_is_no_example():
    breaks(strategy(lambda row, good: dict(row)), "must return a truing.Example or a list of them, got dict for row 0")


def test_a_row_that_is_changed():
    def change(row, good):
        row["prompt"] += "!"
        return good

    breaks(strategy(change), "Bad.parse changes row 0", rows=[dict(ROWS[0])])


def test_another_reading_each_time():
    calls = []

    def count(row, good):
        calls.append(row)
        return attrs.evolve(good, prompt=f"{len(calls)}")

    breaks(strategy(count), "reads row 0 in two ways")


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (Layout.PAIRED, {"responses": ("a",)}, "row 0 does not fit its layout PAIRED: the layout PAIRED takes 2 responses"),
        (Layout.PAIRED, {"responses": ("a", "b", "c")}, "does not fit its layout PAIRED"),
        (Layout.PAIRED, {"responses": ("a", "a")}, "has the same response twice"),
        (Layout.PAIRED, {"responses": ("a", "")}, "has an empty response"),
        (Layout.PAIRED, {"responses": ("a", [{"role": "assistant", "content": "b"}])}, "all text or all messages"),
        (Layout.LABELED, {"responses": ("a",)}, "does not fit its layout LABELED: .* boolean label"),
        (Layout.RANKED, {"ranks": None}, "does not fit its layout RANKED"),
        (Layout.RANKED, {"responses": ("a", "b", "a"), "ranks": (0, 1, 2)}, "has the same response twice"),
        (Layout.ROLLOUT, {"prompt": ""}, "has an empty prompt, and ROLLOUT has nothing else"),
        (Layout.SINGLE, {"responses": ()}, "does not fit its layout SINGLE"),
    ],
)
def test_examples_that_do_not_fit_the_layout(layout, change, message):
    breaks(strategy(lambda row, good: attrs.evolve(good, **change), layout=layout), message)


def test_a_bad_row_that_is_accepted():
    breaks(Pairs, "accepts bad row 0, .* raise truing.RowError", bad_rows=[ROWS[0]])


def test_a_bad_row_that_fails_otherwise():
    breaks(Pairs, "fails on bad row 0 with KeyError: 'good'. Raise truing.RowError", bad_rows=[{"bad": "x"}])


def test_a_refusal_that_names_no_column():
    def parse(self, row):
        if row["prompt"] == "?":
            raise RowError("cannot be read")
        return Pairs.parse(self, row)

    vague = strategy(parse=parse)
    breaks(vague, r"refuses bad row 0 without naming a column \(.*bad.*\): 'cannot be read'", bad_rows=[{"prompt": "?"}])
