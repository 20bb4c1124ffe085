"""A run that is stopped anywhere and resumed is the run that was not, to the last bit, whatever it trains and however it reads."""

from __future__ import annotations

import itertools
import os
import shutil
import signal

import pytest

from tests.faults.inject import BUFFERED, at_step, buffered
from tests.faults.runs import LORA, end_of, same, whole_checkpoints
from tests.faults.sizes import FULL, only_full

ADAPTERS = {"full": (), "lora": LORA}
ACCUMULATION = {"accumulation 1": (), "accumulation 4": ("trainer.gradient_accumulation=4", "trainer.batch_size=1")}
STOPS = {"in the middle of an epoch": (4, None), "at the end of an epoch": (6, None), "in the middle of a buffer": (4, buffered)}
"""Steps done when the run is stopped, and where its trees come from. Six steps are an epoch, and three empty a buffer."""
REFERENCES = {
    "live reference": ((), False),
    "reference that follows": (("model.reference={sync_steps: 3}",), False),
    "precomputed reference": (("model.precompute_reference=true",), False),
    "precomputed reference, its file deleted": (("model.precompute_reference=true",), True),
}
BACKGROUND = {"saved in the background": (), "saved in the foreground": ("trainer.save_in_background=false",)}
ALL = list(itertools.product(ADAPTERS, ACCUMULATION, STOPS, REFERENCES, BACKGROUND))
SAMPLE = [
    ("full", "accumulation 1", "in the middle of an epoch", "live reference", "saved in the background"),
    ("full", "accumulation 1", "in the middle of a buffer", "live reference", "saved in the background"),
    ("lora", "accumulation 1", "in the middle of an epoch", "reference that follows", "saved in the background"),
    ("lora", "accumulation 4", "at the end of an epoch", "precomputed reference, its file deleted", "saved in the foreground"),
]


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("case", ALL if FULL else SAMPLE, ids=", ".join)
def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, tiny, case, cache, tally):
    adapter, accumulation, where, reference, background = case
    done, source = STOPS[where]
    reference_options, forget = REFERENCES[reference]
    options = (*ADAPTERS[adapter], *ACCUMULATION[accumulation], *reference_options)
    unbroken = tiny.unbroken(*options, before=source)

    def begin():
        at_step(done - 1, lambda run: stop())
        if source is not None:
            source()

    run = tmp_path / "run"
    stopped = tiny.start(run, *options, *BACKGROUND[background], before=begin).wait()
    assert stopped.code == 143, stopped.said
    assert [path.name for path in whole_checkpoints(run)] == [f"step-{done:08d}"]
    if forget:
        shutil.rmtree(cache)
    ended = tiny.finish(run, *options, *BACKGROUND[background], resume=True, before=source)
    assert f"{done} of 12 steps done" in ended.output
    same(run, unbroken)
    tally("resumes of the matrix", resumed=1)


def test_the_stops_are_where_they_are_said_to_be():
    assert 4 % 6 and 6 % 6 == 0 and 4 % BUFFERED


def test_a_source_with_a_buffer_is_another_run(tiny):
    """Else the matrix would say nothing of the buffer."""
    assert tiny.unbroken(before=buffered) != tiny.unbroken()


@only_full
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_two_ranks(tmp_path, tiny, adapter, tally):
    """Real processes under accelerate's launcher, each rank with half of a step."""
    options = (*ADAPTERS[adapter], "trainer.batch_size=2", "--num-processes", "2")
    unbroken = tmp_path / "unbroken"
    tiny.finish(unbroken, *options, real=True)
    run = tmp_path / "run"
    child = tiny.start(run, *options, "trainer.save_steps=4", real=True)
    child.until(lambda: (run / "checkpoints/step-00000004").exists(), "step 4")
    child.send(signal.SIGTERM)
    ended = child.wait()
    assert ended.code in (0, 143), ended.said
    assert whole_checkpoints(run)
    if ended.code == 0:  # it was done before the signal came: cut it
        for path in whole_checkpoints(run)[1:]:
            shutil.rmtree(path)
    tiny.finish(run, *options, "trainer.save_steps=4", resume=True, real=True)
    same(run, end_of(unbroken))
    tally("resumes of two ranks", resumed=1)
