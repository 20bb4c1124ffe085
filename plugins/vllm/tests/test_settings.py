"""What a configuration may say of servers, and what is refused before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from truing import ConfigError
from truing.config import dump_config, load_config
from truing.registry import Registry
from truing_vllm import ServeSettings, VllmRollout
from truing_vllm.address import Address, Entry, written_down
from truing_vllm.opening import find_addresses


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["vllm"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "vllm"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-vllm", {"rollout": ("vllm",)})
    assert registry.get("rollout", "vllm") is VllmRollout and "vllm-serve" in registry.commands()


def test_importing_it_imports_nothing_dear():
    dear = {"torch", "transformers", "httpx2", "vllm"}
    code = f"import sys, truing_vllm, truing_vllm.command; sys.exit(bool({dear} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "given, urls",
    [
        ({}, ()),
        ({"server": "unix:/a/v.sock"}, ("unix:/a/v.sock",)),
        ({"server": ("http://a:1", "http://b:2")}, ("http://a:1", "http://b:2")),
        ({"host": "127.0.0.1"}, ("http://127.0.0.1:8000",)),
        ({"host": "10.0.0.1", "port": 9}, ("http://10.0.0.1:9",)),
        ({"port": 9}, ("http://127.0.0.1:9",)),
    ],
)
def test_servers_may_be_named_in_several_ways(given, urls):
    assert VllmRollout(**given).urls == urls


@pytest.mark.parametrize(
    "given, says",
    [
        ({"mode": "colocate"}, "rollout.mode is colocate, .* not supported: .* Use spawn"),
        ({"server": "http://a:1", "host": "b"}, "rollout.server is 'http://a:1' and rollout.host 'b'; they say the same thing"),
        ({"server": "http://a:1", "mode": "spawn"}, "rollout.mode is spawn, .* and http://a:1 is named too; remove one"),
        ({"host": "a", "mode": "spawn"}, "http://a:8000 is named too; remove one"),
        (
            {"port": 9, "mode": "spawn"},
            r"http://127.0.0.1:9 is named too; remove one \(where its own listens say rollout.serve.host",
        ),
        ({"server": "http://a:1", "port": 9}, "rollout.server is 'http://a:1' and rollout.port 9; they say the same thing"),
        (
            {"token": "a", "serve": ServeSettings(token="b")},
            "rollout.token and rollout.serve.token are not the same, .*; keep rollout",
        ),
    ],
)
def test_what_cannot_be_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        VllmRollout(**given)


@pytest.mark.parametrize(
    "url, says",
    [
        ("127.0.0.1:8000", "the scheme is"),
        ("ftp://a:1", "the scheme is ftp"),
        ("http://a", "the host or the port is missing"),
        ("http://a:99999", "ort"),
        ("http://a:1/v1", "nothing may follow the port"),
        ("http://me:secret@a:1", "a token goes into rollout.token or the environment's TRUING_VLLM_TOKEN"),
        ("unix:v.sock", "its path must begin with /"),
    ],
)
def test_what_is_no_address_is_refused(url, says):
    with pytest.raises(ConfigError, match=f"is no server's address: .*{says}.*write http://host:port or unix:/path"):
        Address(url=url)


def test_servers_that_are_started_ask_for_the_runs_token():
    assert VllmRollout(token="a").served.token == "a"
    assert VllmRollout(token="a", serve=ServeSettings(token="a", port=9)).served == ServeSettings(token="a", port=9)
    assert VllmRollout(serve=ServeSettings(token="b")).served.token == "b"
    assert VllmRollout().served.token is None


@pytest.mark.parametrize("given", [{"token": "a"}, {"serve": ServeSettings(host="0.0.0.0", token="a")}])
def test_servers_that_are_named_are_sent_the_token_that_is_set(tmp_path, given):
    urls = ("http://10.0.0.7:8000", "http://10.0.0.8:8000")
    assert find_addresses(VllmRollout(server=urls, **given), tmp_path) == [Address(url=url, token="a") for url in urls]


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://localhost:8000"])
def test_a_server_that_is_named_is_sent_the_token_that_was_written_down(tmp_path, monkeypatch, url):
    monkeypatch.delenv("TRUING_VLLM_TOKEN", raising=False)
    with written_down(tmp_path, Entry(url="http://127.0.0.1:8000", token="a", pid=os.getpid())):
        assert find_addresses(VllmRollout(server=url), tmp_path) == [Address(url=url, token="a")]


def test_a_token_is_not_shown():
    assert "secret" not in repr(Address(url="http://a:1", token="secret"))


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "gpu7"])
def test_an_address_that_others_reach_needs_a_token_that_somebody_chose(host):
    with pytest.raises(ConfigError, match=f"rollout.serve.host is '{host}', which other machines reach: .* Set rollout.token"):
        ServeSettings(host=host).require_safe(None)
    ServeSettings(host=host).require_safe("chosen")
    ServeSettings().require_safe(None)


@pytest.mark.parametrize(
    "given, url",
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 9}, "http://127.0.0.1:9"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"uds": "/a/v.sock"}, "unix:/a/v.sock"),
    ],
)
def test_where_a_server_is_reached(given, url):
    settings = {key: Path(value) if key == "uds" else value for key, value in given.items()}
    assert ServeSettings(**settings).url == url


def test_settings_may_be_written_down_and_read_again(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "method: grpo\nmodel: {name: m}\ndata: {path: d.jsonl, format: text}\nrewards: [default]\noutput: {dir: o}\n"
        "rollout: {name: vllm, server: [http://a:1, http://b:2], serve: {uds: /a/v.sock, args: [--seed, '3'], max_loras: 2}}\n"
    )
    registry = Registry.load()
    config = load_config(path, registry=registry)
    path.write_text(dump_config(config))
    assert load_config(path, registry=registry) == config
    assert config.rollout.backend.serve == ServeSettings(uds=Path("/a/v.sock"), args=("--seed", "3"), max_loras=2)
