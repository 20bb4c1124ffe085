"""The method `orpo`: its settings, what it reads, and the terms that it returns."""

from __future__ import annotations

from typing import ClassVar

import attrs

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term, setting


@attrs.frozen(kw_only=True)
class ORPO(Loss):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691).

    With p_w and p_l the mean log-probabilities of a chosen and a rejected token, and log odds(p) = p - log(1 - exp(p)):
    the negative log-likelihood of chosen, plus beta times -log sigmoid(log odds(p_w) - log odds(p_l)).
    """

    name: ClassVar[str] = "orpo"
    layout: ClassVar[Layout] = Layout.PAIRED

    beta: float = setting(
        0.1, ge=0, help="Weight of the odds ratio, the paper's lambda.", also=("lambda", "lambda_", "orpo_lambda")
    )
    nll_on_prompt: bool = setting(True, help="Whether the negative log-likelihood is of prompt and chosen, or of chosen alone.")

    @property
    def needs(self) -> Needs:
        """The prompt's log-probabilities where they are part of the likelihood."""
        return Needs.PROMPT_LOGPS if self.nll_on_prompt else Needs.NOTHING

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the likelihood per token and the odds ratio per pair; metrics as the README lists them."""
        import torch
        from torch.nn.functional import logsigmoid

        from truing_orpo.odds import log_odds

        nll = -inputs.chosen.token_logps  # [tokens of the chosen completions]
        if self.nll_on_prompt:
            assert inputs.prompt_token_logps is not None
            nll = torch.cat((nll, -inputs.prompt_token_logps))
        chosen, rejected = inputs.chosen.mean_logps, inputs.rejected.mean_logps  # [P]
        # in float32, certainty would begin at 1e-7
        ratios = log_odds(chosen.double()) - log_odds(rejected.double())
        preference = logsigmoid(ratios).to(chosen.dtype)
        rewards = self.beta * chosen.detach(), self.beta * rejected.detach()
        return LossOutput(
            terms=[Term(nll, per="chosen_token"), Term(-preference, per="pair", weight=self.beta)],
            metrics={
                "rewards/chosen": Term(rewards[0], per="pair"),
                "rewards/rejected": Term(rewards[1], per="pair"),
                "rewards/accuracies": Term((chosen > rejected).to(chosen.dtype), per="pair"),
                "rewards/margins": Term(rewards[0] - rewards[1], per="pair"),
                "logps/chosen": Term(chosen.detach(), per="pair"),
                "logps/rejected": Term(rejected.detach(), per="pair"),
                "nll_loss": Term(nll.detach(), per="chosen_token"),
                "log_odds_chosen": Term(ratios.detach().to(chosen.dtype), per="pair"),
                "log_odds_ratio": Term(preference.detach(), per="pair"),
            },
        )
