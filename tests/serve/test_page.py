"""The page's files, their headers and texts, and what its requests must carry."""

import hashlib
import json
import re
from pathlib import Path

import httpx2
import pytest

from tests.serve.conftest import Running

pytest.importorskip("starlette")
import tsugiki.serve.page as page_module
from tsugiki.serve import page_files

FOLDER = Path(page_module.__file__).with_name("page")
VENDOR = FOLDER / "vendor"
SCRIPTS = sorted(path for path in FOLDER.rglob("*.js") if path.parent != VENDOR)
PARTS = sorted({path.name.split(".")[0] for path in (FOLDER / "messages").iterdir()})


def test_files(server: Running):
    for address, path in page_files().items():
        answer = httpx2.get(server.url + address)
        assert answer.status_code == 200
        assert "'unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        if address != "/":
            assert answer.content == path.read_bytes()
    for other in ("/page/", "/page/index.html", "/page/%2e%2e/app.py", "/page//style.css", "/app.js"):
        assert httpx2.get(server.url + other).status_code == 404


def test_a_file_that_the_browser_has_is_not_sent_again(server: Running):
    tags = set()
    with httpx2.Client() as client:
        for address in page_files():
            plain = client.get(server.url + address, headers={"Accept-Encoding": "identity"})
            packed = client.get(server.url + address, headers={"Accept-Encoding": "br, gzip"})
            assert plain.content == packed.content
            encodings = [answer.headers.get("content-encoding") for answer in (plain, packed)]
            assert encodings == [None, "gzip"]
            assert packed.num_bytes_downloaded < max(500, 0.6 * len(plain.content)), address
            tag = plain.headers["etag"]
            tags.add(tag)
            for known, status in (tag, 304), (f'"a", {tag.removeprefix("W/")}', 304), ('"a"', 200), ("W/", 200):
                answer = client.get(server.url + address, headers={"If-None-Match": known})
                assert answer.status_code == status
                assert (answer.headers["etag"], answer.headers["vary"]) == (tag, "Accept-Encoding")
                assert bool(answer.content) == (status == 200)
    assert len(tags) == len(page_files())  # a tag is that of one content


def imported(path: Path, found: set[Path]) -> set[Path]:
    """Return a module with all that it imports, at first or later."""
    if path not in found:
        found.add(path)
        for name in re.findall(r'^import [^;]*from "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            imported((path.parent / name).resolve(), found)
    return found


def test_modules_of_the_first_view_are_loaded_at_once():
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    listed = re.findall(r'<link rel="modulepreload" href="/page/([^"]+)">', index)
    needed = imported(FOLDER / "views/talk.js", imported(FOLDER / "app.js", set()))
    assert sorted([*listed, "app.js"]) == sorted(path.relative_to(FOLDER).as_posix() for path in needed)


def test_nothing_comes_from_elsewhere():
    index = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|<script>|\son\w+=|\sstyle=", index) == []
    for path in [*SCRIPTS, FOLDER / "index.html", *FOLDER.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/)", text) == [], path
        markup = r"\.(?:inner|outer)HTML|SetInnerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert re.findall(markup, text) == []


def test_software_of_others_is_as_its_packages_have_it_and_licensed():
    noted = (VENDOR / "README.md").read_text(encoding="utf-8")
    for path in VENDOR.glob("*.js"):
        (line,) = (line for line in noted.splitlines() if line.startswith(f"| `{path.name}`"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() in line
        licences = re.findall(r"`(LICENSE-\w+)`", line)
        assert licences
        assert all((VENDOR / name).is_file() for name in licences)


def test_the_token(server: Running):
    token = re.findall(r'name="page-token" content="([\w-]{43})"', httpx2.get(server.url).text)[0]
    for method in ("POST", "PUT", "DELETE"):
        for given, status in ({}, 403), ({"X-Page-Token": token[:-1]}, 403), ({"X-Page-Token": token}, 405):
            asked = httpx2.request(method, f"{server.url}/page/api/models", json={}, headers=given)
            assert asked.status_code == status


def test_a_link_on_another_site_leads_to_the_page_only(server: Running):
    foreign = {"Sec-Fetch-Site": "cross-site"}
    for path, status in (("/", 200), ("/page/style.css", 200), ("/page/api/models", 403), ("/v1/models", 403)):
        answer = httpx2.get(server.url + path, headers=foreign)
        assert answer.status_code == status
        if status == 200:  # the other site cannot read it
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_models(server: Running):
    answer = httpx2.get(server.url + "/page/api/models").json()
    assert answer["base"] == {"name": "base", "chat": False, "repetition_penalty": 1.0}
    chats = {one["name"]: one["chat"] for one in answer["adapters"]}
    assert (chats["poet"], chats["歌人"]) == (False, True)
    assert not any(one["given"] for one in answer["adapters"])


def test_errors_are_in_the_language_of_the_page(server: Running):
    for lang, said in ("en", "nothing"), ("ja", "ありません"):
        answer = httpx2.get(f"{server.url}/page/none", headers={"Accept-Language": lang})
        assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("part", PARTS)
def test_texts(part: str):
    texts = [FOLDER / "messages" / f"{part}.{lang}.json" for lang in ("en", "ja")]
    english, japanese = (json.loads(path.read_text(encoding="utf-8")) for path in texts)
    assert list(english) == list(japanese)
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", japanese[key])), key
    view = [FOLDER / f"views/{part}.js", *FOLDER.glob(f"views/{part}/*.js")]
    files = [FOLDER / name for name in ("app.js", "ui.js", "chart.js")] if part == "shell" else view
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    frame = json.loads((FOLDER / "messages" / "shell.en.json").read_text(encoding="utf-8"))
    assert set(re.findall(r'\bt\("([\w.]+)"', source)) <= {*english, *frame}
