"""Templates over the parameters of a function: parsed, checked, and turned to Python source.

A template such as ``feed:{user_id}:page:{page}`` becomes one f-string over the parameters of its function, so
that a call costs no parsing and no ``inspect.bind``.
"""

from __future__ import annotations

import difflib
import inspect
import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from string import Formatter
from typing import Any, Final, Generic, NoReturn, TypeVar, cast

from .canonical import type_name
from .errors import ConfigError, KeyTemplateError

__all__ = [
    "AnyFunction",
    "KeyCode",
    "Kind",
    "Signature",
    "Template",
    "compile_function",
    "name_of",
    "parameters_of",
]

T = TypeVar("T")
AnyFunction = Callable[..., Any]


class Kind(Enum):
    """How a function is bound, which says whether its first parameter is a receiver (``self``, ``cls``)."""

    FUNCTION = "function"
    METHOD = "method"
    CLASSMETHOD = "classmethod"
    STATICMETHOD = "staticmethod"


class Signature:
    """The parameters of *fn* as source, for generating functions that are called as *fn* is.

    Raises ConfigError if *fn* has no signature, or is a METHOD or CLASSMETHOD without a named receiver.
    """

    parameters: str
    """What goes into ``def f(...):``, as in ``self, user_id, page=_d0, *, draft=_d1``."""
    forward: str
    """What passes the same values on, as in ``self, user_id, page, draft=draft``."""
    names: tuple[str, ...]
    """The names of all parameters, the receiver included."""
    namespace: dict[str, object]
    """The default values that *parameters* refers to."""
    annotations: dict[str, object]
    """What the parameters are declared to be, as it is written."""
    private: str
    """Underscores that no parameter begins with: what generated code adds to a function is called so."""
    kind: Kind
    """How the function is bound."""
    receiver: str | None
    """The name of ``self`` or ``cls``; None where there is none."""
    var_positional: str | None
    """The name of ``*args``, if any."""
    var_keyword: str | None
    """The name of ``**kwargs``, if any."""

    def __init__(self, fn: AnyFunction, kind: Kind) -> None:
        parameters = parameters_of(fn)
        self.names = tuple(parameter.name for parameter in parameters)
        self.annotations = {parameter.name: parameter.annotation for parameter in parameters}
        self.private = "_"
        while any(name.startswith(self.private) for name in self.names):
            self.private += "_"
        self.namespace = {}
        self.kind = kind
        self.receiver = self.var_positional = self.var_keyword = None
        declared: list[str] = []
        forward: list[str] = []
        previous: inspect.Parameter | None = None
        for parameter in parameters:
            name, slot = parameter.name, parameter.kind
            if _closes_positional_only(previous, parameter):
                declared.append("/")
            if slot is parameter.VAR_POSITIONAL:
                self.var_positional = name
                declared.append(f"*{name}")
                forward.append(f"*{name}")
            elif slot is parameter.VAR_KEYWORD:
                self.var_keyword = name
                declared.append(f"**{name}")
                forward.append(f"**{name}")
            else:
                if slot is parameter.KEYWORD_ONLY and not (self.var_positional or "*" in declared):
                    declared.append("*")
                declared.append(name + self._default(parameter))
                forward.append(f"{name}={name}" if slot is parameter.KEYWORD_ONLY else name)
            previous = parameter
        if _closes_positional_only(previous, None):
            declared.append("/")
        self.parameters = ", ".join(declared)
        self.forward = ", ".join(forward)
        if kind in (Kind.METHOD, Kind.CLASSMETHOD):
            first = parameters[0] if parameters else None
            if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
                raise ConfigError(f"{name_of(fn)} is a {kind.value}: its first parameter must be self or cls")
            self.receiver = first.name

    def _default(self, parameter: inspect.Parameter) -> str:
        if parameter.default is parameter.empty:
            return ""
        name = f"{self.private}d{len(self.namespace)}"
        self.namespace[name] = parameter.default
        return f"={name}"


def parameters_of(fn: AnyFunction) -> list[inspect.Parameter]:
    """Return the parameters of *fn*; raise ConfigError if they cannot be found out."""
    try:
        return list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        raise ConfigError(
            f"{fn!r} has no signature that can be read: wrap it in a function that has"
        ) from None


def _closes_positional_only(previous: inspect.Parameter | None, current: inspect.Parameter | None) -> bool:
    if previous is None or previous.kind is not previous.POSITIONAL_ONLY:
        return False
    return current is None or current.kind is not current.POSITIONAL_ONLY


def name_of(fn: AnyFunction) -> str:
    """Return what messages call *fn*."""
    return str(getattr(fn, "__qualname__", None) or repr(fn))


@dataclass(frozen=True, slots=True)
class KeyCode(Generic[T]):
    """A Python expression over the parameters of a function, and the globals that it needs.

    It may assign locals, and all its names begin with the signature's ``private``, which parameters do not.
    """

    expression: str
    namespace: dict[str, object] = field(default_factory=dict[str, object])

    def function(self, signature: Signature) -> Callable[..., T]:
        """Return a function with the parameters of *signature* that evaluates the expression."""
        namespace = signature.namespace | self.namespace
        return compile_function(signature.parameters, [f"return {self.expression}"], namespace)


def compile_function(
    parameters: str, body: list[str], namespace: dict[str, object], *, is_async: bool = False
) -> Callable[..., Any]:
    """Return ``def f(<parameters>)`` with the lines of *body*, its globals a copy of *namespace*."""
    scope = dict(namespace)
    # The source is made of identifiers, escaped literals and names of this module.
    define = "async def" if is_async else "def"
    exec("\n ".join([f"{define} _compiled({parameters}):", *body]), scope)  # noqa: S102
    return cast("Callable[..., Any]", scope["_compiled"])


@dataclass(frozen=True, slots=True)
class Field:
    """A replacement field: its text, the parameter that it starts from, the Python for it, and its kind."""

    text: str
    root: str
    source: str
    kind: str = ""


_FIELD: Final = re.compile(r"([^.\[\]]*)((?:\.[^.\[\]]+|\[[^\[\]]+\])*)")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")
_INDEX: Final = re.compile(r"[\w .-]+")
_UNSAFE_IN_LABEL: Final = re.compile(r"[^\w .<>()\[\]-]")
KINDS: Final = ("id", "int", "str", "text", "hash")
"""What a field of a key may be held to, as in ``{user_id:int}``; see ``canonical.typed_part``."""
_PARTING: Final = re.compile(r"[:\s]")
_PUNCTUATION: Final = re.compile(r"[!-/;-@\[-`|]")


class Template:
    """A parsed template, checked against the signature: its *texts* surround its *fields*."""

    def __init__(self, text: str, signature: Signature, fn: AnyFunction, role: str) -> None:
        self.text = text
        self.signature = signature
        self.name = name_of(fn)
        self.role = role
        if not isinstance(cast(object, text), str):
            raise KeyTemplateError(f"{role} of {self.name} must be a str, not {type_name(text)}: {text!r}")
        if not text:
            raise KeyTemplateError(
                f"{role} of {self.name} is empty: write a template, such as 'feed:{{user_id}}'"
            )
        self.texts = [""]
        self.fields: list[Field] = []
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            self.fail(f"{error}: braces must be balanced, with the name of a parameter between them")
        for literal, name, spec, conversion in parsed:
            self.texts[-1] += literal
            if name is None:
                continue
            self.fields.append(self._field(name, self._kind(name, spec or "", conversion)))
            self.texts.append("")

    @property
    def uses_result(self) -> bool:
        """Whether a field starts from ``result``."""
        return any(part.root == "result" for part in self.fields)

    def fail(self, problem: str) -> NoReturn:
        """Raise KeyTemplateError: the template, its function and *problem*."""
        raise KeyTemplateError(f"{self.role} {self.text!r} of {self.name}: {problem}")

    def refuse_text(self, unsafe: re.Pattern[str], reason: str) -> None:
        """Fail if the literal text matches *unsafe*."""
        for text in self.texts:
            if found := unsafe.search(text):
                self.fail(f"{found[0]!r} cannot stand in its text: {reason}")

    def separators(self) -> list[int]:
        """Return the characters that must be marked in values, or two calls could give the same key.

        Values hold no colon and no whitespace. Fields that are parted by something else need one of its
        characters to be absent from values too.
        """
        marked: list[int] = []
        for left, gap, right in zip(self.fields[:-1], self.texts[1:-1], self.fields[1:], strict=True):
            if _PARTING.search(gap):
                continue
            mark = _PUNCTUATION.search(gap)
            if mark is None:
                self.fail(
                    f"put ':' between {{{left.text}}} and {{{right.text}}}, or two calls could share a key"
                )
            marked.append(ord(mark[0]))
        return marked

    def source(self, render: Callable[[str, str, str], str], head: str = "") -> str:
        """Return *head* and the template as an f-string; *render* takes a field's Python, label and kind."""
        source = _quote(head + self.texts[0])
        for part, text in zip(self.fields, self.texts[1:], strict=True):
            label = _UNSAFE_IN_LABEL.sub("?", f"{self.name}({part.text})")
            source += f"{{{render(part.source, repr(label), part.kind)}}}{_quote(text)}"
        return f'f"{source}"'

    def _kind(self, name: str, spec: str, conversion: str | None) -> str:
        """What stands after the colon of a field of a key; nothing may in a tag."""
        if conversion or (spec and (self.role != "key" or spec not in KINDS)):
            kinds = f"; the kind of a field of a key may be {', '.join(KINDS)}" if self.role == "key" else ""
            self.fail(
                f"{{{name}}} has a conversion or format spec: leave it out, values are escaped for you{kinds}"
            )
        return spec

    def _field(self, text: str, kind: str) -> Field:
        match = _FIELD.fullmatch(text)
        if match is None:
            self.fail(f"{{{text}}} is not a parameter with attributes (.id) and indexes ([0])")
        root, path = match[1], match[2]
        if not root or root.isdigit():
            self.fail(f"fields are not numbered: write the parameter's name, one of {self._known()}")
        if root not in self.signature.names and not (root == "result" and self.role != "key"):
            self._fail_unknown(root)
        if root == self.signature.receiver and not path:
            self.fail(f"{root} has no identity: name an attribute, {{{root}.tenant}}")
        if root == self.signature.var_keyword and not path:
            return Field(text, root, f"{self.signature.private}sorted({root}.items())", kind)
        if not path:
            self._check_kind(root, kind)
        source = root + "".join(self._step(text, step) for step in _STEP.finditer(path))
        return Field(text, root, source, kind)

    def _check_kind(self, root: str, kind: str) -> None:
        """Fail where no argument could be of this kind, for the parameter is declared as something else."""
        wanted = {"int": "int", "str": "str", "text": "str"}.get(kind)
        declared = self.signature.annotations.get(root)
        name = getattr(declared, "__name__", declared)
        if wanted and name != wanted and name in ("bool", "bytes", "float", "int", "str", "UUID"):
            self.fail(f"{{{root}:{kind}}} is for an argument of type {wanted}, not {name}")

    def _step(self, text: str, step: re.Match[str]) -> str:
        attribute, index = step[1], step[2]
        if attribute is not None:
            if not attribute.isidentifier() or keyword.iskeyword(attribute):
                self.fail(f"{{{text}}}: {attribute!r} is not the name of an attribute")
            return f".{attribute}"
        if index.isdecimal() and index.isascii():
            return f"[{int(index)}]"
        if not _INDEX.fullmatch(index) or index.startswith("-"):
            self.fail(f"{{{text}}}: an index is a number from 0 or a plain word, not {index!r}")
        return f"['{index}']"

    def _fail_unknown(self, root: str) -> NoReturn:
        if root == "result":
            self.fail(
                "a key is needed before there is a result: name parameters, or use {result} in tags only"
            )
        close = difflib.get_close_matches(root, self.signature.names, 1)
        hint = f": did you mean {{{close[0]}}}?" if close else "."
        self.fail(f"there is no parameter {root!r}{hint} The parameters are {self._known()}")

    def _known(self) -> str:
        return ", ".join(self.signature.names) or "none"


def _quote(literal: str) -> str:
    """Return *literal* as it stands inside f"...": only plain characters are left unescaped."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in " :-_./,") else f"\\U{ord(c):08x}" for c in literal
    )
