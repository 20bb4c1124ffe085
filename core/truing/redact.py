"""Keeps secrets out of what a run writes and says.

A secret is the value of an environment variable whose name says so (HF_TOKEN, DB_PASSWORD), the user and password of a URL, the
value of a query parameter such as token=, and the value of a key that says so (api_key, password). In free text, values of fewer
than `SHORTEST` characters are left alone: they would be found in ordinary words.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import attrs

HIDDEN = "[secret-left-out]"
"""What stands in the place of a secret."""
SHORTEST = 6
_SHORTEST_LINE = 16
"""Of a value of several lines, such as a private key, each line this long is a secret too."""

_ENVIRONMENT = re.compile(
    r"(token|secret|password|passwd|passphrase|credential|authorization|apikey|sshpass"
    r"|(?<![a-z])(key|auth|pass|pwd|pat|private|bearer|cookie))s?(?![a-z])",
    re.IGNORECASE,
)
_PARAMETER_NAME = re.compile(rf"{_ENVIRONMENT.pattern}|sig(nature)?(?![a-z])|^pw$", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORD = re.compile(r"secrets?|passwords?|passwd|passphrase|credentials?|apikey|authorization|bearer")
_GIVES_ACCESS = re.compile(
    r"access|account|admin|anthropic|api|auth|aws|azure|bearer|client|cloud|comet|deploy|encryption|gcp|github|gitlab|google|hf|hub|"
    r"huggingface|jwt|license|master|mlflow|neptune|oauth|openai|personal|private|refresh|secret|service|session|signing|ssh|"
    r"storage|subscription|wandb"
)
"""What makes a secret of a `token` or `key`, which for a language model are ordinary words."""

# what follows :// (a Path keeps one of the slashes) up to the last @ before the host; a password may hold / ? #, a port may not
_USER_INFO = re.compile(
    r"""(?<=[A-Za-z0-9]{2}):/{1,3}"""
    r"""(?P<info>[^\s/?#'"]{0,500}|[^\s/:?#@'"]{0,500}:(?!\d{1,5}(?:[/?#\s]|$))[^\s@'"]{0,500})@"""
)
_PARAMETER = re.compile(r"""(?<=[?&;#])(?P<name>[\w.-]{1,80})=(?P<value>[^&;#\s'"<>]+)""")
_ASSIGNMENT = re.compile(
    r"""(?<![\w.-])(?P<quote>['"]?)(?P<name>[\w.-]{1,80})(?P=quote)(?P<sign>=|\s{0,3}:\s{0,3})"""
    r"""(?P<value>"[^"\n]*"|'[^'\n]*'|[^\s&;,'")\]}]+)"""
)
_REFERABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)

_remembered: set[str] = set()


def says_secret(key: object) -> bool:
    """Return whether a key of a configuration says that its value is a secret: api_key does, pad_token and prompt_key do not."""
    words = [word.lower() for word in _WORD.findall(str(key))]
    if words in (["token"], ["cookie"], ["pwd"]) or words[-1:] == ["auth"] or any(map(_SECRET_WORD.fullmatch, words)):
        return True
    return words[-1:] in (["token"], ["key"], ["keys"]) and any(map(_GIVES_ACCESS.fullmatch, words[-2:-1]))


def remember(values: Any) -> None:
    """Take the values of keys that say they are secret for secrets from now on, wherever they appear.

    `values` are nested mappings, lists and attrs instances.
    """
    # for as long as the process lives: an error that names one is printed where no configuration is known
    _remembered.update(_long_enough(str(value) for value in _under_secret_keys(values, secret=False)))


def redact(text: str) -> str:
    """Return text without the secrets in it."""
    return _finder().redact(text)


def redacted(value: Any) -> Any:
    """Return nested mappings and lists with every text redacted, keys included, and what stands under a key that says secret."""
    return _finder().redacted(value, secret=False)


def with_references(text: str, *, secret: bool = False) -> str:
    """Return text as a configuration writes it: a literal ${ escaped, and a secret as the ${oc.env:NAME} that gives it again.

    With `secret` all of it is one. A secret that no environment variable holds is left out.
    """
    return _finder().with_references(text, secret=secret)


def _long_enough(values: Iterable[str]) -> Iterator[str]:
    return (value for value in values if len(value) >= SHORTEST)


def _under_secret_keys(value: Any, *, secret: bool) -> Iterator[str | int | float]:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        if secret:
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _under_secret_keys(item, secret=secret)
    else:
        fields = _fields(value)
        for key, item in fields.items():
            yield from _under_secret_keys(item, secret=secret or says_secret(key))


def _fields(value: Any) -> Mapping[Any, Any]:
    if attrs.has(type(value)):
        return attrs.asdict(value, recurse=False)
    return value if isinstance(value, Mapping) else {}


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, and as messages, JSON, URLs and paths write it."""
    secret = secret.strip()
    yield from (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    # the environment may hold bytes that are no UTF-8
    yield from (function(secret, safe, errors="surrogateescape") for function in (quote, quote_plus) for safe in ("", "/"))
    if "/" in secret:
        yield str(Path(secret))
    lines = secret.splitlines()
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= _SHORTEST_LINE)


class _Finder:
    """Finds secrets in text, by an environment and by what was remembered."""

    def __init__(self, environment: Mapping[str, str], remembered: Iterable[str]) -> None:
        self.environment = environment
        self.secret_names = [name for name, value in environment.items() if _is_secret(name, value)]
        secrets = (environment[name] for name in self.secret_names)
        self.known = sorted(
            {form for value in (*secrets, *_passwords(environment.values()), *remembered) for form in _forms(value)}
        )

    def redact(self, text: str) -> str:
        spans = _merged([*self._known_spans(text), *_user_infos(text), *_values(text)])
        return "".join(piece if not secret else HIDDEN for piece, secret in _pieces(text, spans))

    def redacted(self, value: Any, *, secret: bool) -> Any:
        if isinstance(value, Mapping):
            return {
                self.redact(key) if isinstance(key, str) else key: self.redacted(item, secret=secret or says_secret(key))
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.redacted(item, secret=secret) for item in value]
        if isinstance(value, bool) or not isinstance(value, (str, Path, int, float)):
            return value
        if secret:
            return HIDDEN
        return self.redact(str(value)) if isinstance(value, (str, Path)) else value

    def with_references(self, text: str, *, secret: bool) -> str:
        whole = [(0, len(text))] if secret else []
        spans = _merged([*whole, *self._known_spans(text), *self._parts_of_user_infos(text), *_values(text)])
        if spans and self._name_of(text):
            return self._reference(text)
        written = ""
        for piece, is_secret in _pieces(text, spans):
            reference = self._reference(piece) if is_secret else ""
            if reference.startswith("${"):  # a backslash before it would take its meaning
                written += "\\" * (len(written) - len(written.rstrip("\\")))
            written += reference or re.sub(r"(\\*)\$\{", r"\1\1\\${", piece)
        return written

    def _known_spans(self, text: str) -> Iterator[tuple[int, int]]:
        for secret in self.known:
            start = text.find(secret)
            while start >= 0:
                yield start, start + len(secret)
                start = text.find(secret, start + 1)

    def _parts_of_user_infos(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield user and password apart, so that each may be a reference; a user's name beside such a password is none."""
        for start, end in _user_infos(text):
            user, colon, password = text[start:end].partition(":")
            middle = end - len(password)
            if colon and self._name_of(password):
                yield middle, end
                if self._name_of(user):
                    yield start, start + len(user)
            else:
                yield start, end

    def _reference(self, value: str) -> str:
        name = self._name_of(value)
        return f"${{oc.env:{name}}}" if name else HIDDEN

    def _name_of(self, value: str) -> str | None:
        """Return an environment variable that holds just this: one that says secret or, for what is no short word, any."""
        names = [*self.secret_names, *(self.environment if len(value) >= SHORTEST else ())]
        return next((name for name in names if self.environment[name] == value and _REFERABLE.fullmatch(name)), None)


def _finder() -> _Finder:
    return _finder_for(tuple(sorted(os.environ.items())), frozenset(_remembered))


@functools.lru_cache(maxsize=1)
def _finder_for(environment: tuple[tuple[str, str], ...], remembered: frozenset[str]) -> _Finder:
    return _Finder(dict(environment), remembered)


def _is_secret(name: str, value: str) -> bool:
    """Return whether a variable is named as a secret and is no short word and no path, or is a URL with a user or password."""
    says_so = bool(_ENVIRONMENT.search(name)) and not _is_path(value)
    return len(value.strip()) >= SHORTEST and (says_so or any(_user_infos(value)))


def _is_path(value: str) -> bool:
    try:
        return value.startswith("/") and Path(value).exists()
    except OSError:  # longer than a file's name can be
        return False


def _passwords(values: Iterable[str]) -> Iterator[str]:
    """Yield the passwords within URLs, such as that of DATABASE_URL."""
    for value in values:
        for start, end in _user_infos(value):
            yield from _long_enough([value[start:end].rpartition(":")[2]])


def _user_infos(text: str) -> Iterator[tuple[int, int]]:
    return (match.span("info") for match in _USER_INFO.finditer(text) if match["info"])


def _values(text: str) -> Iterator[tuple[int, int]]:
    """Yield the values of query parameters, overrides and entries of printed mappings whose names say secret."""
    for match in _PARAMETER.finditer(text):
        if _PARAMETER_NAME.search(match["name"]):
            yield match.span("value")
    for match in _ASSIGNMENT.finditer(text):
        if (match["sign"] == "=" or match["quote"]) and says_secret(match["name"].rpartition(".")[2]):
            start, end = match.span("value")
            quoted = match["value"][0] in "'\""
            yield start + quoted, end - quoted


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _pieces(text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Yield the text in order, each piece with whether it is secret."""
    at = 0
    for start, end in spans:
        yield text[at:start], False
        yield text[start:end], True
        at = end
    yield text[at:], False
