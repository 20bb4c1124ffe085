"""What becomes of prompts over trainer.max_prompt_length where completions are sampled."""

from __future__ import annotations

import json

import pytest

from tests.end_to_end.test_online import align, completions
from truing import DataError

PROMPTS = ["1+1=", "2+2=", "What is three plus three?"]
"""Of bytes, 4, 4 and 25."""


@pytest.mark.parametrize(
    ("excess_length", "said", "counts", "sampled"),
    [
        ("drop", "1 prompt dropped: longer than max_prompt_length 10", (1, 0), {0, 1}),
        ("truncate", "1 prompt truncated to 10 tokens, from the beginning", (0, 1), {0, 1, 2}),
    ],
)
def test_they_are_left_out_or_cut_and_counted_before_training(tmp_path, capsys, excess_length, said, counts, sampled):
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    align(tmp_path / "run", dataset=rows, batch_size=1, num_epochs=1, max_prompt_length=10, excess_length=excess_length)
    output = " ".join(capsys.readouterr().out.split())
    assert said in output and output.index(said) < output.index("step 1/")
    found = json.loads((tmp_path / "run/environment.json").read_text())["data"]
    assert (found["prompts_too_long"], found["prompts_truncated"]) == counts
    assert {line["sample"] for line in completions(tmp_path / "run")} == sampled


def test_they_may_end_the_run_before_it_starts(tmp_path):
    with pytest.raises(DataError, match=r"row 3: a prompt of 25 tokens, over trainer\.max_prompt_length 10"):
        align(tmp_path / "run", dataset=[{"prompt": p} for p in PROMPTS], max_prompt_length=10, excess_length="error")
