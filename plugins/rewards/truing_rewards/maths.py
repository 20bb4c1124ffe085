"""Reading and comparing mathematics with math-verify, without its reader of plain expressions, which evaluates Python."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # a line for each answer that takes too long

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?%?")


def read_answer(text: str, seconds: int) -> Sequence[Any]:
    """Return the expressions in an answer as a row has it: LaTeX, with or without dollars around it, or a number."""
    return _latex(text, seconds) or _latex(f"${text}$", seconds) or _number(text, seconds)


def read_completion(text: str, seconds: int) -> Sequence[Any]:
    """Return the expressions that a text ends with: of its LaTeX or, where it has none, the last number."""
    return _latex(text, seconds) or _number(text, seconds)


def equal(gold: Sequence[Any], found: Sequence[Any], seconds: int) -> bool:
    """Return whether they are the same; False for what takes longer than that to compare."""
    return bool(found) and bool(verify(list(gold), list(found), timeout_seconds=_limit(seconds)))


def _latex(text: str, seconds: int) -> Sequence[Any]:
    found: Sequence[Any] = parse(text, [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=_limit(seconds))
    return found


def _number(text: str, seconds: int) -> Sequence[Any]:
    numbers = _NUMBER.findall(text)
    return _latex(f"${numbers[-1].rstrip(',').replace('%', chr(92) + '%')}$", seconds) if numbers else []


def _limit(seconds: int) -> int | None:
    """Return the limit for math-verify: it is an alarm, which the main thread alone can have; the call's deadline holds anyway."""
    return seconds if threading.current_thread() is threading.main_thread() else None
