"""Passwords stay out of what is said: a server that does not know a command repeats its arguments."""

from __future__ import annotations

import traceback
from typing import Final

LEFT_OUT: Final = "(its text shows a password and is left out)"


def in_words(error: BaseException, secrets: tuple[str, ...] = ()) -> str:
    """An error as ``Type: text``; the text is left out when it shows a secret."""
    kind, text = type(error).__name__, str(error)
    if any(secret in text for secret in secrets):
        return f"{kind} {LEFT_OUT}"
    return f"{kind}: {text or 'no answer in time'}"


def shows(error: BaseException, secrets: tuple[str, ...]) -> bool:
    """Whether a secret is in an error, in one behind it, or in what a traceback prints of them."""
    if not secrets:
        return False
    told = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        told += repr(link.args)
        link = link.__cause__ or link.__context__
    return any(secret in told for secret in secrets)


def without(error: Exception, secrets: tuple[str, ...]) -> Exception:
    """The same error if it shows no secret, else one of its kind that says no more than that.

    To be raised outside of the handler that has caught it, or it would be behind the new one.
    """
    return type(error)(LEFT_OUT) if shows(error, secrets) else error
