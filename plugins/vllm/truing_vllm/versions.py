"""Which weights sampled which tokens, as the server says, and only those that a probe showed to be right.

The first process of a run gives servers weights and probes them; what it found out, the others read in the server's label.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from truing import VersionSpan
from truing_vllm.faults import StaleError
from truing_vllm.labels import Label
from truing_vllm.server import Server
from truing_vllm.updates import WholeWeights, label_text
from truing_vllm.wire import Sample

POLL_SECONDS = 0.2
"""Between looks at a server whose weights are being probed."""


async def label_of(server: Server, run: str, *, seconds: float) -> Label:
    """Return what a server calls its weights now. Raises StaleError where they are not of this start of the run."""
    return _noted(server, await label_text(server.connection, seconds=seconds), run)


async def versions_of(
    sample: Sample, update: WholeWeights, before: Label | None, server: Server, *, seconds: float
) -> tuple[VersionSpan, ...]:
    """Return which versions sampled which tokens, when all of them are known to be right.

    Where the server does not say it of each token, all count as of what it had `before` they were sampled. Raises StaleError for
    weights that are not this run's, or were not shown to be right.
    """
    if sample.spans is None:
        assert before is not None
        after = await label_of(server, update.run, seconds=seconds)
        await _require_proven(server, update.run, range(before.attempt, after.attempt + 1), seconds=seconds)
        return (VersionSpan(version=before.version, start=0, end=len(sample.token_ids)),)
    labels = [_noted(server, span.version, update.run) for span in sample.spans]
    await _require_proven(server, update.run, (label.attempt for label in labels), seconds=seconds)
    versions: list[VersionSpan] = []
    for label, span in zip(labels, sample.spans, strict=True):
        start = versions.pop().start if versions and versions[-1].version == label.version else span.start
        versions.append(VersionSpan(version=label.version, start=start, end=span.end))
    return tuple(versions)


def _noted(server: Server, text: str, run: str) -> Label:
    label = Label.read(text, run)
    if label is None:
        raise StaleError(f"{server} has weights {text!r}, which are not this run's")
    if label.proven:
        server.proven.add(label.attempt)
    return label


async def _require_proven(server: Server, run: str, attempts: Iterable[int], *, seconds: float) -> None:
    """Return when all of these tries to give a server weights are known to have succeeded. Raises StaleError where one has not."""
    unknown = set(attempts) - server.proven
    try:
        async with asyncio.timeout(seconds):
            while unknown:
                label = await label_of(server, run, seconds=seconds)
                unknown -= server.proven
                if unknown and unknown != {label.attempt}:
                    raise StaleError(f"{server} sampled from weights that no probe showed to be the policy's")
                if unknown:
                    await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise StaleError(f"{server} sampled from weights that no probe showed to be the policy's within {seconds:.0f} s") from None
