from __future__ import annotations

import subprocess
import sys

import truing_chat_template
from truing import Layout
from truing.registry import Registry

NAMES = ("chat_template", "chat_template.argilla", "chat_template.argilla_chat", "chat_template.default")
ALL = {Layout.PAIRED, Layout.SINGLE, Layout.LABELED, Layout.ROLLOUT}


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["chat-template"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "chat-template"]
    assert (plugin.problem, plugin.dist) == (None, "truing-chat-template")
    assert {kind: sorted(names) for kind, names in plugin.names.items()} == {"dataset_strategy": list(NAMES)}


def test_each_name_has_one_class_for_each_of_its_layouts():
    served = {(cls.name, layout) for cls in truing_chat_template.FORMATS for layout in cls.layouts}
    assert sum(len(cls.layouts) for cls in truing_chat_template.FORMATS) == len(served)
    assert {layout for name, layout in served if name == "chat_template"} == ALL
    assert {layout for name, layout in served if name == "chat_template.default"} == ALL
    for name in NAMES[1:3]:
        assert {layout for other, layout in served if other == name} == {Layout.PAIRED, Layout.ROLLOUT}


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_chat_template as p; [cls() for cls in p.FORMATS]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
