"""The path of a unix socket: whose it is, and what is removed from it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from truing import ConfigError
from truing_vllm.sockets import held_socket


def bound(path: Path) -> socket.socket:
    """A socket at which nobody answers yet."""
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(path))
    return found


def test_a_socket_lies_in_a_folder_of_ones_own(tmp_path):
    with held_socket(tmp_path / "new" / "v.sock"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with (
        pytest.raises(ConfigError, match="others may look into .*open; put the socket into a folder of its own, with mode 0700"),
        held_socket(tmp_path / "open" / "v.sock"),
    ):
        pass


def refused(path: Path, says: str) -> bool:
    with pytest.raises(ConfigError, match=says), held_socket(path):
        pass
    return True


def test_a_socket_is_one_servers(tmp_path):
    """From when it starts, which is minutes before it answers; also where nobody of ours started it."""
    path, taken = tmp_path / "own" / "v.sock", "a server has the socket .*v.sock already; choose another path, or stop that server"
    with held_socket(path):
        listening = bound(path)
        assert refused(path, taken) and path.is_socket()
        listening.listen()
    assert refused(path, taken) and path.is_socket(), "it answers, so that it is not ours"
    listening.close()
    with held_socket(path):
        assert not path.exists()
        bound(path).close()
    assert not path.exists()


def test_what_is_no_socket_is_not_removed(tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "own" / "model").write_text("weights")
    assert refused(tmp_path / "own" / "model", "is there and is no socket; choose another path, or remove it")
    assert (tmp_path / "own" / "model").read_text() == "weights"
    assert refused(tmp_path / "own" / ("v" * 150), "cannot be used: AF_UNIX path too long; choose another path")
