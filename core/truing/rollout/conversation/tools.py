"""What a policy may call: functions of the user's, and how its calls are found and answered."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from truing.data.example import Message
from truing.errors import ConfigError, first_line
from truing.functions import find_function, load_function
from truing.suggest import did_you_mean
from truing.threads import Beside, LoopThread

CALLS = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
"""Calls as Hermes and Qwen write them: JSON with `name` and `arguments` between these two."""


@attrs.frozen
class Call:
    """A tool's name and arguments, as the policy wrote them."""

    id: str
    name: str = ""
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    fault: str = ""
    """Why it cannot be read; "" where it can."""


@attrs.frozen(eq=False)
class TurnReader:
    """Reads a turn of the policy: its text, and its calls.

    A tokenizer that knows how its model writes them (`response_template`, in older versions `response_schema`) reads calls, and
    thinking; else they are looked for in the form of CALLS.
    """

    tokenizer: Any
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of what may be called; without any, everything is text."""

    def text(self, ids: Sequence[int]) -> str:
        """Return what a turn says, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def read(self, ids: Sequence[int], prompt_ids: Sequence[int], turn: int) -> tuple[Message, tuple[Call, ...]]:
        """Return a turn as the assistant's message, with those of its calls that can be read as `tool_calls`, and all calls."""
        if not self.tools:
            return {"role": "assistant", "content": self.text(ids)}, ()
        message, written = self._parsed(ids, prompt_ids)
        calls = tuple(_read_call(call, f"{turn:04d}{index:05d}") for index, call in enumerate(written))
        readable = [_as_written(call) for call in calls if not call.fault]
        if not readable:
            return {"role": "assistant", "content": self.text(ids)}, calls
        return {"role": "assistant", **message, "tool_calls": readable}, calls

    def _parsed(self, ids: Sequence[int], prompt_ids: Sequence[int]) -> tuple[dict[str, Any], list[Any]]:
        """Return the message without its calls, and the calls: each a mapping, or what is wrong with it."""
        given: dict[str, Any] = {}
        if getattr(self.tokenizer, "response_template", None):
            given = {"prefix": list(prompt_ids), "tools": list(self.tools)}
        elif not getattr(self.tokenizer, "response_schema", None):
            return self._hermes(ids)
        try:
            message = dict(self.tokenizer.parse_response(list(ids), **given))
        except Exception as error:  # what a policy writes may break any parser
            return {}, [f"the calls cannot be read: {first_line(error)}"]
        calls = message.pop("tool_calls", None) or []
        return {"content": "", **message}, list(calls)

    def _hermes(self, ids: Sequence[int]) -> tuple[dict[str, Any], list[Any]]:
        special = frozenset(self.tokenizer.all_special_ids)
        end = next((index for index in range(len(ids), 0, -1) if ids[index - 1] not in special), 0)
        text = str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=False))
        calls: list[Any] = []

        def take(found: re.Match[str]) -> str:
            """Return what is left of a call in the text: what cannot be read is not written anywhere else."""
            try:
                calls.append(json.loads(found[1]) if found[2] else "a call is not closed: </tool_call> is missing")
            except (ValueError, RecursionError) as error:
                calls.append(f"a call is not JSON: {first_line(error)}")
            return found[0] if _read_call(calls[-1], "").fault else ""

        return {"content": CALLS.sub(take, text).strip()}, calls


def _read_call(written: Any, id_: str) -> Call:
    if isinstance(written, str):
        return Call(id_, fault=written)
    call = written.get("function", written) if isinstance(written, Mapping) else {}
    name = call.get("name") if isinstance(call, Mapping) else None
    arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, Mapping) else None
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return Call(id_, fault='a call is not of the form {"name": "...", "arguments": {...}}')
    return Call(id_, name, arguments)


def _as_written(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}


@attrs.frozen(eq=False)
class Toolbox:
    """The functions that the policy may call, by name, and their schemas."""

    functions: Mapping[str, Callable[..., Any]]
    schemas: tuple[Mapping[str, Any], ...]
    timeout: float
    """Seconds that one call may take."""
    _awaiting: LoopThread = attrs.field(factory=LoopThread, init=False)
    """Where calls of `async def` functions are awaited."""

    def close(self) -> None:
        """End the loop in which calls are awaited."""
        self._awaiting.close()

    async def answer(self, call: Call) -> Message:
        """Return a tool's message: what it gave, or what was wrong, for the policy to read. Raises nothing of the tool's."""
        content = await self._content(call)
        return {"role": "tool", "name": call.name or "unknown", "tool_call_id": call.id, "content": content}

    async def _content(self, call: Call) -> str:
        if call.fault:
            return f"error: {call.fault}"
        function = self.functions.get(call.name)
        if function is None:
            return f"error: there is no tool {call.name!r}{did_you_mean(call.name, self.functions)}"
        try:
            inspect.signature(function).bind(**call.arguments)
        except TypeError as error:
            return f"error: {call.name}: {error}"
        beside = Beside(f"tool-{call.name}", self._awaiting)
        try:
            return _as_text(await beside.call(lambda: function(**call.arguments), self.timeout))
        except Exception as error:  # the policy is told, whatever it is
            return f"error: {first_line(error)}"
        finally:
            beside.close()


def _as_text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)


def tool_name(schema: Mapping[str, Any]) -> str:
    """Return what a tool is called, of its schema."""
    return str(schema.get("function", schema).get("name"))


def open_tools(names: Sequence[str], base_dir: Path, timeout: float) -> Toolbox:
    """Return the functions `file.function` as tools; the policy calls them by the last part of their names.

    Raises ConfigError for one that cannot be found or described, and for two of one name.
    """
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

    functions: dict[str, Callable[..., Any]] = {}
    schemas: list[Mapping[str, Any]] = []
    for dotted in names:
        function = load_function(find_function(dotted, base_dir))
        try:
            schema = get_json_schema(function)
        except (DocstringParsingException, TypeHintParsingException) as error:
            raise ConfigError(
                f"rollout.tools: {dotted} cannot be described to the policy: {first_line(error)}; give every parameter a type, and "
                "the function a docstring that says what it does, with a line `name: what it is` for each parameter under `Args:`"
            ) from error
        if tool_name(schema) in functions:
            raise ConfigError(f"rollout.tools: two functions are called {tool_name(schema)!r}; give {dotted} another name")
        functions[tool_name(schema)] = function
        schemas.append(schema)
    return Toolbox(functions, tuple(schemas), timeout)
