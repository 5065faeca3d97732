"""``MODULE:FUNC`` and its arguments, as they are typed on a command line."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec

from cacheaside.cli.options import PREFIX
from cacheaside.default import configure
from cacheaside.errors import ConfigError


def imported(target: str, url: str | None, prefix: str | None) -> Any:
    """What ``module:name`` or ``module:object.method`` names; the current directory comes first.

    ``url`` and ``prefix`` are those of the default cache, unless the module configures another one.
    """
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise ConfigError(
            f"write MODULE:FUNC, such as shop.posts:find or shop.app:posts.find; not {target!r}"
        )
    if url is not None or prefix is not None:
        configure(url, prefix=PREFIX if prefix is None else prefix)
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        there = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # One that is missing inside of the application is a fault of its own, with a traceback of its own.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"there is no module {module!r} on Python's path, with {here} in front") from error
    try:
        return attrgetter(path)(there)
    except AttributeError as error:
        raise ConfigError(f"{target}: {error}") from error


def argument(text: str, annotation: Any = inspect.Parameter.empty) -> Any:
    """What was typed, as the parameter's annotation has it; without one as JSON, or as it stands."""
    if annotation not in (inspect.Parameter.empty, Any):
        for given in (text, from_json(text)):
            try:
                return msgspec.convert(given, annotation, strict=False)
            except (msgspec.ValidationError, TypeError):
                continue
        raise ConfigError(f"{text!r} is no {getattr(annotation, '__name__', annotation)}")
    return from_json(text)


def from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def arguments(fn: Callable[..., Any], texts: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position, and by name where one is written ``name=value``."""
    parameters = parameters_of(fn)
    free = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    by_position: list[Any] = []
    by_name: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name in parameters:
            by_name[name] = argument(value, parameters[name].annotation)
            continue
        here = free[len(by_position)] if len(by_position) < len(free) else rest
        if here is None:
            raise ConfigError(
                f"{text!r} is one argument too many: it takes {', '.join(parameters) or 'none'}"
            )
        by_position.append(argument(text, here.annotation))
    return by_position, by_name


def parameters_of(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters with their annotations resolved, where they can be."""
    parameters = dict(inspect.signature(fn).parameters)
    try:
        hints = typing.get_type_hints(fn)
    except (NameError, TypeError, AttributeError):
        hints = {}
    for name, one in parameters.items():
        known = hints.get(
            name, inspect.Parameter.empty if isinstance(one.annotation, str) else one.annotation
        )
        parameters[name] = one.replace(annotation=known)
    return parameters
