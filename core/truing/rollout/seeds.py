"""Seeds that follow from others."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, what: str, index: int) -> int:
    """Return a seed of 63 bits, a function of another one, of what it is for, and of a number."""
    digest = hashlib.blake2b(f"{seed} {what} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
