"""Folders, index, manifest and a made-up site on 127.0.0.1."""

import csv
import io
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.data.test_aozora import FOOTER, zipped
from tsugiki.data.aozora_index import INDEX, Entry, read_index
from tsugiki.data.aozora_source import (
    Folder,
    Query,
    Site,
    Unreachable,
    Work,
    check_target,
    iter_works,
    open_source,
    read_entries,
    select,
    write_works,
)
from tsugiki.data.cache import cache_folder
from tsugiki.errors import TsugikiError

COLUMNS = [
    "作品ID",
    "作品名",
    "文字遣い種別",
    "作品著作権フラグ",
    "人物ID",
    "姓",
    "名",
    "役割フラグ",
    "テキストファイルURL",
    "テキストファイル符号化方式",
]
ROOT = "https://www.aozora.gr.jp"


def row(work: str, title: str, person: str, name: tuple[str, str], **other: str) -> dict[str, str]:
    usual = {
        "作品ID": work,
        "作品名": title,
        "文字遣い種別": "新字新仮名",
        "作品著作権フラグ": "なし",
        "人物ID": person,
        "姓": name[0],
        "名": name[1],
        "役割フラグ": "著者",
        "テキストファイルURL": f"{ROOT}/cards/{person}/files/{work}_ruby.zip",
        "テキストファイル符号化方式": "ShiftJIS",
    }
    return usual | other


YAMADA, KAWADA = ("山田", "一"), ("川田", "二葉")
ROWS = [
    row("1", "坂の上", "000001", YAMADA),
    row("2", "海の底", "000001", YAMADA, 文字遣い種別="旧字旧仮名"),
    row("3", "川の話", "000002", KAWADA),
    row("3", "川の話", "000001", YAMADA),  # written by two
    row("4", "新しい話", "000002", KAWADA, 作品著作権フラグ="あり"),
    row("5", "訳した話", "000002", KAWADA, 役割フラグ="翻訳者"),
    row("6", "よそにある話", "000002", KAWADA, テキストファイルURL="https://example.org/a.zip"),
    row("7", "題名だけ", "000002", KAWADA, テキストファイルURL=""),
]


def index_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def index_zip(rows: list[dict[str, str]]) -> bytes:
    return zipped(index_csv(rows), name=f"{INDEX}.csv")


def work_zip(title: str, author: str, text: str = "　上ったと思う。") -> bytes:
    return zipped(f"{title}\n{author}\n\n{text}{FOOTER}")


FILES = {
    "cards/000001/files/1_ruby.zip": work_zip("坂の上", "山田一"),
    "cards/000001/files/2_ruby.zip": work_zip("海の底", "山田一", "　下つたと思ふ。"),
    "cards/000002/files/3_ruby.zip": work_zip("川の話", "川田二葉", "　※［＃「口＋世」、1-1］の字。"),
}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    root = tmp_path / "mirror"
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def titles(source: Path | str, **query: str) -> list[str]:
    return [work.title for work in iter_works(str(source), **query)]  # type: ignore[arg-type]


# Folders -------------------------------------------------------------------------------------------------


def test_a_bare_folder_speaks_through_its_texts(mirror):
    assert list(iter_works(str(mirror))) == [
        Work("坂の上", "山田一", "000001", "　上ったと思う。", "cards/000001/files/1_ruby.zip", "modern", 0),
        Work("海の底", "山田一", "000001", "　下つたと思ふ。", "cards/000001/files/2_ruby.zip", "old", 0),
        Work("川の話", "川田二葉", "000002", "　〓の字。", "cards/000002/files/3_ruby.zip", "modern", 1),
    ]


@pytest.mark.parametrize("place", [f"{INDEX}.csv", f"{INDEX}.zip", f"index_pages/{INDEX}.zip"])
def test_an_index_in_the_folder_goes_before_the_texts(mirror, place):
    (mirror / "index_pages").mkdir()
    rows = [row("1", "坂の上（索引）", "000009", ("索引", "者"), テキストファイルURL=ROWS[0]["テキストファイルURL"])]
    (mirror / place).write_bytes(index_csv(rows) if place.endswith(".csv") else index_zip(rows))
    (mirror / "manifest.tsv").write_text("broken", encoding="utf-8")
    (work,) = iter_works(str(mirror))
    assert (work.title, work.author, work.person_id) == ("坂の上（索引）", "索引者", "000009")


def test_a_manifest_names_files_persons_and_kana(mirror):
    (mirror / "manifest.tsv").write_text(
        "path\tperson_id\tauthor_line\ttitle_line\tchars\tkana_guess\n"
        'cards/000001/files/1_ruby.zip\t000001\t川田《かわだ》二葉訳\t"坂の上\t9\t\n'
        "cards/000002/files/3_ruby.zip\t000002\t川田二葉\t川の話\t9\told\n",
        encoding="utf-8",
    )
    works = list(iter_works(str(mirror)))
    assert [(w.title, w.author, w.person_id, w.kana) for w in works] == [
        ("坂の上", "山田一", "000001", "modern"),  # a translator is no author: the text knows better
        ("川の話", "川田二葉", "000002", "old"),
    ]


@pytest.mark.parametrize("indexed", [False, True])
def test_author_title_and_kana_choose(mirror, indexed):
    if indexed:
        (mirror / f"{INDEX}.csv").write_bytes(index_csv(ROWS[:3]))
    assert titles(mirror, author="山田一") == ["坂の上", "海の底"]
    assert titles(mirror, author="山田　一 ") == ["坂の上", "海の底"]
    assert titles(mirror, title="の上") == ["坂の上"]
    assert titles(mirror, kana="old") == ["海の底"]
    assert titles(mirror, author="山田一", title="海", kana="old") == ["海の底"]


@pytest.mark.parametrize("indexed", [False, True])
def test_what_matches_nothing_is_an_error_with_advice(mirror, indexed):
    if indexed:
        (mirror / f"{INDEX}.csv").write_bytes(index_csv(ROWS[:3]))
    with pytest.raises(TsugikiError, match=r"no author 山田二 .*did you mean 山田一"):
        titles(mirror, author="山田二")
    with pytest.raises(TsugikiError, match="no author Xyz .*give the full name"):
        titles(mirror, author="Xyz")
    with pytest.raises(TsugikiError, match="no work matches --author 山田一 --title 川"):
        titles(mirror, author="山田一", title="川")


def test_a_person_is_taken_under_every_name():
    entries = [Entry("a", "1", "山田一"), Entry("b", "1", "山田生"), Entry("c", "2", "川田"), Entry("d", "1", None)]
    assert [entry.path for entry in select(entries, Query(author="山田一"))] == ["a", "b", "d"]


def test_the_width_of_letters_does_not_matter():
    entries = [Entry("a", "1", "Ａ・ヤマダ"), Entry("b", "2", "川田")]
    assert [entry.path for entry in select(entries, Query(author="A・ﾔﾏﾀﾞ"))] == ["a"]


def test_a_folder_without_cards_is_refused(tmp_path):
    with pytest.raises(TsugikiError, match="no folder cards/"):
        open_source(str(tmp_path))
    (tmp_path / "cards").mkdir()
    with pytest.raises(TsugikiError, match="no works in this source"):
        titles(tmp_path)


def test_a_broken_work_is_skipped_by_name_and_the_rest_comes(mirror):
    (mirror / "cards/000001/files/0_broken.zip").write_bytes(b"PK nonsense")
    (mirror / "cards/000001/files/9_figure.zip").write_bytes(zipped("図", name="figure.png"))
    (mirror / f"{INDEX}.csv").write_bytes(
        index_csv([*ROWS[:3], *(row(n, "欠", "000001", YAMADA) for n in ("0", "8", "9"))])
        .replace(b"0_ruby", b"0_broken")
        .replace(b"9_ruby", b"9_figure")
    )
    place = Folder(mirror)
    skipped: list[str] = []
    works = list(read_entries(place, place.entries(), Query(), skipped.append))
    assert [work.title for work in works] == ["坂の上", "海の底", "川の話"]
    assert [reason.partition(": ")[0] for reason in skipped] == [
        "cards/000001/files/0_broken.zip",
        "cards/000001/files/8_ruby.zip",
        "cards/000001/files/9_figure.zip",
    ]
    assert "broken zip" in skipped[0]
    assert "No such file" in skipped[1]
    assert "0 texts" in skipped[2]


def test_nothing_but_broken_works_is_an_error(mirror):
    for name in FILES:
        (mirror / name).write_bytes(b"PK nonsense")
    with pytest.raises(
        TsugikiError, match=r"no work is left, 3 could not be read; the first: cards/000001/files/1_ruby"
    ):
        titles(mirror)


def test_works_stream(mirror):
    works = iter_works(str(mirror))
    next(works)
    for name in FILES:
        (mirror / name).unlink()
    with pytest.raises(StopIteration):
        next(works)


# Index ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [index_csv(ROWS), index_zip(ROWS)], ids=["csv", "zip"])
def test_the_index_gives_free_works_by_author(data):
    entries = read_index(data, "index")
    assert entries == [
        Entry("cards/000001/files/1_ruby.zip", "000001", "山田一", "坂の上", "modern"),
        Entry("cards/000001/files/2_ruby.zip", "000001", "山田一", "海の底", "old"),
        Entry("cards/000002/files/3_ruby.zip", "000002", "川田二葉", "川の話", "modern"),
        Entry("cards/000001/files/3_ruby.zip", "000001", "山田一", "川の話", "modern"),
        Entry("https://example.org/a.zip", "000002", "川田二葉", "よそにある話", "modern"),
    ]


def test_a_work_of_two_authors_is_read_once():
    rows = [row("3", "川の話", "000002", KAWADA), row("3", "川の話", "000001", YAMADA)]
    for one in rows:
        one["テキストファイルURL"] = f"{ROOT}/cards/000002/files/3_ruby.zip"
    entries = read_index(index_csv(rows), "index")
    assert [entry.author for entry in select(entries, Query())] == ["川田二葉"]
    assert [entry.author for entry in select(entries, Query(author="山田一"))] == ["山田一"]


def test_a_path_that_leads_out_of_the_mirror_is_no_path():
    url = f"{ROOT}/cards/../../secret.zip"
    (entry,) = read_index(index_csv([row("1", "坂", "000001", YAMADA, テキストファイルURL=url)]), "index")
    assert entry.path == url


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (index_csv(ROWS).replace("作品名".encode(), b"title"), "no column 作品名"),
        (b"PK broken", "not a readable index"),
        ("作品名".encode("shift_jis"), "not a readable index"),
    ],
)
def test_what_is_no_index_is_refused_by_name(data, message):
    with pytest.raises(TsugikiError, match=f"^here: {message}"):
        read_index(data, "here")


# A site --------------------------------------------------------------------------------------------------


@dataclass
class Stub:
    """A site that answers from `files` and fails as often as `failures` says, with that status."""

    url: str
    files: dict[str, bytes]
    failures: dict[str, list[int]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def stub() -> Iterator[Stub]:
    files = {f"/{name}": data for name, data in FILES.items()}
    files[f"/index_pages/{INDEX}.zip"] = index_zip(ROWS[:3])
    site = Stub("", files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked[self.path] += 1
            failures = site.failures.get(self.path, [])
            status = failures.pop(0) if failures else 200 if self.path in site.files else 404
            body = site.files[self.path] if status == 200 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def site_works(stub: Stub, cache: Path) -> tuple[list[Work], list[str]]:
    site = Site(stub.url, cache, pause=0.0)
    skipped: list[str] = []
    return list(read_entries(site, site.entries(), Query(), skipped.append)), skipped


def test_a_site_is_read_through_its_index_once(stub, tmp_path):
    works, skipped = site_works(stub, tmp_path)
    assert [(w.title, w.author, w.kana) for w in works] == [
        ("坂の上", "山田一", "modern"),
        ("海の底", "山田一", "old"),
        ("川の話", "川田二葉", "modern"),
    ]
    assert works[0].source == f"{stub.url}/cards/000001/files/1_ruby.zip"
    assert skipped == []
    assert site_works(stub, tmp_path) == (works, skipped)
    assert set(stub.asked.values()) == {1}
    assert len(stub.asked) == 4
    assert not list(tmp_path.rglob("*.part"))


def test_an_interrupted_run_goes_on_where_it_was(stub, tmp_path):
    site = Site(stub.url, tmp_path, pause=0.0)
    next(read_entries(site, site.entries(), Query(), pytest.fail))
    assert sum(stub.asked.values()) == 2
    site_works(stub, tmp_path)
    assert set(stub.asked.values()) == {1}
    assert len(stub.asked) == 4


def test_a_site_that_stumbles_is_asked_again(stub, tmp_path):
    stub.failures["/cards/000001/files/1_ruby.zip"] = [503]
    stub.failures[f"/index_pages/{INDEX}.zip"] = [500, 429]
    works, skipped = site_works(stub, tmp_path)
    assert (len(works), skipped) == (3, [])
    assert stub.asked["/cards/000001/files/1_ruby.zip"] == 2
    assert stub.asked[f"/index_pages/{INDEX}.zip"] == 3


def test_missing_broken_and_failing_files_are_skipped(stub, tmp_path):
    del stub.files["/cards/000001/files/1_ruby.zip"]
    stub.files["/cards/000001/files/2_ruby.zip"] = b"PK nonsense"
    works, skipped = site_works(stub, tmp_path)
    assert [work.title for work in works] == ["川の話"]
    assert [reason.removeprefix(stub.url) for reason in skipped] == [
        "/cards/000001/files/1_ruby.zip: the site answers 404; leave it out or try later",
        "/cards/000001/files/2_ruby.zip: a broken zip (File is not a zip file); fetch it again or delete it",
    ]
    # A missing file is not asked for again at once; a broken one is not kept.
    assert stub.asked["/cards/000001/files/1_ruby.zip"] == 1
    stub.files["/cards/000001/files/2_ruby.zip"] = FILES["cards/000001/files/2_ruby.zip"]
    stub.failures["/cards/000001/files/1_ruby.zip"] = [503] * 9
    works, skipped = site_works(stub, tmp_path)
    assert [work.title for work in works] == ["海の底", "川の話"]
    assert "answers 503" in skipped[0]


def test_files_kept_elsewhere_are_skipped_without_a_request(stub, tmp_path):
    stub.files[f"/index_pages/{INDEX}.zip"] = index_zip([ROWS[0], ROWS[6]])
    works, skipped = site_works(stub, tmp_path)
    assert len(works) == 1
    assert "https://example.org/a.zip: kept at another site" in skipped[0]


def test_a_site_out_of_reach_is_one_line(tmp_path):
    with pytest.raises(Unreachable, match="http://127.0.0.1:9/index_pages/.*cannot be reached") as caught:
        Site("http://127.0.0.1:9", tmp_path, pause=0.0).entries()
    assert "\n" not in str(caught.value)


def test_a_site_that_goes_away_ends_the_run(stub, tmp_path):
    site = Site(stub.url, tmp_path, pause=0.0)
    works = read_entries(site, site.entries(), Query(), pytest.fail)
    next(works)
    site.url = "http://127.0.0.1:9"
    with pytest.raises(Unreachable, match="run again: what was fetched is kept"):
        next(works)


def test_the_index_is_fetched_again_after_a_week_if_it_can_be(stub, tmp_path):
    site_works(stub, tmp_path)
    (kept,) = tmp_path.rglob(f"{INDEX}.zip")
    os.utime(kept, (0, 0))
    stub.files[f"/index_pages/{INDEX}.zip"] = index_zip(ROWS[:2])
    assert len(Site(stub.url, tmp_path, pause=0.0).entries()) == 2
    os.utime(kept, (0, 0))
    site = Site(stub.url, tmp_path, pause=0.0)
    site.url = "http://127.0.0.1:9"
    assert len(site.entries()) == 2


def test_requests_keep_their_distance(stub, tmp_path, monkeypatch):
    now = 100.0
    times: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        times.append(now)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    stub.failures["/cards/000001/files/1_ruby.zip"] = [503, 503]
    site = Site(stub.url, tmp_path)
    assert len(list(read_entries(site, site.entries(), Query(), pytest.fail))) == 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == [0.5, 0.5, 1.0, 0.5, 0.5]


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("aozora") == tmp_path / "tsugiki" / "aozora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("aozora") == tmp_path / "home" / ".cache" / "tsugiki" / "aozora"


# Writing -------------------------------------------------------------------------------------------------


def test_one_json_line_a_work(mirror, tmp_path):
    out = tmp_path / "works.jsonl"
    totals = write_works(iter_works(str(mirror)), out)
    lines = out.read_bytes().decode("utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "title": "坂の上",
        "author": "山田一",
        "text": "　上ったと思う。",
        "source": "cards/000001/files/1_ruby.zip",
        "person_id": "000001",
        "kana": "modern",
    }
    assert "坂の上" in lines[0]  # as it is, not escaped
    assert len(lines) == 3
    assert (totals.works, totals.characters, totals.unresolved) == (3, 21, 1)


def test_a_target_is_never_overwritten_or_half_written(mirror, tmp_path):
    out = tmp_path / "works.jsonl"

    def works() -> Iterator[Work]:
        yield next(iter_works(str(mirror)))
        raise TsugikiError("gone")

    with pytest.raises(TsugikiError, match="gone"):
        write_works(works(), out)
    assert list(tmp_path.glob("works.jsonl*")) == []
    out.write_text("mine")
    with pytest.raises(TsugikiError, match="exists already; choose another --out"):
        write_works(works(), out)
    assert out.read_text() == "mine"
    with pytest.raises(TsugikiError, match="no folder"):
        check_target(tmp_path / "none" / "works.jsonl")


def test_only_zips_in_the_files_folders_are_works(mirror):
    (mirror / "cards/000001/files/readme.txt").write_text("no work")
    (mirror / "cards/000001/other").mkdir()
    (mirror / "cards/000001/other/1.zip").write_bytes(FILES["cards/000001/files/1_ruby.zip"])
    assert len(Folder(mirror).entries()) == 3


@pytest.mark.slow
def test_the_mirror_by_its_manifest(aozora_mirror):
    place = Folder(aozora_mirror)
    entries = place.entries()
    assert len(entries) == 4450
    assert len({entry.person_id for entry in entries}) == 21
    chosen = select(entries, Query(author="夏目漱石", kana="modern"))
    works = list(read_entries(place, chosen, Query(author="夏目漱石", kana="modern"), pytest.fail))
    assert len(works) == len(chosen) > 90
    assert {work.person_id for work in works} == {"000148"}
    with pytest.raises(TsugikiError, match="did you mean 夏目漱石"):
        select(entries, Query(author="夏目　激石"))
