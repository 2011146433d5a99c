"""Works of mirror folders: selected, read, cleaned and written."""

import json
from collections.abc import Iterator
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
from tests.data.read.aozora.test_text import zipped
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


@pytest.mark.parametrize("indexed", [False, True])
def test_selection_by_author_title_and_kana(mirror, indexed):
    if indexed:
        (mirror / f"{INDEX}.csv").write_bytes(index_csv(ROWS[:3]))
    assert titles(mirror, author="山田一") == ["坂の上", "海の底"]
    assert titles(mirror, author="山田　一 ") == ["坂の上", "海の底"]
    assert titles(mirror, title="の上") == ["坂の上"]
    assert titles(mirror, kana="old") == ["海の底"]
    assert titles(mirror, author="山田一", title="海", kana="old") == ["海の底"]


def test_a_folder_without_cards_is_an_error(tmp_path):
    with pytest.raises(TsugikiError, match="cards/"):
        open_source(str(tmp_path))
    (tmp_path / "cards").mkdir()
    with pytest.raises(TsugikiError, match="no works"):
        titles(tmp_path)


def test_damaged_works_are_skipped_and_named(mirror):
    (mirror / "cards/000001/files/0_ruby.zip").write_bytes(b"PK nonsense")
    (mirror / "cards/000001/files/9_ruby.zip").write_bytes(zipped("図", name="figure.png"))
    rows = [*ROWS[:3], row("0", "欠", "000001", YAMADA), row("9", "欠", "000001", YAMADA), *ROWS[-2:]]
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(rows))
    source = MirrorFolder(mirror)
    skipped: list[str] = []
    works = list(read_entries(source, source.entries(), Query(), skipped.append))
    assert [work.title for work in works] == ["坂の上", "海の底", "川の話"]
    broken, figure, elsewhere, no_file = skipped
    assert broken.startswith("cards/000001/files/0_ruby.zip: a damaged zip")
    assert figure.startswith("cards/000001/files/9_ruby.zip: 0 .txt files")
    assert "line 7: https://example.org/a.zip is at another site" in elsewhere
    assert "line 8: 題名だけ has no text file" in no_file


@pytest.mark.parametrize(
    "path", ["../secret.zip", "cards/000001/files/link.zip", "/dev/zero", "cards", "a\0b", "x" * 5000]
)
def test_files_outside_the_mirror_are_not_read(mirror, path):
    secret = mirror.parent / "secret.zip"
    secret.write_bytes(work_zip("秘密", "誰か"))
    (mirror / "cards/000001/files/link.zip").symlink_to(secret)
    paths = [path, str(secret)] if path.startswith("..") else [path]
    source = MirrorFolder(mirror)
    for hostile in paths:
        with pytest.raises(TsugikiError):
            source.fetch(IndexEntry(hostile, (Person("000001"),)))
    assert "秘密" not in titles(mirror)


def test_a_missing_file_is_an_error_or_skipped(mirror):
    index, name = mirror / f"{INDEX}.csv", list(FILES)[1]
    index.write_bytes(index_csv(ROWS[:3]))
    (mirror / name).unlink()
    with pytest.raises(TsugikiError, match=f"{index}: line 3: .*{name}.*--skip-missing"):
        titles(mirror)
    source = MirrorFolder(mirror)
    missing: list[str] = []
    works = list(read_entries(source, source.entries(), Query(), pytest.fail, missing.append))
    assert [work.title for work in works] == ["坂の上", "川の話"]
    assert len(missing) == 1
    assert missing[0].startswith(f"{index}: line 3: ")


def test_a_work_of_several_people_is_read_once(mirror):
    (mirror / "cards/000001/files/5_ruby.zip").write_bytes(work_zip("訳した話", "山田一"))
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(ROWS))
    (work,) = works_of(str(mirror), author="川田二葉", role="translator")
    assert (work.author, work.person_id, work.translator) == ("山田一", "000001", "川田二葉")
    (work,) = works_of(str(mirror), author="山田一", title="川の話")
    assert (work.author, work.person_id, work.translator) == ("川田二葉、山田一", "000002", None)


def test_a_work_without_author_in_the_index_uses_its_text(mirror):
    (mirror / f"{INDEX}.csv").write_bytes(index_csv([ROWS[0] | {"役割フラグ": "編者"}]))
    (work,) = works_of(str(mirror), role="editor")
    assert (work.author, work.person_id) == ("山田一", "000001")


def test_kana_is_guessed_only_if_the_index_does_not_give_it(mirror):
    rows = [ROWS[0] | {"文字遣い種別": "新字旧仮名"}, ROWS[1] | {"文字遣い種別": "その他"}]
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(rows))
    assert [(work.kana, work.orthography) for work in works_of(str(mirror))] == [
        ("old", "新字旧仮名"),  # the text itself looks modern
        ("old", "その他"),  # guessed from the text
    ]


def test_only_damaged_works_is_an_error(mirror):
    for name in FILES:
        (mirror / name).write_bytes(b"PK nonsense")
    with pytest.raises(TsugikiError, match="3 .*cards/000001/files/1_ruby"):
        titles(mirror)


# Writing -------------------------------------------------------------------------------------------------


def test_one_json_line_per_work(mirror, tmp_path):
    out = tmp_path / "works.jsonl"
    totals = write_works(works_of(str(mirror)), out)
    lines = out.read_bytes().decode("utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "title": "坂の上",
        "author": "山田一",
        "text": "　上ったと思う。",
        "source": "cards/000001/files/1_ruby.zip",
        "person_id": "000001",
        "kana": "modern",
    }
    assert "坂の上" in lines[0]  # not escaped
    assert len(lines) == 3
    assert (totals.works, totals.characters, totals.unresolved) == (3, 21, 1)


def test_the_output_is_never_overwritten_or_partial(mirror, tmp_path):
    out = tmp_path / "works.jsonl"

    def works() -> Iterator[Work]:
        yield next(works_of(str(mirror)))
        raise TsugikiError("gone")

    with pytest.raises(TsugikiError, match="gone"):
        write_works(works(), out)
    assert list(tmp_path.glob("works.jsonl*")) == []
    out.write_text("mine")
    with pytest.raises(TsugikiError, match="works.jsonl"):
        write_works(works(), out)
    assert out.read_text() == "mine"
    with pytest.raises(TsugikiError, match="none"):
        write_works(works(), tmp_path / "none" / "works.jsonl")


def test_only_zips_in_the_files_folders_are_works(mirror):
    (mirror / "cards/000001/files/readme.txt").write_text("no work")
    (mirror / "cards/000001/other").mkdir()
    (mirror / "cards/000001/other/1.zip").write_bytes(FILES["cards/000001/files/1_ruby.zip"])
    assert len(MirrorFolder(mirror).entries()) == 3


def test_files_as_they_were_downloaded(tmp_path: Path, mirror):
    folder = tmp_path / "downloads"
    folder.mkdir()
    paths = sorted(Path(mirror).rglob("*.zip"))
    for path in paths[1:]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("買い物")
    (folder / "picture.png").write_bytes(b"x")
    source = LooseFiles([paths[0], folder])
    skipped: list[str] = []
    works = list(read_entries(source, source.entries(), Query(), skipped.append))
    expected = {work.text for work in works_of(str(mirror))}
    assert {work.text for work in works} == expected
    assert [work.person_id for work in works] == [""] * len(paths)
    assert len(skipped) == 1
    assert "notes.txt" in skipped[0]
    (folder / paths[1].name).unlink()  # one that cannot be read any more is skipped
    assert len(list(read_entries(source, source.entries(), Query(), skipped.append))) == len(works) - 1
    assert "No such file" in skipped[1]
    with pytest.raises(TsugikiError, match="no such file"):
        LooseFiles([tmp_path / "nowhere"])
    with pytest.raises(TsugikiError, match=r"no \.zip or \.txt"):
        LooseFiles([folder / "picture.png"])
