"""What must hold of an episode's tokens, and that what breaks it is refused."""

from __future__ import annotations

import math

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.config import RolloutConfig
from truing.errors import PluginError
from truing.rollout import Completion, EpisodeRecord, RolloutRequest, Sampling, VersionSpan
from truing.rollout.conversation.trajectory import Trajectory, unlike_the_trainer
from truing.testing.fakes import FakeRollout

RECORD = EpisodeRecord(turns=2, messages=())


def begun(prompt=(1, 2), *, end=100, limit=50):
    return Trajectory(tuple(prompt), end=end, limit=limit, engine="e")


def asked(trajectory, length=50):
    return RolloutRequest(
        id="r", prompt_ids=trajectory.row, seeds=(1,), sampling=Sampling(max_completion_length=length), columns={"c": 3}
    )


def turn(trajectory, *ids, version=0, **change):
    made = Completion(
        request_id="r",
        index=0,
        prompt_ids=trajectory.row,
        token_ids=ids,
        finish_reason="stop",
        versions=(VersionSpan(version=version, start=0, end=len(ids)),),
        token_logps=tuple(-float(token) for token in ids),
    )
    return attrs.evolve(made, **change)


def add(trajectory, *ids, **change):
    trajectory.add_turn(turn(trajectory, *ids, **change), asked(trajectory))


def completed(trajectory):
    return trajectory.completion(asked(trajectory), 0, "stop", text="t", rewards={"e": 1.0}, episode=RECORD, extra={"k": 2})


def test_turns_are_counted_and_context_is_not():
    row = begun()
    add(row, 5, 6, version=3)
    assert row.add_context((7, 8)) and row.row == (1, 2, 5, 6, 7, 8)
    add(row, 9, version=4)
    done = completed(row)
    assert done.prompt_ids == (1, 2) and done.token_ids == (5, 6, 7, 8, 9)
    assert done.loss_mask == (True, True, False, False, True)
    assert done.token_logps == (-5.0, -6.0, 0.0, 0.0, -9.0)
    assert [(span.version, span.start, span.end) for span in done.versions] == [(3, 0, 4), (4, 4, 5)]
    assert (done.text, done.rewards, done.extra, done.columns, done.forks) == ("t", {"e": 1.0}, {"k": 2}, {"c": 3}, ())
    assert done.episode is RECORD


def test_without_log_probabilities_of_one_turn_the_trainer_scores_all():
    row = begun()
    add(row, 5)
    row.add_context((7,))
    add(row, 9, token_logps=None)
    assert completed(row).token_logps is None


def test_what_the_engine_itself_did_not_sample_has_no_log_probability():
    row = begun()
    add(row, 5, 6, loss_mask=(True, False), token_logps=(-1.0, math.nan))
    assert completed(row).token_logps == (-1.0, 0.0) and completed(row).loss_mask == (True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": (1, 3)}, r"completes other prompt tokens \(2\) than it was sent \(2\)"),
        ({"token_ids": ()}, "gives a turn of 0 tokens, and it must have 1 to 50"),
        ({"token_ids": (5,) * 51}, "gives a turn of 51 tokens, and it must have 1 to 50"),
        ({"token_logps": (-1.0,)}, "gives 1 token_logps for a turn of 2 tokens"),
        ({"loss_mask": (True,) * 3}, "gives 3 loss_mask for a turn of 2 tokens"),
        ({"token_logps": (-1.0, math.nan)}, "gives the log-probability nan for token 1 of a turn; it must be finite"),
        ({"token_logps": (-math.inf, -1.0)}, "gives the log-probability -inf for token 0"),
        ({"versions": ()}, r"gives versions \[\] for a turn of 2 tokens; they must cover it"),
        ({"versions": (VersionSpan(version=1, start=0, end=1),)}, r"gives versions \[\(1, 0, 1\)\] for a turn of 2"),
        ({"versions": (VersionSpan(version=1, start=1, end=2),)}, r"gives versions \[\(1, 1, 2\)\] for a turn of 2"),
    ],
)
def test_a_turn_that_is_not_what_was_asked_for_is_refused(change, message):
    row = begun()
    with pytest.raises(PluginError, match=f"rollout 'e' {message}"):
        add(row, 5, 6, **change)
    assert row.row == (1, 2)


def test_context_that_leaves_no_room_for_a_turn_is_not_appended():
    row = begun(end=7)
    add(row, 5, 6)
    assert row.room == 3 and not row.add_context((7, 7, 7)) and row.row == (1, 2, 5, 6)
    assert row.add_context((7, 7)) and row.room == 1


def test_a_row_ends_at_its_limit_or_where_the_first_row_had_to():
    row = begun(end=100, limit=3)
    add(row, 5)
    assert row.room == 2
    assert row.fork((1, 2, 3, 4)) and row.room == 3
    near = begun(end=7, limit=5)
    add(near, 5)
    assert not near.fork((1,) * 7) and near.forks == []
    assert near.fork((1,) * 6) and near.room == 1


def test_a_fork_puts_the_row_by():
    row = begun()
    add(row, 5, version=1)
    row.add_context((7,))
    add(row, 6, version=2)
    assert row.fork((1, 2, 6, 7))
    add(row, 8, version=3)
    done = completed(row)
    [fork] = done.forks
    assert (fork.prompt_ids, fork.token_ids, fork.loss_mask, fork.token_logps) == (
        (1, 2),
        (5, 7, 6),
        (True, False, True),
        (-5.0, 0.0, -6.0),
    )
    assert [(span.version, span.start, span.end) for span in fork.versions] == [(1, 0, 2), (2, 2, 3)]
    assert (done.prompt_ids, done.token_ids, done.loss_mask, done.token_logps) == ((1, 2, 6, 7), (8,), (True,), (-8.0,))
    assert [(span.version, span.start, span.end) for span in done.versions] == [(3, 0, 1)]


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.9), ("top_k", 20)])
def test_log_probabilities_that_are_not_the_trainers_are_refused(key, value):
    assert not list(unlike_the_trainer(Sampling(temperature=0.3)))
    for sampling in (Sampling(**{key: value}), RolloutConfig(backend=FakeRollout(), **{key: value})):
        [(found, message)] = unlike_the_trainer(sampling)
        assert found == key and message.startswith(f"is {value}, and the log-probabilities of a conversation's turns must be")


tokens = st.lists(st.integers(3, 50), min_size=1, max_size=6)
parts = st.lists(st.tuples(st.sampled_from(["turn", "context", "fork"]), tokens, st.integers(0, 3)), max_size=12)


@settings(deadline=None)
@given(parts)
def test_whatever_is_put_together_invariants_hold(parts):
    """Of any turns, contexts and forks: equal lengths, sampled ids verbatim, masks, log-probabilities and spans of versions."""
    row = begun(end=60, limit=30)
    written: list[list[int]] = [[]]
    for kind, ids, version in parts:
        if kind == "turn" and row.room >= len(ids):
            add(row, *ids, version=version)
            written[-1] += ids
        elif kind == "context" and written[-1]:
            row.add_context(ids)
        elif kind == "fork" and written[-1] and row.fork(ids):
            written.append([])
    done = completed(row)
    assert len(done.prompt_ids) + len(done.token_ids) == len(row.row) <= 60
    for part, sampled in zip([*done.forks, done], written, strict=True):
        assert len(part.token_ids) == len(part.loss_mask) == len(part.token_logps) <= 30
        counted = [token for token, counts in zip(part.token_ids, part.loss_mask, strict=True) if counts]
        assert counted == sampled
        expected = [-float(token) if counts else 0.0 for token, counts in zip(part.token_ids, part.loss_mask, strict=True)]
        assert list(part.token_logps) == expected
        covered = [index for span in part.versions for index in range(span.start, span.end)]
        assert covered == list(range(len(part.token_ids)))
