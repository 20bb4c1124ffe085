from __future__ import annotations

import json
import subprocess
import sys
from typing import ClassVar

import attrs
import jsonschema
import pytest
from tests.rollouts.fake_openenv import Calculator, FakeServer, Guessing

import truing_openenv
from truing import Rollout
from truing.config import RolloutConfig, dump_config, load_config
from truing.config.schema import json_schema
from truing.errors import TruingError
from truing.registry import Registry
from truing.rollout.opening import open_rollout
from truing.testing import FakeRollout, check_rollout, fake_context
from truing_openenv import OpenEnvRollout

CONFIG = {
    "method": "grpo",
    "model": {"name": "m"},
    "data": {"path": "d.jsonl", "format": "text"},
    "rollout": {"name": "openenv", "url": "http://127.0.0.1:8000", "engine": {"name": "transformers", "max_batch_tokens": 100}},
    "output": {"dir": "o"},
}


@pytest.fixture
def load(tmp_path):
    """Loads CONFIG with other keys of rollout."""

    def load_(**rollout):
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps({**CONFIG, "rollout": {**CONFIG["rollout"], **rollout}}))
        return load_config(path, registry=Registry.load())

    return load_


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["openenv"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "openenv"]
    assert (plugin.problem, plugin.dist, dict(plugin.names)) == (None, "truing-openenv", {"rollout": ("openenv",)})
    assert registry.get("rollout", "openenv") is truing_openenv.OpenEnvRollout
    assert plugin.commands == ("env-check",)


def test_importing_it_imports_neither_torch_nor_a_network_library():
    """So that `truing check` and `truing --help` stay fast; openenv is never imported."""
    heavy = {"torch", "transformers", "websockets", "httpx2", "asyncio", "rich", "openenv"}
    code = f"import sys, truing_openenv; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_engine_is_a_plugin_of_its_own(load):
    rollout = load().rollout
    assert rollout.backend.engine.max_batch_tokens == 100 and rollout.backend.url == "http://127.0.0.1:8000"
    assert load(engine="transformers").rollout.backend.engine.name == "transformers"
    assert load(engine=None, num_generations=3).rollout.num_generations == 3


def test_a_resolved_configuration_gives_it_again(load, tmp_path):
    config = load()
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml", registry=Registry.load()) == config


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (
            {"engine": {"name": "transformers", "foo": 1}},
            "rollout.engine.foo is not a known key; the keys here are max_batch_tokens",
        ),
        ({"engine": {"name": "transformers", "max_batch_tokens": 0}}, "rollout.engine.max_batch_tokens must be > 0, got 0"),
        (
            {"engine": {"name": "transformers", "temperature": 0.5}},
            "rollout.engine.temperature is not a known key; did you mean rollout.temperature?",
        ),
        ({"engine": "transformer"}, "unknown rollout 'transformer'; did you mean 'transformers'?"),
        ({"engine": 3}, "rollout.engine must be a name, or a mapping with name and settings, got 3"),
        (
            {"engine": {"name": "openenv", "url": "http://a"}},
            "engine acts in an environment itself; name a backend that samples, such as transformers or vllm",
        ),
        ({"engin": "transformers"}, "rollout.engin is not a known key; did you mean 'engine'?"),
        ({"max_sessions": 0}, "rollout.max_sessions must be > 0, got 0"),
    ],
)
def test_faults_within_are_named(load, rollout, message):
    with pytest.raises(TruingError) as raised:
        load(**rollout)
    assert message in str(raised.value)


def test_the_schema_of_an_engine_has_no_keys_of_a_rollout():
    """Though the engine may be of any kind, this one included, so that the schema refers to itself."""
    schema = json_schema(Registry.load())
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(CONFIG))
    for wrong in ({"num_generations": 2}, {"max_batch_tokens": 0}, {"name": "openenv"}):
        engine = {**CONFIG["rollout"]["engine"], **wrong}
        assert list(validator.iter_errors({**CONFIG, "rollout": {**CONFIG["rollout"], "engine": engine}})), wrong


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "localhost",
        "",
        "ftp://a",
        "http://",
        "http://a:99999",
        "http://a:b",
        "http://a/?x=1",
        "http://u:p@a",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="is no address of a server"):
        OpenEnvRollout(url=url)


def test_a_url_is_required():
    with pytest.raises(TypeError, match="url"):
        OpenEnvRollout()


def test_the_engine_is_what_is_opened(tmp_path):
    """And transformers, looked up by name, where none is named."""
    context = fake_context(tmp_path)

    @attrs.frozen
    class Engine:
        name = "fake"

        def open(self, context):
            return "live", context

    assert OpenEnvRollout(url="http://127.0.0.1:1", engine=Engine()).open(context) == ("live", context)
    live = OpenEnvRollout(url="http://127.0.0.1:1").open(context)
    assert type(live).__name__ == "LiveTransformers"
    live.close()


@pytest.mark.parametrize("environment", [Guessing, Calculator])
def test_episodes_keep_the_promises_of_a_backend(environment):
    """Of one environment that speaks first, and of one that does not."""

    @attrs.frozen
    class Acting(Rollout):
        url: str
        name: ClassVar[str] = "acting"

        def open(self, context):
            return open_rollout(RolloutConfig(backend=OpenEnvRollout(url=self.url, engine=FakeRollout())), context)

    with FakeServer(environment) as fake:
        check_rollout(Acting(url=fake.url))
        assert fake.counts["reset"] == 4 * (1 + 2 + 3) and not fake.active
