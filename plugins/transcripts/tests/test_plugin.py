from __future__ import annotations

import subprocess
import sys

import truing_transcripts
from truing import Layout
from truing.registry import Registry

ALL = {Layout.PAIRED, Layout.SINGLE, Layout.LABELED, Layout.ROLLOUT}
LAYOUTS = {"hh_rlhf": {Layout.PAIRED, Layout.ROLLOUT}, "sharegpt": ALL, "swift": ALL}


def test_it_is_found_by_its_entry_point():
    registry = Registry.load(only=["transcripts"])
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name == "transcripts"]
    assert (plugin.problem, plugin.dist) == (None, "truing-transcripts")
    assert {kind: sorted(names) for kind, names in plugin.names.items()} == {"dataset_strategy": sorted(LAYOUTS)}


def test_each_name_has_one_class_for_each_of_its_layouts():
    served = [(cls.name, layout) for cls in truing_transcripts.FORMATS for layout in cls.layouts]
    assert len(served) == len(set(served))
    assert {name: {layout for other, layout in served if other == name} for name in LAYOUTS} == LAYOUTS


def test_importing_it_does_not_import_torch():
    code = "import sys, truing_transcripts as p; [cls() for cls in p.FORMATS]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
