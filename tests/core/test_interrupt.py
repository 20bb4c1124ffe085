"""Signals that ask a run to stop: noted once, never lost, agreed on by all ranks."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from truing.train.interrupt import InterruptSignal


def ranks(count, gather=lambda noted: noted):
    return SimpleNamespace(num_processes=count, device=torch.device("cpu"), gather=gather)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with InterruptSignal() as interrupt:
        assert interrupt.received(ranks(1)) == 0
        os.kill(os.getpid(), number)
        assert interrupt.received(ranks(1)) == number
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


def test_a_rank_learns_of_the_signal_of_another():
    with InterruptSignal() as interrupt:
        assert interrupt.received(ranks(2, lambda noted: torch.cat((noted, torch.tensor([3]))))) == signal.SIGTERM


def test_a_signal_while_the_ranks_exchange_is_noted_for_the_next_step():
    """Both ranks gave 0 to this exchange, so that both go on, and stop after the next one."""

    def interrupted(noted):
        os.kill(os.getpid(), signal.SIGINT)
        return noted

    with InterruptSignal() as interrupt:
        assert interrupt.received(ranks(2, interrupted)) == 0
        assert interrupt.received(ranks(2)) == signal.SIGINT


def test_a_request_to_save_is_answered_once_and_stops_nothing():
    with InterruptSignal() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.received(ranks(1)) == signal.SIGUSR1
        assert interrupt.received(ranks(1)) == 0


def test_a_stop_outweighs_a_save_whichever_comes_first():
    with InterruptSignal() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.received(ranks(1)) == signal.SIGTERM


def test_a_rank_that_only_saves_stops_with_the_one_that_was_stopped():
    with InterruptSignal() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        stopped = torch.tensor([2])  # SIGINT, by its place in the order
        assert interrupt.received(ranks(2, lambda noted: torch.cat((noted, stopped)))) == signal.SIGINT


def test_a_stop_is_noted_whenever_it_comes_while_a_save_is():
    """Before every instruction of what notes a save and of what answers it, as if signals were looked for there too."""
    for instant in itertools.count():
        with InterruptSignal() as interrupt:
            sent, answers = stopped_at(instant, interrupt)
        if not sent:
            assert instant > 20
            return
        assert signal.SIGTERM in answers, f"lost at instruction {instant}"


def stopped_at(instant, interrupt):
    """Ask for a save, and look twice, with SIGTERM at an instant; return whether it came to that, and what was seen."""
    left = itertools.count(instant, -1)
    sent = []

    def trace(frame, event, argument):
        if frame.f_code.co_name not in {"received", "_save"}:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            sent.append(instant)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        answers = [interrupt.received(ranks(1))]
    finally:
        sys.settrace(before)
    return bool(sent), [*answers, interrupt.received(ranks(1))]
