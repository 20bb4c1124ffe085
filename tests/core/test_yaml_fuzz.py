"""Any file is loaded or refused with a clear error, and fast; tests/benchmarks/yaml_fuzz.py runs 20,000."""

from __future__ import annotations

from tests.benchmarks.yaml_fuzz import fuzz


def test_generated_files_give_clear_errors_only(tmp_path):
    outcome = fuzz(500, tmp_path)
    assert outcome.refused > 300
    assert outcome.slowest < 1
