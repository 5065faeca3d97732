"""The keys and tags of calls, compiled once to Python code.

How a template becomes code is in ``templates.py``, how values are written in ``canonical.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, cast

from .canonical import (
    CONTROL,
    LONGEST,
    base64_texts,
    encode,
    escape,
    escaped_texts,
    key_part,
    key_part_without,
    key_texts,
    qualified_name,
    shorten,
    tag_name,
    tag_names,
    tag_part,
    type_name,
    typed_part,
)
from .errors import ConfigError, KeyTemplateError
from .templates import (
    AnyFunction,
    KeyCode,
    Kind,
    Signature,
    Template,
    compile_function,
    name_of,
    parameters_of,
)

__all__ = [
    "KeyCode",
    "Kind",
    "Signature",
    "Tags",
    "check_namespace",
    "compile_key",
    "compile_tags",
    "escape",
    "tag_name",
]

_UNSAFE_IN_NAMESPACE: Final = re.compile(rf"[\s:{{}}%*?\[\]\\{CONTROL}]")  # braces hash, the rest match
_UNSAFE_IN_KEY: Final = re.compile(rf"[{{}}%~{CONTROL}]")
_UNSAFE_IN_TAG: Final = re.compile(rf"[\s{{}}{CONTROL}]")


def check_namespace(ns: str) -> str:
    """Return *ns*; raise ConfigError unless it can be the first segment of a key."""
    if not isinstance(cast(object, ns), str) or not ns or _UNSAFE_IN_NAMESPACE.search(ns):
        raise ConfigError(
            f"ns must be a str that is not empty and has no ':', braces, brackets, '%', '*', '?', backslash, "
            f'whitespace or control characters, such as ns="posts"; not {ns!r}'
        )
    return ns


_HELPERS: Final[dict[str, object]] = {
    "int": int,
    "key_part": key_part,
    "key_part_without": key_part_without,
    "key_text": key_texts,
    "len": len,
    "map": map,
    "shorten": shorten,
    "sorted": sorted,
    "str": str,
    "str_text": escaped_texts,
    "tag": tag_names,
    "tag_part": tag_part,
    "tag_text": escaped_texts,
    "text_text": base64_texts,
    "type": type,
    "typed_part": typed_part,
}


def _helpers(signature: Signature) -> dict[str, object]:
    return {signature.private + name: helper for name, helper in _HELPERS.items()}


def compile_key(fn: AnyFunction, kind: Kind, ns: str, template: str | None) -> KeyCode[str]:
    """Return code for the key ``ns:rest`` of a call of *fn*, without the prefix.

    *template* is literal text with ``str.format`` fields over the parameters of *fn* (``feed:{user_id}``,
    ``post:{post.id}``, ``{self.tenant}:{ids[0]}``). None stands for the qualified name of *fn* and a hash of
    all arguments but the receiver, whose class is part of the hash.

    Raises ConfigError for a namespace and KeyTemplateError for a template that cannot work. The code raises
    KeyTemplateError for an argument that cannot be part of a key, and what attributes and indexes raise.
    """
    head = f"{check_namespace(ns)}:"
    signature = Signature(fn, kind)
    if template is None:
        return _default_key(fn, signature, head)
    parsed = Template(template, signature, fn, "key")
    parsed.refuse_text(_UNSAFE_IN_KEY, "braces, '%', '~' and control characters have a meaning in keys")
    if not parsed.fields:
        return KeyCode(repr(shorten(head + template, len(head))))
    private = signature.private
    source = parsed.source(_key_renderer(private, parsed.separators()), head)
    # A character has at most four bytes, so a short key needs no measuring.
    is_short = f"{private}len({private}k := {source}) <= {len(head) + LONGEST // 4}"
    return KeyCode(
        f"({private}k if {is_short} else {private}shorten({private}k, {len(head)}))", _helpers(signature)
    )


def _key_renderer(private: str, separators: list[int]) -> Callable[[str, str, str], str]:
    if not separators:
        return _fast_renderer(private, "key")
    marks = ", ".join(map(str, separators))

    def render(source: str, label: str, kind: str) -> str:
        return f"{private}key_part_without({source}, {label}, {kind!r}, {marks})"

    return render


def _fast_renderer(private: str, role: str) -> Callable[[str, str, str], str]:
    """Render exact ints and strs without a call; an f-string formats an int faster than str() does."""
    p = private

    def render(source: str, label: str, kind: str) -> str:
        value, first = (source, source) if source.isidentifier() else (f"{p}v", f"{p}v := {source}")
        if kind:
            if kind == "hash":
                return f"{p}typed_part({source}, {label}, {kind!r})"
            slow = f"{p}typed_part({value}, {label}, {kind!r})"
            if kind == "int":
                return f"{value} if {p}type({first}) is {p}int else {slow}"
            if kind == "id":
                slow = f"{value} if {p}type({value}) is {p}int else {slow}"
            text = "text" if kind == "text" else "str"
            return f"{p}{text}_text[{value}] if {p}type({first}) is {p}str else {slow}"
        return (
            f"{value} if {p}type({first}) is {p}int "
            f"else {p}{role}_text[{value}] if {p}type({value}) is {p}str "
            f"else {p}{role}_part({value}, {label})"
        )

    return render


def _default_key(fn: AnyFunction, signature: Signature, head: str) -> KeyCode[str]:
    name = getattr(fn, "__qualname__", "<lambda>")
    if "<lambda>" in name:
        raise KeyTemplateError(
            f'{fn!r} has no name to make a key of: give a key template, such as key="{{id}}"'
        )
    place = escape(f"{fn.__module__}.{name}").replace("<", "%3C").replace(">", "%3E")
    names = tuple(name for name in signature.names if name != signature.receiver)
    default = _DefaultKey(f"{head}{place}:", len(head), names, signature)
    p = signature.private
    kinds: list[str] = []
    values: list[str] = []
    for name in names:
        if name == signature.var_positional:
            kinds.append(f"(*{p}map({p}type, {name}),)")
            values.append(name)
        elif name == signature.var_keyword:
            kinds.append(f"(*{p}map({p}type, {name}.values()),)")
            values.append(f"(*{name}.items(),)")
        else:
            kinds.append(f"{p}type({name})")
            values.append(name)
    # Types come first, so that equal values of two types (1, True, 1.0) are never compared.
    probe = "".join(f"{part}, " for part in (f"{p}owner", *kinds, *values))
    body = [
        "try:",
        f"    {p}key = {p}memo.get({p}probe := ({probe}))",
        f"except {p}TypeError:",
        # An unhashable argument.
        f"    {p}key = {p}probe = None",
        f"return {p}compute({p}probe, {p}owner, ({''.join(f'{name}, ' for name in names)})) "
        f"if {p}key is None else {p}key",
    ]
    namespace = _helpers(signature) | {
        f"{p}memo": default.memo,
        f"{p}compute": default.compute,
        f"{p}TypeError": TypeError,
    }
    function = compile_function(", ".join((f"{p}owner", *names)), body, namespace)
    owner = "None"
    if signature.receiver is not None:
        owner = signature.receiver if signature.kind is Kind.CLASSMETHOD else f"{p}type({signature.receiver})"
    needed: dict[str, object] = {f"{p}type": type, f"{p}default_key": function}
    return KeyCode(f"{p}default_key({', '.join((owner, *names))})", needed)


class _DefaultKey:
    """Makes default keys, and remembers those of plain scalars, which are cheap to compare and to keep."""

    def __init__(self, head: str, start: int, names: tuple[str, ...], signature: Signature) -> None:
        self.memo: dict[object, str] = {}
        self._head = head
        self._start = start
        self._names = names
        self._signature = signature

    def compute(self, probe: object, owner: type | None, values: tuple[object, ...]) -> str:
        arguments = dict(zip(self._names, values, strict=True))
        data = encode(arguments, owner="" if owner is None else qualified_name(owner))
        key = shorten(self._head + blake2b(data, digest_size=16).hexdigest(), self._start)
        if probe is not None and all(map(_is_plain, self._flat(arguments))):
            if len(self.memo) >= _MEMO_LIMIT:
                self.memo.clear()
            self.memo[probe] = key
        return key

    def _flat(self, arguments: dict[str, object]) -> Iterator[object]:
        for name, value in arguments.items():
            if name == self._signature.var_positional:
                yield from cast("tuple[object, ...]", value)
            elif name == self._signature.var_keyword:
                yield from cast("dict[str, object]", value).values()
            else:
                yield value


_MEMO_LIMIT: Final = 1024
_PLAIN: Final[frozenset[type]] = frozenset({int, str, bool, type(None), bytes})


def _is_plain(value: object) -> bool:
    if isinstance(value, (str, bytes)) and len(value) > LONGEST:
        return False
    return type(value) in _PLAIN


# Tags


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags of a function: those its arguments determine, and those that need its result."""

    known: KeyCode[tuple[str, ...]]
    late: Callable[..., tuple[str, ...]] | None
    """``late(result, <the parameters of the function>)``; None where no tag names the result."""


def compile_tags(fn: AnyFunction, kind: Kind, tags: Iterable[str] | Callable[..., Iterable[str]]) -> Tags:
    """Return code for the tags of a call of *fn*, each once, in the order given.

    *tags* are templates as for keys, which may name ``{result...}`` too, or a callable that takes any of the
    parameters of *fn* and ``result`` by name (or the result alone under any name) and returns finished tags.
    42 and "42" give the same tag on purpose: a tag that drops too much is harmless, one that misses is not.

    Raises KeyTemplateError for what cannot work, at decoration where it can be seen there.
    """
    signature = Signature(fn, kind)
    if callable(tags):
        return _callable_tags(fn, signature, tags)
    if isinstance(tags, (str, bytes)) or not isinstance(cast(object, tags), Iterable):
        raise KeyTemplateError(
            f'tags of {name_of(fn)} must be a list of strings, as in tags=["feed"]; not {tags!r}'
        )
    known: list[Template] = []
    late: list[Template] = []
    for index, text in enumerate(tags):
        if not isinstance(cast(object, text), str):
            raise KeyTemplateError(
                f"tags[{index}] of {name_of(fn)} must be a str, not {type_name(text)}: {text!r}"
            )
        parsed = Template(text, signature, fn, "tag")
        parsed.refuse_text(_UNSAFE_IN_TAG, "a tag has no braces, whitespace or control characters")
        if parsed.uses_result and "result" in signature.names:
            parsed.fail("result is a parameter and the value returned: call the parameter something else")
        (late if parsed.uses_result else known).append(parsed)
    if not late:
        return Tags(_tags_code(known, signature), None)
    code = _tags_code(late, signature)
    parameters = _with_result("result", signature)
    function = compile_function(
        parameters, [f"return {code.expression}"], signature.namespace | code.namespace
    )
    return Tags(_tags_code(known, signature), function)


def _with_result(name: str, signature: Signature) -> str:
    return f"{name}, {signature.parameters}" if signature.parameters else name


def _tags_code(templates: list[Template], signature: Signature) -> KeyCode[tuple[str, ...]]:
    p = signature.private
    render = _fast_renderer(p, "tag")
    sources = dict.fromkeys(
        f"{p}tag[{template.source(render)}]" if template.fields else repr(tag_name(template.text))
        for template in templates
    )
    expression = f"({''.join(f'{source}, ' for source in sources)})"
    if _may_coincide(templates):
        return KeyCode(f"{p}unique({expression})", _helpers(signature) | {f"{p}unique": _unique})
    return KeyCode(expression, _helpers(signature))


def _may_coincide(templates: list[Template]) -> bool:
    """Tell whether two templates may give the same tag, judged by the text before the first field."""
    unequal = {template.text: template for template in templates}.values()
    return any(
        other is not template and other.texts[0].startswith(template.texts[0])
        for template in unequal
        if template.fields
        for other in unequal
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _callable_tags(fn: AnyFunction, signature: Signature, tags: Callable[..., Iterable[str]]) -> Tags:
    where = f"tags of {name_of(fn)}"
    arguments: list[str] = []
    needs_result = False
    result = "result" if "result" not in signature.names else f"{signature.private}result"
    parameters = parameters_of(tags)
    for parameter in parameters:
        name = value = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise KeyTemplateError(
                f"{where}: the callable takes *{name}: let it name the parameters it needs"
            )
        if name == "result" and name in signature.names:
            raise KeyTemplateError(
                f"{where}: result is a parameter and the value returned: rename the parameter"
            )
        if name not in signature.names:
            if name != "result" and len(parameters) > 1:
                if parameter.default is not parameter.empty:
                    continue
                raise KeyTemplateError(
                    f"{where}: the callable takes {name!r}, which is neither result nor a parameter: "
                    f"{', '.join(signature.names) or 'there are none'}"
                )
            needs_result, value = True, result
        arguments.append(value if parameter.kind is parameter.POSITIONAL_ONLY else f"{name}={value}")
    p = signature.private
    expression = f"{p}returned({p}tags_of({', '.join(arguments)}), {where!r})"
    namespace: dict[str, object] = {f"{p}returned": _returned, f"{p}tags_of": tags}
    if not needs_result:
        return Tags(KeyCode(expression, namespace), None)
    function = compile_function(
        _with_result(result, signature), [f"return {expression}"], signature.namespace | namespace
    )
    return Tags(KeyCode("()"), function)


def _returned(tags: object, where: str) -> tuple[str, ...]:
    """Check what a callable has returned as tags."""
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise KeyTemplateError(
            f"{where}: the callable must return a list of strings, not {type_name(tags)}: {tags!r}"
        )
    names = list(cast("Iterable[object]", tags))
    for name in names:
        if not isinstance(name, str):
            raise KeyTemplateError(
                f"{where}: the callable must return strings only, not {type_name(name)}: {name!r}"
            )
    return _unique(tag_names[str.__str__(cast(str, name))] for name in names)


# Raw Redis keys
