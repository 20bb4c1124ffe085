"""The method `sft`: its settings, what it reads, and the term that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, PromptTokens, Term, setting

TrainOn: TypeAlias = Literal["completion", "assistant", "all"]
"""What is learned: the completion; all turns of the assistant, the completion being the last; or prompt and completion."""
PROMPT_TOKENS: Mapping[TrainOn, PromptTokens] = {"completion": "none", "assistant": "assistant", "all": "all"}
"""The prompt tokens that are learned too."""


@attrs.frozen(kw_only=True)
class SFT(Loss):
    """Supervised fine-tuning: the mean of -log pi over all tokens of an optimiser step that `train_on` names."""

    name: ClassVar[str] = "sft"
    layout: ClassVar[Layout] = Layout.SINGLE

    train_on: TrainOn = setting(
        "completion", help="Tokens to learn: the completion's; those of all assistant turns; or all, the prompt's too."
    )

    @property
    def needs(self) -> Needs:
        """The prompt's log-probabilities where some of it is learned."""
        return Needs.NOTHING if self.prompt_tokens == "none" else Needs.PROMPT_LOGPS

    @property
    def prompt_tokens(self) -> PromptTokens:
        """The prompt tokens that are counted."""
        return PROMPT_TOKENS[self.train_on]

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the cost of every token, and the completions' log-probabilities as a metric."""
        import torch

        logps = inputs.token_logps
        if self.needs:
            assert inputs.prompt_token_logps is not None
            logps = torch.cat((logps, inputs.prompt_token_logps))
        return LossOutput(
            terms=[Term(-logps, per="token")],
            metrics={"logps/completion": Term(inputs.logps.detach(), per="sequence")},
        )
