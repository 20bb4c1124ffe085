"""What holds for every test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keep what runs leave for later runs out of the user's folder, and out of other tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRUING_CACHE", str(folder))
    return folder
