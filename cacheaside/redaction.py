"""Passwords stay out of what is said: a server that does not know a command repeats its arguments."""

from __future__ import annotations

import traceback


def in_words(error: BaseException, secrets: tuple[str, ...]) -> str:
    """An error as ``Type: text``; the text is left out when it shows a secret."""
    kind, text = type(error).__name__, str(error)
    if any(secret in text for secret in secrets):
        return f"{kind} (its text shows a password and is left out)"
    return f"{kind}: {text or 'no answer in time'}"


def shows(error: BaseException, secrets: tuple[str, ...]) -> bool:
    """Whether a secret is in an error, in one that it was raised from, or in what a traceback prints of
    them."""
    if not secrets:
        return False
    told = "".join(traceback.format_exception(error))
    return any(secret in told for secret in secrets)
