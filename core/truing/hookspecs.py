"""The hooks: all that core asks of a plugin, and all that a plugin can add.

A plugin is an installed distribution with an entry point in the group `truing` that names a module with `@truing.hookimpl`
functions. The module's imports are cheap (no torch, transformers or vllm); what is dear is imported inside of functions. Every
hook takes nothing and returns a list. A class that a hook returns is a frozen attrs class of settings: `name` is a class
variable, and its fields are its YAML keys, declared with `truing.setting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from truing.data.example import DatasetStrategy
    from truing.dialect import Dialect
    from truing.loss import Loss
    from truing.rewards import OpenedReward, Reward
    from truing.rollout import Rollout

GROUP = "truing"
"""The entry-point group, and the name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def register_loss() -> list[type[Loss]]:
    """Register methods: classes that turn a batch's log-probabilities into the terms of a loss.

    `name` is the method's YAML name (words joined by "-"), `layout` the shape of its samples, `needs` what it reads. A ROLLOUT
    method also has `rollout_needs` and `advantages`, and may have `worth`; one that counts some prompt tokens, `prompt_tokens`.
    See truing.loss for LossInputs, Term and LossOutput.

    Example:

        # truing_hinge/__init__.py, named by the entry point  [project.entry-points.truing]  hinge = "truing_hinge"
        from typing import ClassVar
        import attrs
        from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term, hookimpl, setting

        @attrs.frozen(kw_only=True)
        class Hinge(Loss):
            "SLiC-HF's hinge loss on the log-ratio of chosen and rejected."
            name: ClassVar[str] = "hinge"
            layout: ClassVar[Layout] = Layout.PAIRED
            beta: float = setting(0.1, gt=0, help="Scale of the margin.")

            @property
            def needs(self) -> Needs:
                return Needs.NOTHING

            def __call__(self, inputs: LossInputs) -> LossOutput:
                margins = inputs.chosen.logps - inputs.rejected.logps  # [P]
                return LossOutput(
                    terms=[Term((1 - self.beta * margins).relu(), per="pair")],
                    metrics={"rewards/margins": Term(self.beta * margins, per="pair")},
                )

        @hookimpl
        def register_loss():
            return [Hinge]
    """


@hookspec
def register_dataset_strategy() -> list[type[DatasetStrategy]]:
    """Register formats: classes that read one row of a dataset.

    `name` is the format's YAML name (words joined by "_", families by "."), `layouts` the layouts that it can serve; `parse`
    returns an Example, or a list of them, or raises RowError. The same name may be registered once more by another class for other
    layouts.

    Example:

        from typing import ClassVar
        import attrs
        from truing import Example, Layout, RowError, hookimpl, setting

        @attrs.frozen(kw_only=True)
        class Votes:
            "Two answers and the number of people who preferred the first."
            name: ClassVar[str] = "votes"
            layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.PAIRED})
            field_votes: str = setting("votes", help="Column with the votes for the first answer, 0 to 1.")

            def parse(self, row):
                if row["first"] == row["second"]:
                    raise RowError("columns 'first' and 'second' are the same text; a pair needs two answers")
                answers = (row["first"], row["second"])
                best_first = answers if row[self.field_votes] >= 0.5 else answers[::-1]
                return Example(prompt=row["question"], responses=best_first)

        @hookimpl
        def register_dataset_strategy():
            return [Votes]
    """


@hookspec
def register_reward() -> list[type[Reward] | type[OpenedReward]]:
    """Register rewards: classes that score completions.

    Called with a sequence of Completions, a reward returns as many numbers, or None where it does not apply; `__call__` may be
    `async def`. Its weight belongs to the YAML entry, not to the class. One that keeps something alive (a model, a connection)
    has `open(context)`, which returns a context manager that yields what is called instead.

    Example:

        from typing import ClassVar
        import attrs
        from truing import hookimpl, setting

        @attrs.frozen(kw_only=True)
        class Brevity:
            "1 for an empty answer, 0 at `limit` characters and beyond."
            name: ClassVar[str] = "brevity"
            limit: int = setting(200, gt=0, help="Characters at which the reward is 0.")

            def __call__(self, completions):
                return [max(0.0, 1 - len(completion.text) / self.limit) for completion in completions]

        @hookimpl
        def register_reward():
            return [Brevity]
    """


@hookspec
def register_rollout() -> list[type[Rollout]]:
    """Register rollout backends: classes whose `open(context)` makes a live sampler.

    The live object has `generate(requests)`, which yields Completions as they finish, `update_weights(version, source)` and
    `close()`. See truing.rollout for what a request asks and a Completion carries. Say in `versions` which weights wrote which
    tokens: episodes, and runs with max_staleness, need it.

    Example:

        from typing import ClassVar
        import attrs
        from truing import Completion, VersionSpan, hookimpl

        class LiveEcho:
            version = 0
            def generate(self, requests):
                for request in requests:
                    for index in range(request.n):
                        ids = request.prompt_ids[: request.sampling.max_completion_length]
                        yield Completion(request_id=request.id, index=index, prompt_ids=request.prompt_ids,
                                         token_ids=ids, finish_reason="stop",
                                         versions=(VersionSpan(version=self.version, start=0, end=len(ids)),))
            def update_weights(self, version, source):
                self.version = version
            def close(self):
                pass

        @attrs.frozen(kw_only=True)
        class Echo:
            "Repeats the prompt; for trying rewards without a model."
            name: ClassVar[str] = "echo"

            def open(self, context):
                return LiveEcho()

        @hookimpl
        def register_rollout():
            return [Echo]
    """


@hookspec
def register_command() -> list[click.Command]:
    """Register commands of the `truing` program that belong to a plugin.

    Example:

        import click
        from truing import hookimpl

        @click.command("serve-echo")
        def serve_echo():
            "Serve the echo backend."

        @hookimpl
        def register_command():
            return [serve_echo]
    """


@hookspec
def register_dialect() -> list[type[Dialect]]:
    """Register dialects: classes that read another tool's configuration, for `truing convert`.

    `name` is what `truing convert NAME FILE` calls the tool (words joined by "-"); every setting has a default. `translate` gets
    the values of the tool's file, read by Truing's rules (`no` is text, 1e-3 a number), and returns the values of a Truing
    configuration, which core checks. It raises ConfigError that names every key that it cannot translate, nested ones too: nothing
    is dropped silently.

    Example:

        from typing import ClassVar
        import attrs
        from truing import ConfigError, hookimpl, setting

        KEYS = {
            "algorithm": ("method", "name"),
            "kl": ("method", "beta"),
            "checkpoint": ("model", "name"),
            "pairs": ("data", "path"),
            "lr": ("trainer", "learning_rate"),
            "save_to": ("output", "dir"),
        }

        @attrs.frozen(kw_only=True)
        class Tuner:
            "The flat files of tuner, which trains on pairs."
            name: ClassVar[str] = "tuner"
            format: str = setting("preference", help="How a row is read.")

            def translate(self, values):
                unknown = [key for key in values if key not in KEYS]
                if unknown:
                    raise ConfigError(f"cannot translate {', '.join(unknown)}; the keys that can be are {', '.join(KEYS)}")
                ours = {"data": {"format": self.format}}
                for key, value in values.items():
                    section, name = KEYS[key]
                    ours.setdefault(section, {})[name] = value
                return ours

        @hookimpl
        def register_dialect():
            return [Tuner]
    """
