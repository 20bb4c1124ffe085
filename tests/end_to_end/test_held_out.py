"""What a run says of held-out prompts, against completions that are known."""

from __future__ import annotations

from typing import ClassVar

import attrs
import pytest

from tests.end_to_end.test_online import align
from truing.testing.fakes import FakeRollout, LiveFakeRollout

TEXTS = {"one": "aac", "two": "?ab", "three": "ccb"}
"""What is written to each of three prompts; ? is a failure of the backend."""


@attrs.frozen(kw_only=True)
class Written(FakeRollout):
    """Writes what is written above."""

    name: ClassVar[str] = "written"

    def open(self, context):
        class Live(LiveFakeRollout):
            def _complete(self, request, index, rng):
                made, letter = super()._complete(request, index, rng), TEXTS.get(request.prompt, "ab?")[index % 3]
                if letter == "?":
                    return attrs.evolve(made, finish_reason="error", extra={"error": "no answer"})
                ids = (*self.tokenizer.encode(letter, add_special_tokens=False), self.symbols[-1])
                versions = (attrs.evolve(made.versions[0], end=len(ids)),)
                return attrs.evolve(
                    made, token_ids=ids, token_logps=(-1.0,) * len(ids), versions=versions, finish_reason="stop", text=letter
                )

        return Live(context.tokenizer)


def grade(prompt, response):
    """1 for a, 1/2 for b."""
    return {"a": 1.0, "b": 0.5}.get(response, 0.0)


def test_rewards_and_pass_rates_are_of_what_was_sampled(tmp_path):
    """Of nine completions eight have a score: 1, 1, 0; 1, 1/2; 0, 0, 1/2, of which the mean is 1/2. Those of 1 pass: two of three,
    one of three, and none, so that pass@1 is 1/3 and pass@3 is 2/3.
    """
    state = align(
        tmp_path / "run",
        eval_dataset=[{"prompt": prompt} for prompt in TEXTS],
        rewards=[grade],
        rollout={"backend": Written(), "num_eval_generations": 3},
        max_steps=1,
    )
    found = {name.removeprefix("eval_"): value for name, value in state.metrics.items() if name.startswith("eval_")}
    assert found["reward"] == found["rewards/grade/mean"] == pytest.approx(1 / 2)
    assert {name: value for name, value in found.items() if name.startswith("pass@")} == pytest.approx(
        {"pass@1": 1 / 3, "pass@3": 2 / 3}
    )
    assert (found["completions/lost"], found["completions/error_rate"]) == (1, pytest.approx(1 / 9))
