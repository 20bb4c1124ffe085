"""What a server says of its environment: the schemas of actions and observations, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import attrs
import httpx2

from truing.errors import RolloutError
from truing_openenv.address import Address
from truing_openenv.protocol import BASE_FIELDS

MOST_BYTES = 4 * 2**20
"""The longest description that is read."""


@attrs.frozen
class Schema:
    """A JSON schema of an object, whose references are found in itself."""

    root: Mapping[str, Any]
    base: frozenset[str] = frozenset({"metadata"})
    """Fields that every such object has."""

    @cached_property
    def fields(self) -> dict[str, Mapping[str, Any]]:
        """The schema of every field by name, without those of `base` and those that can have one value only."""
        named = self.root.get("properties")
        found = named.items() if isinstance(named, Mapping) else ()
        resolved = {name: self.resolved(field) for name, field in found if name not in self.base}
        return {name: field for name, field in resolved.items() if "const" not in field}

    @property
    def required(self) -> tuple[str, ...]:
        """The fields without a default, in the order of `fields`."""
        named = self.root.get("required")
        return tuple(name for name in self.fields if isinstance(named, list) and name in named)

    def resolved(self, schema: Any) -> Mapping[str, Any]:
        """Return a schema within this one, or what it refers to; of alternatives the first that is not null."""
        for _ in range(16):  # references that lead to each other
            if not isinstance(schema, Mapping):
                break
            reference, choices = schema.get("$ref"), schema.get("anyOf") or schema.get("oneOf")
            if isinstance(reference, str):
                target: Any = self.root
                for part in reference.removeprefix("#/").split("/"):
                    target = target.get(part) if isinstance(target, Mapping) else None
                schema = target
            elif isinstance(choices, list):
                schema = next((one for one in choices if not (isinstance(one, Mapping) and one.get("type") == "null")), None)
            else:
                return schema
        return {}


@attrs.frozen
class Description:
    """What an environment is."""

    name: str
    about: str
    action: Schema
    observations: tuple[Schema, ...]
    """Of a step's, and of a reset's where it is another one."""


async def describe(address: Address, timeout: float) -> Description:
    """Ask a server what its environment is. Raises RolloutError where it does not say."""
    try:
        async with (
            asyncio.timeout(timeout),
            httpx2.AsyncClient(trust_env=not address.is_loopback, timeout=None) as client,
        ):
            schema = await _get(client, f"{address}/schema")
            metadata = await _get(client, f"{address}/metadata", optional=True)
    except TimeoutError:
        raise RolloutError(f"{address} did not say its schema within {timeout:g} s; is it an OpenEnv server?") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise RolloutError(
            f"cannot reach the OpenEnv server {address}: {str(error) or type(error).__name__}; start it, or correct rollout.url"
        ) from error
    action, observation = (schema.get(key) for key in ("action", "observation"))
    if not isinstance(action, Mapping) or not isinstance(observation, Mapping):
        raise RolloutError(f"{address}/schema has no schemas `action` and `observation`; it is no OpenEnv server's")
    about, name = (str(metadata.get(key) or "") for key in ("description", "name"))
    kinds = [observation, *([reset] if isinstance(reset := schema.get("reset_observation"), Mapping) else [])]
    return Description(name or str(address), about, Schema(action), tuple(Schema(kind, BASE_FIELDS) for kind in kinds))


async def _get(client: httpx2.AsyncClient, url: str, *, optional: bool = False) -> Mapping[str, Any]:
    """Return the JSON object at an address; an empty one where it is optional and not there."""
    async with client.stream("GET", url) as response:
        if response.status_code != httpx2.codes.OK:
            if optional:
                return {}
            raise RolloutError(f"{url} answers {response.status_code}; it must be an OpenEnv server's, which has its schema there")
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise RolloutError(f"{url} is longer than {MOST_BYTES:,} bytes, which no schema is")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RolloutError(f"{url} is no JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise RolloutError(f"{url} is {str(found)[:60]!r}, and must be a JSON object")
    return found
