"""What the parser of options lets through and must not be used: null where a value is needed, functions, zero bytes.

The parser calls a function that is named by ``class_path`` with its ``init_args``: ``os.system`` would run a command.
"""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonargparse import Namespace

from medgrpo.types import SettingsError


def check_options(groups: Mapping[str, tuple[Callable, Any]]) -> None:
    """Check groups of options, and the arguments of every class that they name by ``class_path``.

    Args:
        groups: for each name of a group, what is called with its options, and these as parsed.

    Raises:
        SettingsError: the options that must be mended.
    """
    problems = [problem for name, (target, values) in groups.items() for problem in _group(name, target, values)]
    if problems:
        raise SettingsError("\n".join(problems))


def _group(name: str, target: Callable, values: Any) -> Iterator[str]:
    if not isinstance(values, Namespace):
        yield f"{name}: expected options by name, got {'null' if values is None else repr(values)}"
    elif "class_path" in values:
        yield from _part(name, values)
    else:
        yield from _arguments(name, target, vars(values))


def _part(name: str, value: Any) -> Iterator[str]:
    """Problems of a value at any depth."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _part(name, part)
    if isinstance(value, str) and "\0" in value:
        yield f"{name}: expected a text without a zero byte, got {value!r}"
    values = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(values, dict):
        return
    if "class_path" not in values:
        for key, part in values.items():
            yield from _part(f"{name}.{key}", part)
        return
    target = pydoc.locate(str(values["class_path"]))
    if not inspect.isclass(target):
        yield f"{name}: expected the class_path of a class, got {values['class_path']}"
        return
    for key in ("init_args", "dict_kwargs"):
        arguments = values.get(key) or {}
        arguments = vars(arguments) if isinstance(arguments, Namespace) else arguments
        yield from _arguments(name, target, arguments)


def _arguments(name: str, target: Callable, values: Mapping[str, Any]) -> Iterator[str]:
    for parameter in inspect.signature(target).parameters.values():
        if values.get(parameter.name, parameter) is None and not _may_be_none(parameter):
            yield f"{name}.{parameter.name}: expected {inspect.formatannotation(parameter.annotation)}, got null"
    for key, value in values.items():
        yield from _part(f"{name}.{key}", value)


def _may_be_none(parameter: inspect.Parameter) -> bool:
    hint = inspect.formatannotation(parameter.annotation)
    return parameter.default is None or parameter.annotation is parameter.empty or "None" in hint or "Optional" in hint
