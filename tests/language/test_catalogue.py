"""The Japanese catalogue: complete, without unused messages, with the placeholders of the English text."""

from string import Formatter

import pytest
from babel.messages import Catalog
from babel.messages.catalog import Message
from babel.messages.mofile import read_mo

from tests.language.catalogue import MO, forms, read_catalogue, template

_UPDATE = "run `python -m tests.language.catalogue`, write the Japanese into tsugiki.po, and run it again"


@pytest.fixture(scope="module")
def catalogue() -> Catalog:
    return read_catalogue()


def test_catalogue_has_every_message_and_no_other(catalogue: Catalog) -> None:
    used, known = {message.id for message in template()}, {message.id for message in catalogue}
    assert used == known, _UPDATE


def test_every_message_is_translated(catalogue: Catalog) -> None:
    missing = [message.id for message in catalogue if message.id and not all(forms(message))]
    assert not missing, _UPDATE
    assert not [message.id for message in catalogue if message.fuzzy]


def test_translations_have_the_placeholders_of_the_message(catalogue: Catalog) -> None:
    for message in catalogue:
        english = (message.id,) if isinstance(message.id, str) else message.id
        for translation in filter(None, forms(message) if message.id else ()):
            assert _fields(translation) == _fields(english[-1]), (english[-1], translation)


def test_compiled_catalogue_is_up_to_date(catalogue: Catalog) -> None:
    with MO.open("rb") as file:
        compiled = {_key(message): forms(message) for message in read_mo(file) if message.id}
    translated = {_key(message): forms(message) for message in catalogue if message.id and all(forms(message))}
    assert compiled == translated, _UPDATE


def _key(message: Message) -> str:
    """Return the English text; of a message that depends on a number, the singular."""
    return message.id if isinstance(message.id, str) else message.id[0]


def _fields(text: str) -> set[tuple[str, str | None, str | None]]:
    """Return the placeholders of a message: name, format and conversion."""
    return {(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None}
