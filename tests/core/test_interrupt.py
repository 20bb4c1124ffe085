"""Signals that ask a run to stop: noted once, never lost, agreed on by all ranks."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
import torch

from truing.train import loop
from truing.train.interrupt import InterruptSignal, Stopped


def ranks(count, gather=lambda noted: noted):
    return SimpleNamespace(num_processes=count, device=torch.device("cpu"), gather=gather)


@contextmanager
def noting():
    with InterruptSignal() as interrupt:
        interrupt.note_stops()
        yield interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with noting() as interrupt:
        assert interrupt.received(ranks(1)) == 0
        os.kill(os.getpid(), number)
        assert interrupt.received(ranks(1)) == number
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


def test_a_rank_learns_of_the_signal_of_another():
    with noting() as interrupt:
        assert interrupt.received(ranks(2, lambda noted: torch.cat((noted, torch.tensor([3]))))) == signal.SIGTERM


def test_a_signal_while_the_ranks_exchange_is_noted_for_the_next_step():
    """Both ranks gave 0 to this exchange, so that both go on, and stop after the next one."""

    def interrupted(noted):
        os.kill(os.getpid(), signal.SIGINT)
        return noted

    with noting() as interrupt:
        assert interrupt.received(ranks(2, interrupted)) == 0
        assert interrupt.received(ranks(2)) == signal.SIGINT


def test_a_request_to_save_is_answered_once_and_stops_nothing():
    with noting() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.received(ranks(1)) == signal.SIGUSR1
        assert interrupt.received(ranks(1)) == 0


def test_a_stop_outweighs_a_save_whichever_comes_first():
    with noting() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.received(ranks(1)) == signal.SIGTERM


def test_a_rank_that_only_saves_stops_with_the_one_that_was_stopped():
    with noting() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        stopped = torch.tensor([2])  # SIGINT, by its place in the order
        assert interrupt.received(ranks(2, lambda noted: torch.cat((noted, stopped)))) == signal.SIGINT


def test_before_there_is_anything_to_save_only_a_save_is_noted():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with InterruptSignal() as interrupt:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        os.kill(os.getpid(), signal.SIGUSR1)
        interrupt.note_stops()
        assert interrupt.received(ranks(1)) == signal.SIGUSR1


def test_a_run_notes_requests_to_save_while_it_is_set_up(tmp_path, monkeypatch):
    numbers = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
    before, seen = [signal.getsignal(number) for number in numbers], []

    def set_up(*arguments, **options):
        seen.extend(signal.getsignal(number) for number in numbers)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "set_up", set_up)
    with pytest.raises(KeyboardInterrupt):
        loop.train(SimpleNamespace(output=SimpleNamespace(dir=tmp_path)))
    assert isinstance(seen[0].__self__, InterruptSignal)
    assert seen[1:] == before[1:]
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_request_to_save_that_the_program_held_back_is_noted():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.raise_signal(signal.SIGUSR1)
        with InterruptSignal() as interrupt:
            assert interrupt.received(ranks(1)) == signal.SIGUSR1
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_stop_is_noted_whenever_it_comes_while_a_save_is():
    """Before every instruction of what notes a save and of what answers it, as if signals were looked for there too."""
    for instant in itertools.count():
        with noting() as interrupt:
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
            signal.raise_signal(signal.SIGTERM)
            sent.append(instant)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        signal.raise_signal(signal.SIGUSR1)
        answers = [interrupt.received(ranks(1))]
    finally:
        sys.settrace(before)
    return bool(sent), [*answers, interrupt.received(ranks(1))]


def test_a_launched_process_takes_the_echo_of_a_stop_for_the_stop(monkeypatch):
    """Its launcher hands on what both were sent; a second signal, later, acts at once."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with noting() as interrupt:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.received(ranks(1)) == signal.SIGINT
        monkeypatch.setattr("truing.train.interrupt.ECHO_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_something_is_opened_ends_that_at_once(number):
    with noting() as interrupt, pytest.raises(Stopped) as stopped, interrupt.raised():
        signal.raise_signal(number)
    assert stopped.value.exit_code == 128 + number
    assert str(stopped.value) == f"stopped by {signal.Signals(number).name} before the first step; there was nothing to save"


def test_a_stop_that_python_drops_ends_what_is_opened_after_it():
    """As it does with an exception within a destructor."""
    with noting() as interrupt, pytest.raises(Stopped), interrupt.raised(), suppress(Stopped):
        signal.raise_signal(signal.SIGTERM)
