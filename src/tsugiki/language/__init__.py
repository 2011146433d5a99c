"""The language of everything that a reader sees: errors, the terminal, help texts and pages.

The source is written in English, and a message's English text is its key in the catalogue of another language:

    raise TsugikiError("{path}: no such folder", path=path)        # an error translates its message itself
    print(_("{count} records", count=count))

A message is translated when it is shown or raised, so that the language can be chosen at any time: by the option
`--lang`, which sets the variable `TSUGIKI_LANG`; by this variable; or by the locale. A server answers each reader in a
language of their own (`speaking`). Logs and JSON stay in English.

A message that advises to change a setting names it as `{flag:block_size}`, with a value as `{flag:base_dtype int8}`: on
the command line that becomes its flag, and on the server's page, which has no flags, the label of its field.
"""

import locale
import os
import re
from collections.abc import Iterable, Iterator, Mapping
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
_FLAG = re.compile(r"\{flag:(\w+)(?: ([^}]+))?\}")
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")  # by precedence, as in POSIX
_of_reader: ContextVar[str | None] = ContextVar("language of the reader", default=None)

PAGE = "TSUGIKI_PAGE"
"""The variable of processes whose messages are read on a page; those that a server starts have it."""
LABELS: dict[str, str] = {}
"""Name of a setting -> its label on the page, a message. Those who define settings fill it."""
_on_page: ContextVar[bool] = ContextVar("whether the reader has a page", default=False)


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
        raise ValueError(_("no language {name!r}; choose one of: {known}", name=name, known=", ".join(LANGUAGES)))
    os.environ[VARIABLE] = name


@contextmanager
def speaking(name: str, on_page: bool = False) -> Iterator[None]:
    """Within the block, and in tasks and threads that asyncio begins there, messages are in this language.

    `on_page` says that they are read on a page, which names settings by their labels.
    """
    before, place = _of_reader.set(name), _on_page.set(on_page)
    try:
        yield
    finally:
        _of_reader.reset(before)
        _on_page.reset(place)


def reader_environment() -> dict[str, str]:
    """Return the environment of a process whose messages are for the reader of a page, in their language."""
    return {**os.environ, VARIABLE: language(), PAGE: "1"}


def flag(name: str, value: str = "") -> str:
    """Return what a message calls a setting, with a value: its flag, or its label where the reader has a page."""
    if not _on_page.get() and PAGE not in os.environ:
        return f"--{name.replace('_', '-')} {value}".rstrip()
    label = _(LABELS[name]) if name in LABELS else name.replace("_", " ")
    return (_("“{label}: {value}”") if value else _("“{label}”")).format(label=label, value=value)


def _(message: str, /, **values: object) -> str:
    """Return a message in the reader's language, with its values; without any, still with its placeholders."""
    return _filled(_catalogue(language()).gettext(message), values)


def ngettext(singular: str, plural: str, number: int, /, **values: object) -> str:
    """Return the form of a message that `number` requires, in the reader's language, with its values as in `_`."""
    return _filled(_catalogue(language()).ngettext(singular, plural, number), values)


def _filled(message: str, values: Mapping[str, object]) -> str:
    """Return a message in which settings are named as the reader sets them, with its values if there are any."""
    if "{flag:" in message:
        message = _FLAG.sub(lambda found: flag(found[1], found[2] or ""), message)
    return message.format(**values) if values else message


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
