"""Finds and loads the functions that a configuration names as `file.function`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import attrs

from truing.errors import ConfigError
from truing.suggest import did_you_mean


@attrs.frozen
class FunctionSource:
    """Where a named function is: the file, and whether it is beside the configuration or an importable module."""

    name: str
    """As the configuration writes it: module.function."""
    file: Path
    importable: bool

    @property
    def module(self) -> str:
        """The part before the last dot."""
        return self.name.rpartition(".")[0]

    @property
    def function(self) -> str:
        """The part after the last dot."""
        return self.name.rpartition(".")[2]


def find_function(name: str, base_dir: Path) -> FunctionSource:
    """Return where `module.function` is defined: in a file beside the configuration, or in an importable module.

    Reads source and imports nothing. Raises ConfigError where there is no such file or function, where the source does not
    parse, and where two files define it.
    """
    module, _, function = name.rpartition(".")
    if not module or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"{name!r} does not name a function; write file.function, such as rewards.my_function for my_function in rewards.py"
        )
    beside = base_dir.joinpath(*module.split("."))
    files = [file.resolve() for file in (beside.with_suffix(".py"), beside / "__init__.py") if _is_file(file)]
    candidates = [FunctionSource(name, file, importable=False) for file in files]
    origin = _find_origin(module)
    if origin is not None and origin not in files:
        candidates.append(FunctionSource(name, origin, importable=True))
    if not candidates:
        raise ConfigError(
            f"no module for {name!r}: looked for {beside.with_suffix('.py').absolute()} and for an importable module {module!r}"
        )
    defining = [source for source in candidates if function in _names_defined(source.file)]
    if len(defining) > 1:
        both = " and ".join(str(source.file) for source in defining)
        raise ConfigError(f"{name!r} is defined twice: {both}; rename one file, so that it is clear which is meant")
    if not defining:
        defined = sorted({found for source in candidates for found in _names_defined(source.file)})
        hint = did_you_mean(function, defined) or f"; it defines {', '.join(defined) or 'nothing'}"
        raise ConfigError(f"{' and '.join(str(source.file) for source in candidates)} defines no function {function!r}{hint}")
    return defining[0]


def load_function(source: FunctionSource) -> Callable[..., Any]:
    """Import the function's module and return the function.

    A file beside the configuration is run afresh each time, straight from its source, and may import its neighbours. Raises
    ConfigError with file and line where the module fails, and where the name is not callable.
    """
    try:
        module = importlib.import_module(source.module) if source.importable else _run_file(source.file)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{source.name} cannot be loaded: {describe_failure(error, source)}") from error
    function: Callable[..., Any] | None = getattr(module, source.function, None)
    if not callable(function):
        raise ConfigError(f"{source.function!r} in {source.file} is not a function but {type(function).__name__} {function!r:.60}")
    return function


def parameters_of(source: FunctionSource) -> tuple[str, ...]:
    """Return the names of the parameters of a function that its file defines; imports nothing. Empty for what is no `def`."""
    for node in ast.parse(source.file.read_bytes()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == source.function:
            return tuple(one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
    return ()


def describe_failure(error: BaseException, source: FunctionSource) -> str:
    """Return "file:line: Type: message" for an error that came out of a user's code: the innermost line of the user's file."""
    kind = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == source.file]
    return f"{source.file}:{lines[-1]}: {kind}" if lines else f"{source.file}: {kind}"


def _run_file(file: Path) -> types.ModuleType:
    # neither a .pyc, which a rewrite within the same second would leave stale, nor a name that others import
    module = types.ModuleType(f"_truing_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(file.parent))
    try:
        exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
    finally:
        sys.path.remove(str(file.parent))
    return module


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows
        return False


def _find_origin(module: str) -> Path | None:
    """Return the source file of an importable module, without importing its parents as importlib.util.find_spec does."""
    path: Any = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((found for finder in finders if (found := finder.find_spec(name, path)) is not None), None)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and depth < len(parts):
            return None
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    return origin.resolve() if origin is not None and origin.suffix == ".py" else None


def _names_defined(file: Path) -> set[str]:
    try:
        return set(_top_level_names(ast.parse(file.read_bytes(), filename=str(file)).body))
    except (SyntaxError, ValueError) as error:  # which one null bytes are depends on Python's version
        line = getattr(error, "lineno", None)
        raise ConfigError(f"{file}{f':{line}' if line else ''}: not Python source: {error}") from error


def _top_level_names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _top_level_names([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])
            for handler in getattr(node, "handlers", ()):
                yield from _top_level_names(handler.body)
