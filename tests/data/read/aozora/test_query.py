"""Selecting entries by a query."""

import pytest

from tests.data.read.aozora.samples import ROWS, index_csv
from tsugiki.data import IndexEntry, Person, Query, parse_role, select
from tsugiki.data.read.aozora.index import read_index
from tsugiki.errors import TsugikiError


def signed(path: str, person: str, name: str | None) -> IndexEntry:
    return IndexEntry(path, (Person(person, name),))


def chosen(**query: str) -> list[str | None]:
    return [entry.title for entry in select(read_index(index_csv(ROWS), "index"), Query(**query))]  # type: ignore[arg-type]


def test_works_under_every_name_of_a_person_are_selected():
    entries = [signed("a", "1", "山田一"), signed("b", "1", "山田生"), signed("c", "2", "川田"), signed("d", "1", None)]
    assert [entry.path for entry in select(entries, Query(author="山田一"))] == ["a", "b", "d"]


def test_character_widths_are_ignored():
    entries = [signed("a", "1", "Ａ・ヤマダ"), signed("b", "2", "川田")]
    assert [entry.path for entry in select(entries, Query(author="A・ﾔﾏﾀﾞ"))] == ["a"]


def test_a_path_is_selected_once():
    entries = [signed("a", "1", "山田一"), signed("b", "1", "山田一"), signed("a", "2", "川田")]
    assert select(entries, Query()) == entries[:2]


def test_roles_distinguish_authors_and_translators():
    assert chosen() == ["坂の上", "海の底", "川の話", "訳した話", "よそにある話", "題名だけ"]
    assert chosen(author="山田一") == ["坂の上", "海の底", "川の話", "訳した話"]
    assert chosen(author="川田二葉") == ["川の話", "よそにある話", "題名だけ"]
    assert chosen(author="川田二葉", role="translator") == ["訳した話"]
    assert chosen(role="translator") == ["訳した話"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"author": "山田一", "role": "translator"}, "山田一 .* translator .*author.*--role author"),
        ({"author": "川田", "role": "translator"}, "translator 川田.*川田二葉"),
        ({"role": "editor"}, "--role editor"),
        ({"title": "新しい"}, "copyright .*--title 新しい"),
        ({"author": "山田一", "title": "よそ"}, "--author 山田一 --title よそ"),
    ],
)
def test_a_query_without_matches_is_an_error_with_advice(query, message):
    with pytest.raises(TsugikiError, match=message):
        chosen(**query)


@pytest.mark.parametrize("name", [None, "山田一"])
def test_a_role_requires_a_source_with_roles(name):
    with pytest.raises(TsugikiError, match="--role translator: .*only authors"):
        select([signed("a", "1", name)], Query(role="translator"))


def test_roles_have_an_english_and_a_japanese_name():
    for name, role in {"author": "author", "著者": "author", "翻訳者": "translator", "校訂者": "reviser"}.items():
        assert parse_role(name) == role
    with pytest.raises(TsugikiError, match=r"--role poet: .*author \(著者\), translator"):
        parse_role("poet")
