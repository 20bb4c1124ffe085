"""Where a server is."""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import SplitResult, urlsplit, urlunsplit

import attrs

_SCHEMES = {"http": "ws", "https": "wss"}


@attrs.frozen
class Address:
    """The address of a server, a folder of it included."""

    url: str
    """Its HTTP address, without a slash at the end."""
    session_url: str
    """Where sessions are opened."""
    is_loopback: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """Return the address that a user wrote. Raises ValueError for one that is none."""
        problem = None
        try:
            parts = urlsplit(url.strip())
            host = parts.hostname or ""
            _ = parts.port  # raises for what is no port
        except ValueError as error:
            problem, parts, host = str(error), SplitResult("", "", "", "", ""), ""
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        if problem or scheme not in _SCHEMES or not host or parts.query or parts.fragment or parts.username or parts.password:
            raise ValueError(
                f"url is {url!r}, which is no address of a server{f' ({problem})' if problem else ''}; write one such as "
                "http://127.0.0.1:8000"
            )
        path = parts.path.rstrip("/").removesuffix("/ws")
        return cls(
            urlunsplit((scheme, parts.netloc, path, "", "")),
            urlunsplit((_SCHEMES[scheme], parts.netloc, f"{path}/ws", "", "")),
            _is_loopback(host),
        )

    @property
    def proxy(self) -> Literal[True] | None:
        """What websockets is told of proxies: those of the environment, for an address beyond this machine."""
        return None if self.is_loopback else True

    def __str__(self) -> str:
        return self.url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
