"""Sphinx's settings: MyST pages, the reference generated from the code. `make docs` builds it and takes warnings for errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import truing

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Truing"
author = "the Truing authors"
project_copyright = "the Truing authors, Apache-2.0"
release = version = truing.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "truing_settings"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Truing {version}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]  # one name in two public places


def show_examples_as_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring's "Example:" into a heading and its indented text into a block of code."""
    if "Example:" in lines:
        at = lines.index("Example:")
        lines[at : at + 1] = [".. rubric:: Example", "", ".. code-block:: python"]


def setup(app: Any) -> None:
    """Connect what changes docstrings."""
    app.connect("autodoc-process-docstring", show_examples_as_code)
