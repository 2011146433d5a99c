"""Works of mirror folders: selected, read, cleaned and written."""

import json
from pathlib import Path

import pytest

from tests.data.read.aozora.samples import (
    FILES,
    ROWS,
    YAMADA,
    index_csv,
    index_zip,
    make_mirror,
    row,
    work_zip,
    works_of,
)
from tests.errors import assert_refused
from tsugiki.data import (
    INDEX,
    IndexEntry,
    LooseFiles,
    MirrorFolder,
    Person,
    Query,
    Work,
    open_source,
    read_entries,
    write_works,
)
from tsugiki.errors import TsugikiError


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return make_mirror(tmp_path / "mirror")


def titles(source: Path | str, **query: str) -> list[str]:
    return [work.title for work in works_of(str(source), **query)]


# Folders -------------------------------------------------------------------------------------------------


def test_without_an_index_the_texts_give_title_and_author(mirror):
    (mirror / "cards/000001/files/readme.txt").write_text("no work")
    (mirror / "cards/000001/1.zip").write_bytes(FILES["cards/000001/files/1_ruby.zip"])
    assert list(works_of(str(mirror))) == [
        Work("坂の上", "山田一", "000001", "　上ったと思う。", "cards/000001/files/1_ruby.zip", "modern", 0),
        Work("海の底", "山田一", "000001", "　下つたと思ふ。", "cards/000001/files/2_ruby.zip", "old", 0),
        Work("川の話", "川田二葉", "000002", "　〓の字。", "cards/000002/files/3_ruby.zip", "modern", 1),
    ]


@pytest.mark.parametrize("place", [f"{INDEX}.csv", f"{INDEX}.zip", f"index_pages/{INDEX}.zip"])
def test_an_index_in_the_folder_takes_precedence(mirror, place):
    (mirror / "index_pages").mkdir()
    rows = [row("1", "坂の上（索引）", "000009", ("索引", "者"), テキストファイルURL=ROWS[0]["テキストファイルURL"])]
    (mirror / place).write_bytes(index_csv(rows) if place.endswith(".csv") else index_zip(rows))
    (mirror / "manifest.tsv").write_text("broken", encoding="utf-8")
    (work,) = works_of(str(mirror))
    assert (work.title, work.author, work.person_id) == ("坂の上（索引）", "索引者", "000009")


def test_a_manifest_names_files_persons_and_kana(mirror):
    (mirror / "manifest.tsv").write_text(
        "path\tperson_id\tauthor_line\ttitle_line\tchars\tkana_guess\n"
        'cards/000001/files/1_ruby.zip\t000001\t川田《かわだ》二葉訳\t"坂の上\t9\t\n'
        "cards/000002/files/3_ruby.zip\t000002\t川田二葉\t川の話\t9\told\n",
        encoding="utf-8",
    )
    works = list(works_of(str(mirror)))
    assert [(w.title, w.author, w.person_id, w.kana) for w in works] == [
        ("坂の上", "山田一", "000001", "modern"),  # the manifest names the translator; the text gives the author
        ("川の話", "川田二葉", "000002", "old"),
    ]


def test_authors_and_titles_are_those_of_the_texts_where_there_is_no_index(mirror):
    assert titles(mirror, author="山田　一 ") == ["坂の上", "海の底"]
    assert titles(mirror, title="の上") == ["坂の上"]


def test_a_folder_without_cards_is_an_error(tmp_path):
    assert_refused("cards/", open_source, str(tmp_path))
    (tmp_path / "cards").mkdir()
    assert_refused("no works", titles, tmp_path)


def read_all(source: MirrorFolder | LooseFiles) -> tuple[list[Work], list[str]]:
    """The works, and what is said of those that cannot be read."""
    skipped: list[str] = []
    return list(read_entries(source, source.entries(), Query(), skipped.append)), skipped


def test_damaged_works_are_skipped_and_named(mirror):
    (mirror / "cards/000001/files/0_ruby.zip").write_bytes(b"PK nonsense")
    rows = [*ROWS[:3], row("0", "欠", "000001", YAMADA), *ROWS[-2:]]
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(rows))
    works, skipped = read_all(MirrorFolder(mirror))
    assert [work.title for work in works] == ["坂の上", "海の底", "川の話"]
    broken, elsewhere, no_file = skipped
    assert broken.startswith("cards/000001/files/0_ruby.zip: a damaged zip")
    assert "line 6: https://example.org/a.zip is at another site" in elsewhere
    assert "line 7: 題名だけ has no text file" in no_file
    for name in FILES:
        (mirror / name).write_bytes(b"PK nonsense")
    assert_refused("1_ruby.zip: a damaged zip", titles, mirror)


@pytest.mark.parametrize(
    "path", ["../secret.zip", "ABS", "cards/000001/files/link.zip", "/dev/zero", "a\0b", "x" * 5000]
)
def test_files_outside_the_mirror_are_not_read(mirror, path):
    secret = mirror.parent / "secret.zip"
    secret.write_bytes(work_zip("秘密", "誰か"))
    (mirror / "cards/000001/files/link.zip").symlink_to(secret)
    with pytest.raises(TsugikiError):
        MirrorFolder(mirror).fetch(IndexEntry(path.replace("ABS", str(secret)), (Person("000001"),)))
    assert "秘密" not in titles(mirror)


def test_a_work_of_several_people_is_read_once(mirror):
    (mirror / "cards/000001/files/5_ruby.zip").write_bytes(work_zip("訳した話", "山田一"))
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(ROWS))
    (work,) = works_of(str(mirror), author="川田二葉", role="translator")
    assert (work.author, work.person_id, work.translator) == ("山田一", "000001", "川田二葉")
    (work,) = works_of(str(mirror), author="山田一", title="川の話")
    assert (work.author, work.person_id, work.translator) == ("川田二葉、山田一", "000002", None)


def test_kana_is_guessed_only_if_the_index_does_not_give_it(mirror):
    rows = [ROWS[0] | {"文字遣い種別": "新字旧仮名"}, ROWS[1] | {"文字遣い種別": "その他"}]
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(rows))
    assert [(work.kana, work.orthography) for work in works_of(str(mirror))] == [
        ("old", "新字旧仮名"),  # the text itself looks modern
        ("old", "その他"),  # guessed from the text
    ]


# Writing -------------------------------------------------------------------------------------------------


def test_one_json_line_per_work_in_a_file_that_is_never_overwritten(mirror, tmp_path):
    out = tmp_path / "works.jsonl"
    totals = write_works(works_of(str(mirror)), out)
    first, _, _ = out.read_bytes().decode("utf-8").splitlines()
    assert json.loads(first) == {
        "title": "坂の上",
        "author": "山田一",
        "text": "　上ったと思う。",
        "person_id": "000001",
        "kana": "modern",
        "source": "cards/000001/files/1_ruby.zip",
    }
    assert "坂の上" in first  # not escaped
    assert (totals.works, totals.characters, totals.unresolved) == (3, 21, 1)
    for place, fact in ((out, "works.jsonl"), (tmp_path / "none" / "works.jsonl", "none")):
        assert_refused(fact, write_works, works_of(str(mirror)), place)
    assert out.read_text("utf-8").splitlines()[0] == first


def test_files_as_they_were_downloaded(tmp_path: Path, mirror):
    folder = tmp_path / "downloads"
    folder.mkdir()
    first, *others = sorted(Path(mirror).rglob("*.zip"))
    for path in others:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("買い物")
    (folder / "picture.png").write_bytes(b"x")
    works, skipped = read_all(LooseFiles([first, folder]))
    assert {(work.text, work.person_id) for work in works} == {(work.text, "") for work in works_of(str(mirror))}
    assert ["notes.txt" in one for one in skipped] == [True]
    source = LooseFiles([first, folder])
    (folder / others[0].name).unlink()  # one that cannot be read any more is skipped
    assert "No such file" in "".join(read_all(source)[1])
    for wrong, fact in ((tmp_path / "nowhere", "no such file"), (folder / "picture.png", r"no \.zip or \.txt")):
        assert_refused(fact, LooseFiles, [wrong])
