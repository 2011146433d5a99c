"""The language of everything that a reader sees: errors, the terminal, help texts and pages.

The source is written in English, and a message's English text is its key in the catalogue of another language:

    raise TsugikiError(_("{path}: no such folder").format(path=path))

A message is translated when it is shown or raised, so that the language can be chosen at any time: by the option
`--lang`, which sets the variable `TSUGIKI_LANG`; by this variable; or by the locale. A server answers each reader in a
language of their own (`speaking`). Logs and JSON stay in English.
"""

import locale
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from gettext import NullTranslations, translation
from pathlib import Path

VARIABLE = "TSUGIKI_LANG"
ENGLISH, JAPANESE = "en", "ja"
LANGUAGES = (ENGLISH, JAPANESE)
DOMAIN = "tsugiki"
CATALOGUES = Path(__file__).parent
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")  # by precedence, as in POSIX
_of_reader: ContextVar[str | None] = ContextVar("language of the reader", default=None)


def language() -> str:
    """Return the language of messages, one of `LANGUAGES`. An unknown `TSUGIKI_LANG` counts as unset."""
    if (own := _of_reader.get()) is not None:
        return own
    chosen = os.environ.get(VARIABLE)
    if chosen in LANGUAGES:
        return chosen
    names = [os.environ[name] for name in _LOCALE if os.environ.get(name)]
    # Windows sets none of these variables; its locale is called Japanese_Japan or ja_JP.
    name = names[0] if names else locale.getlocale()[0] or ""
    return JAPANESE if name.lower().startswith(JAPANESE) else ENGLISH


def choose_language(name: str) -> None:
    """Set the language of this process and of those that it starts; a ValueError if it is not in `LANGUAGES`."""
    if name not in LANGUAGES:
        raise ValueError(
            _("no language {name!r}; choose one of: {known}").format(name=name, known=", ".join(LANGUAGES))
        )
    os.environ[VARIABLE] = name


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """Within the block, and in tasks and threads that asyncio begins there, messages are in this language."""
    before = _of_reader.set(name)
    try:
        yield
    finally:
        _of_reader.reset(before)


def _(message: str) -> str:
    """Return a message in the reader's language, still with its placeholders."""
    return _catalogue(language()).gettext(message)


def ngettext(singular: str, plural: str, count: int) -> str:
    """Return the form of a message that `count` requires, in the reader's language, still with its placeholders."""
    return _catalogue(language()).ngettext(singular, plural, count)


def marked(message: str) -> str:
    """Return `message` unchanged. It is put into the catalogues; `_` translates it where it is shown.

    For constants, which are evaluated before the language is known.
    """
    return message


def listed(parts: Iterable[str]) -> str:
    """Return counts and phrases as a list in one line."""
    return _(", ").join(parts)


def sentences(parts: Iterable[str]) -> str:
    """Return problems or reasons in one line: separated by semicolons or question marks, or as Japanese sentences."""
    if language() == JAPANESE:
        return "".join(f"{part.rstrip('。')}。" for part in parts)
    return "; ".join(parts).replace("?; ", "? ")


@cache
def _catalogue(name: str) -> NullTranslations:
    return NullTranslations() if name == ENGLISH else translation(DOMAIN, CATALOGUES, [name])
