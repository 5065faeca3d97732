"""Which request headers an endpoint reads, as far as its signature and those of its dependencies say."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from fastapi import params
from fastapi.security.base import SecurityBase
from pydantic import BaseModel

WHO: Final = frozenset({"authorization", "cookie"})
"""Who asks: told apart by ``identity``, and served by nothing stored without it."""


def headers_read(endpoint: Callable[..., Any], *, credentials: bool) -> frozenset[str]:
    """Their names, in lower case.

    Args:
        credentials: whether those that a security dependency reads count, such as an API key's.
    """
    return frozenset(name.lower() for name in walk(endpoint, set(), credentials=credentials)) - WHO


def walk(call: Any, seen: set[int], *, credentials: bool) -> Iterator[str]:
    if id(call) in seen:
        return
    seen.add(id(call))
    if isinstance(call, SecurityBase):
        place = getattr(call.model, "in_", None)
        if credentials and place is not None and place.value == "header":
            yield str(getattr(call.model, "name", ""))
        return
    for parameter in parameters(call):
        kind, marks = parameter.annotation, (parameter.default,)
        if typing.get_origin(kind) is typing.Annotated:
            kind, *more = typing.get_args(kind)
            marks = (*more, *marks)
        for mark in marks:
            if isinstance(mark, params.Header):
                yield from named(mark, parameter.name, kind)
            elif isinstance(mark, params.Depends):
                yield from walk(mark.dependency or kind, seen, credentials=credentials)


def parameters(call: Any) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(call, eval_str=True).parameters.values()
    except NameError:  # a name that only the function around knows: FastAPI cannot read it either
        return inspect.signature(call).parameters.values()
    except ValueError:  # written in C
        return ()


def named(mark: params.Header, name: str, kind: Any) -> Iterator[str]:
    """The header of a parameter, or those of the fields of a model."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        names = [field.alias or name for name, field in kind.model_fields.items()]
    else:
        names = [mark.alias or name]
    for one in names:
        yield one.replace("_", "-") if mark.convert_underscores else one
