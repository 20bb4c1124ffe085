"""What a run says: one line per interval in a file, lines that fit on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from truing.train.console import Reporter

METRICS = {"step": 10, "loss": 0.6113, "rewards/accuracies": 1, "rewards/margins": 0.301, "grad_norm": 3.3634, "learning_rate": 1}


def said(*, terminal, width=80, metrics=METRICS):
    """Return what is printed of two metric lines, without the progress bar."""
    stream = io.StringIO()
    reporter = Reporter(console=Console(file=stream, force_terminal=terminal, width=width, soft_wrap=True, highlight=False))
    reporter.total = 30
    reporter.logged(metrics)
    reporter.measured("done: 10 steps, ", metrics)
    return stream.getvalue()


def test_a_line_for_a_file_is_never_broken():
    assert said(terminal=False).splitlines() == [
        "step 10/30  loss 0.6113  rewards/accuracies 1  rewards/margins 0.301  grad_norm 3.3634  learning_rate 1",
        "done: 10 steps, loss 0.6113  rewards/accuracies 1  rewards/margins 0.301  grad_norm 3.3634  learning_rate 1",
    ]


def test_a_line_on_a_terminal_is_broken_between_metrics():
    assert said(terminal=True).splitlines() == [
        "step 10/30  loss 0.6113  rewards/accuracies 1  rewards/margins 0.301",
        "            grad_norm 3.3634  learning_rate 1",
        "done: 10 steps, loss 0.6113  rewards/accuracies 1  rewards/margins 0.301",
        "                grad_norm 3.3634  learning_rate 1",
    ]


@pytest.mark.parametrize("metrics", [METRICS, {"step": 1, "loss": float("nan")}, {"step": 1}])
def test_a_wide_terminal_gets_one_line(metrics):
    assert said(terminal=True, width=200, metrics=metrics) == said(terminal=False, metrics=metrics)


def test_a_terminal_too_narrow_for_one_metric_loses_nothing():
    assert said(terminal=True, width=10).split() == said(terminal=False).split()
