"""Stand-ins for episodes: an engine that says what it is told to, and templates that treat history differently."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import attrs

from truing.config import RolloutConfig
from truing.rollout import Completion, RolloutRequest, Sampling, VersionSpan
from truing.rollout.opening import open_rollout
from truing.testing import fake_context, tiny_tokenizer

TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETS_THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3's: what was thought in earlier turns is left out."""

GUESS = '''
import asyncio, time

OPEN = []

class Guess:
    """The policy guesses a number."""

    def reset(self, seed=None, secret=3):
        self.secret, self.seed = secret, seed
        OPEN.append(self)
        return f"Guess ({seed})."

    def step(self, text):
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number")
        number = int(text)
        if number == self.secret:
            return "right", 1.0, True
        return ("higher" if number < self.secret else "lower"), -0.25, False

    def close(self):
        OPEN.remove(self)

class Few(Guess):
    name, capacity, most = "few", 2, 0

    def step(self, text):
        Few.most = max(Few.most, len(OPEN))
        time.sleep(0.01)
        return super().step(text)

class Awaited(Guess):
    async def step(self, text):
        await asyncio.sleep(0)
        return super().step(text)

class Lingers(Guess):
    async def close(self):
        if len(OPEN) == 1:
            await asyncio.sleep(0.2)
        OPEN.remove(self)

class Slow(Guess):
    def step(self, text):
        if text == "7":
            time.sleep(30)
        return super().step(text)
'''

Say = Callable[[RolloutRequest], str]


class LiveScripted:
    """Writes what `say` makes of a request, one token for each byte and the end token; log-probability -1 each."""

    def __init__(self, tokenizer: Any, say: Say) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.version = 0
        self.calls: list[list[RolloutRequest]] = []
        self.closed = 0

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Answer in reverse order."""
        self.calls.append(list(requests))
        for request in reversed(requests):
            for index in reversed(range(request.n)):
                yield self.complete(request, index)

    def complete(self, request: RolloutRequest, index: int) -> Completion:
        """Return one completion, cut at the limit."""
        said = self.say(attrs.evolve(request, seeds=(request.seeds[index],)))
        ids = [*self.tokenizer.encode(said, add_special_tokens=False), self.tokenizer.eos_token_id]
        limit = request.sampling.max_completion_length
        return Completion(
            request_id=request.id,
            index=index,
            prompt_ids=request.prompt_ids,
            token_ids=tuple(ids[:limit]),
            finish_reason="stop" if len(ids) <= limit else "length",
            versions=(VersionSpan(version=self.version, start=0, end=min(len(ids), limit)),),
            token_logps=(-1.0,) * min(len(ids), limit),
        )

    def update_weights(self, version: int, source: Any) -> None:
        """Note the version."""
        self.version = version

    def close(self) -> None:
        """Count."""
        self.closed += 1


class LiveScriptedServer(LiveScripted):
    """The same as a backend that takes requests while it works on others, each in a thread."""

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        """Complete a request in a thread."""
        self.calls.append([request])
        future: Future[tuple[Completion, ...]] = Future()

        def work() -> None:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(tuple(self.complete(request, index) for index in range(request.n)))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future


@attrs.frozen
class Scripted:
    """The settings that open one of these."""

    say: Say
    server: bool = False
    name: ClassVar[str] = "scripted"

    def open(self, context: Any) -> LiveScripted:
        """Return the live engine."""
        return (LiveScriptedServer if self.server else LiveScripted)(context.tokenizer, self.say)


@attrs.frozen
class ScriptedInEnvironments(Scripted):
    """The same with environments of its own."""

    environments: Any = None

    def open_environments(self, context: Any) -> Any:
        """Return the environments."""
        return self.environments


def opened(folder, say: Say, *, server: bool = False, template: str | None = None, environments: Any = None, **rollout: Any) -> Any:
    """Return live conversations over a scripted engine; `folder` has the files that `rollout` names."""
    tokenizer = tiny_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    context = attrs.evolve(fake_context(folder), tokenizer=tokenizer, config_dir=folder)
    context.models["policy"].config.max_position_embeddings = 2048
    scripted = Scripted(say, server) if environments is None else ScriptedInEnvironments(say, server, environments)
    return open_rollout(RolloutConfig(**{"backend": scripted, **rollout}), context)


def ask(
    live: Any, prompt: Any, *seeds: int, id: str = "r", columns: dict[str, Any] | None = None, length: int = 200
) -> RolloutRequest:
    """Return a request for a prompt, text or messages, as the run's data would give it."""
    tokenizer = live.stage.reader.tokenizer
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_special_tokens=False)
    else:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
    return RolloutRequest(
        id=id,
        prompt=prompt,
        prompt_ids=tuple(ids),
        seeds=seeds or (1,),
        sampling=Sampling(max_completion_length=length),
        columns=columns or {},
    )


def user(content: str) -> dict[str, str]:
    """Return a message of the user's."""
    return {"role": "user", "content": content}


TOKENIZER = tiny_tokenizer()


def up_from(start):
    """Guess `start`, and one more each time that it was told higher."""

    def say(request):
        text = TOKENIZER.decode(list(request.prompt_ids))
        return str(start + len(re.findall("user\nhigher", text)))

    return say


def by_sample(live, *requests):
    found = {(one.request_id, one.index): one for one in live.generate(requests)}
    assert len(found) == sum(request.n for request in requests)
    return found


def module_of(live):
    return vars(sys.modules[live.stage.environments.make.__module__])


def text_of(ids):
    return TOKENIZER.decode(list(ids))
