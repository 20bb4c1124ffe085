"""Finds plugins, isolates those that are broken, checks names and suggests."""

from truing.registry.contract import KIND_WORDS, KINDS, Kind
from truing.registry.loading import HOOKS, PluginInfo
from truing.registry.lookup import Registry

__all__ = ["HOOKS", "KINDS", "KIND_WORDS", "Kind", "PluginInfo", "Registry"]
