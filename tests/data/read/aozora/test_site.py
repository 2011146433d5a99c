"""Reading works from a test server on 127.0.0.1 that counts requests."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.data.read.aozora.samples import FILES, ROWS, index_zip
from tests.errors import assert_refused
from tsugiki.data import INDEX, Query, Site, SiteUnreachable, Work, read_entries
from tsugiki.data.read.aozora import site as site_module


class Stub(ThreadingHTTPServer):
    """A server with `files`, whose requests fail as `failures` defines."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {f"/{name}": data for name, data in FILES.items()}
        self.files[f"/index_pages/{INDEX}.zip"] = index_zip(ROWS[:3])
        self.failures: dict[str, list[int]] = {}
        self.asked = Counter[str]()


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        site = self.server
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


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.shutdown()
        thread.join()


def site_works(stub: Stub, cache: Path, missing: Callable[[str], None] | None = None) -> tuple[list[Work], list[str]]:
    site = Site(stub.url, cache, pause=0.0)
    skipped: list[str] = []
    return list(read_entries(site, site.entries(), Query(), skipped.append, missing)), skipped


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


@pytest.mark.parametrize("name", ["cards/000001/files/1_ruby.zip", f"index_pages/{INDEX}.zip"])
def test_a_cached_file_that_was_damaged_is_downloaded_again(stub, tmp_path, name):
    works, _ = site_works(stub, tmp_path)
    (cached,) = tmp_path.rglob(name)
    data = bytearray(cached.read_bytes())
    data[len(data) // 3] ^= 1
    cached.write_bytes(data)
    assert site_works(stub, tmp_path) == (works, [])
    assert stub.asked[f"/{name}"] == 2
    assert cached.read_bytes() == stub.files[f"/{name}"]
    assert sum(stub.asked.values()) == 5


def test_failed_requests_are_repeated_and_files_that_are_missing_or_too_large_are_not(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(site_module, "MAX_ZIP", 1000)
    first, second = (f"/cards/000001/files/{number}_ruby.zip" for number in "12")
    stub.failures = {first: [503], f"/index_pages/{INDEX}.zip": [500, 429]}
    stub.files[second] = bytes(2000)
    works, skipped = site_works(stub, tmp_path)
    assert (len(works), stub.asked[first], stub.asked[f"/index_pages/{INDEX}.zip"]) == (2, 2, 3)
    assert "2_ruby.zip has more than 1.0 kB" in skipped[0]
    del stub.files[second]
    assert_refused(f"{INDEX}.csv: line 3: .*2_ruby.zip: .* 404; .*--skip-missing", site_works, stub, tmp_path)
    assert stub.asked[second] == 2


def test_missing_and_damaged_files_are_skipped_and_others_downloaded_once(stub, tmp_path):
    del stub.files["/cards/000001/files/1_ruby.zip"]
    stub.files["/cards/000001/files/2_ruby.zip"] = b"<html>busy</html>"
    missing: list[str] = []
    works, skipped = site_works(stub, tmp_path, missing.append)
    assert [work.title for work in works] == ["川の話"]
    (damaged,) = skipped
    assert damaged.startswith(f"{stub.url}/cards/000001/files/2_ruby.zip: a damaged zip")
    (absent,) = missing
    assert f"line 2: {stub.url}/cards/000001/files/1_ruby.zip: the site answers 404" in absent
    # The damaged file is not cached.
    stub.files["/cards/000001/files/2_ruby.zip"] = FILES["cards/000001/files/2_ruby.zip"]
    works, skipped = site_works(stub, tmp_path, missing.append)
    assert [work.title for work in works] == ["海の底", "川の話"]
    assert stub.asked["/cards/000002/files/3_ruby.zip"] == 1


@pytest.mark.parametrize("status", [403, 429, 503])
def test_an_error_status_ends_the_run_and_keeps_downloaded_files(stub, tmp_path, status):
    stub.failures["/cards/000001/files/2_ruby.zip"] = [status] * 4
    with pytest.raises(SiteUnreachable, match=f"2_ruby.zip: .*{status}"):
        site_works(stub, tmp_path, pytest.fail)
    del stub.failures["/cards/000001/files/2_ruby.zip"]
    assert len(site_works(stub, tmp_path)[0]) == 3
    assert stub.asked["/cards/000001/files/1_ruby.zip"] == 1
    assert stub.asked["/cards/000001/files/2_ruby.zip"] == (2 if status == 403 else 5)


def test_a_site_that_becomes_unreachable_ends_the_run(stub, tmp_path):
    site = Site(stub.url, tmp_path, pause=0.0)
    works = read_entries(site, site.entries(), Query(), pytest.fail)
    next(works)
    site.url = "http://127.0.0.1:9"
    with pytest.raises(SiteUnreachable, match="again later"):
        next(works)


def test_the_index_is_downloaded_again_after_a_week(stub, tmp_path):
    site_works(stub, tmp_path)
    (kept,) = tmp_path.rglob(f"{INDEX}.zip")
    os.utime(kept, (0, 0))
    stub.files[f"/index_pages/{INDEX}.zip"] = index_zip(ROWS[:2])
    assert len(Site(stub.url, tmp_path, pause=0.0).entries()) == 2
    os.utime(kept, (0, 0))
    site = Site(stub.url, tmp_path, pause=0.0)
    site.url = "http://127.0.0.1:9"
    assert len(site.entries()) == 2
