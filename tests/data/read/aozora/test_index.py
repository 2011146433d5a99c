"""Reading the library's index, and errors for files that are not the index."""

import pytest

from tests.data.read.aozora.samples import KAWADA, ROOT, ROWS, YAMADA, index_csv, index_zip, row
from tests.data.read.aozora.test_text import zipped
from tests.errors import assert_refused
from tsugiki.data import INDEX, IndexEntry, Person, Query, parse_role, read_manifest, select
from tsugiki.data.read.aozora.index import read_index

YAMADA_WROTE, KAWADA_WROTE = Person("000001", "山田一", "author"), Person("000002", "川田二葉", "author")


@pytest.mark.parametrize(
    ("data", "name"),
    [(index_csv(ROWS), "index"), (index_zip(ROWS), f"index/{INDEX}.csv")],
)
def test_an_entry_is_a_work_with_its_people(data, name):
    def entry(path: str, people: tuple[Person, ...], title: str, line: int, **other: object) -> IndexEntry:
        usual = {"kana": "modern", "orthography": "新字新仮名", "encoding": "shift_jis"}
        return IndexEntry(path, people, title, origin=f"{name}: line {line}", **(usual | other))  # type: ignore[arg-type]

    assert read_index(data, "index") == [
        entry("cards/000001/files/1_ruby.zip", (YAMADA_WROTE,), "坂の上", 2),
        entry("cards/000001/files/2_ruby.zip", (YAMADA_WROTE,), "海の底", 3, kana="old", orthography="旧字旧仮名"),
        entry("cards/000002/files/3_ruby.zip", (KAWADA_WROTE, YAMADA_WROTE), "川の話", 4),
        entry("cards/000002/files/4_ruby.zip", (KAWADA_WROTE,), "新しい話", 6, free=False),
        entry(
            "cards/000001/files/5_ruby.zip", (YAMADA_WROTE, Person("000002", "川田二葉", "translator")), "訳した話", 7
        ),
        entry("https://example.org/a.zip", (KAWADA_WROTE,), "よそにある話", 9),
        entry("", (KAWADA_WROTE,), "題名だけ", 10),
    ]


def test_one_row_under_copyright_excludes_the_work():
    rows = [row("1", "坂", "000001", YAMADA), row("1", "坂", "000001", KAWADA, 作品著作権フラグ="あり")]
    for order in (rows, rows[::-1]):
        (entry,) = read_index(index_csv(order), "index")
        assert not entry.free
    (entry,) = read_index(index_csv([row("1", "坂", "000001", YAMADA, 作品著作権フラグ="")]), "index")
    assert not entry.free


def test_line_numbers_count_lines_within_cells():
    data = index_csv([row("1", "坂の\n上\r\n下", "000001", YAMADA), row("2", "海", "000001", YAMADA)])
    origins = [entry.origin for entry in read_index(data, "index")]
    lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    assert [lines[int(origin.removeprefix("index: line ")) - 1][:2] for origin in origins] == ["1,", "2,"]
    assert origins == ["index: line 2", "index: line 5"]


@pytest.mark.parametrize("url", [f"{ROOT}/cards/../../a.zip", "https://example.org/cards/1/files/1.zip", "http://[::1"])
def test_files_of_other_sites_keep_their_url(url):
    (entry,) = read_index(index_csv([row("1", "坂", "000001", YAMADA, テキストファイルURL=url)]), "index")
    assert entry.path == url


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (index_csv(ROWS).replace("作品名".encode(), b"title"), "no column 作品名"),
        (b"PK broken", "a damaged zip"),
        (zipped("読", "readme.txt"), "0 .csv files"),
        (b"\r\n<!DOCTYPE html><html></html>", "a web page"),
        (index_csv(ROWS).decode("utf-8-sig").encode("cp932"), "line 1 .*utf-8"),
        (index_csv(ROWS[:2]) + "3,川の話\r\n".encode(), "line 4 "),
    ],
)
def test_other_files_are_errors(data, message):
    assert_refused(f"^here: {message}", read_index, data, "here")


def test_an_invalid_manifest_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "manifest.tsv"
    path.write_text("path\tperson_id\na\t1\n", encoding="utf-8")
    assert_refused(r"manifest.tsv: no column author_line, title_line, kana_guess; ", read_manifest, path)
    columns = "path\tperson_id\tauthor_line\ttitle_line\tkana_guess\n"
    path.write_text(f"{columns}a\t1\tA\tB\tmodern\nb\t1\n", encoding="utf-8")
    assert_refused(r"manifest.tsv: line 3 ", read_manifest, path)


# Selecting


def signed(path: str, person: str, name: str | None = None) -> IndexEntry:
    return IndexEntry(path, (Person(person, name),))


def chosen(**query: str) -> list[str | None]:
    return [entry.title for entry in select(read_index(index_csv(ROWS), "index"), Query(**query))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("people", "author", "paths"),
    [
        (["a 1 山田一", "b 1 山田生", "c 2 川田", "d 1"], "山田一", "abd"),  # under every name of the person
        (["a 1 Ａ・ヤマダ", "b 2 川田"], "A・ﾔﾏﾀﾞ", "a"),  # widths do not matter
        (["a 1 山田一", "b 1 山田一", "a 2 川田"], None, "ab"),  # a path once
    ],
)
def test_works_of_an_author(people, author, paths):
    entries = [signed(*one.split()) for one in people]
    assert "".join(entry.path for entry in select(entries, Query(author=author))) == paths


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
    assert_refused(message, chosen, **query)


@pytest.mark.parametrize("name", [None, "山田一"])
def test_a_role_requires_a_source_with_roles(name):
    assert_refused("--role translator: .*only authors", select, [signed("a", "1", name)], Query(role="translator"))


def test_roles_have_an_english_and_a_japanese_name():
    names = {"author": "author", "著者": "author", "翻訳者": "translator", "校訂者": "reviser"}
    assert {name: parse_role(name) for name in names} == names
    assert_refused(r"--role poet: .*author \(著者\), translator", parse_role, "poet")
