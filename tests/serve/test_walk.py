"""The whole way in the browser, in both languages and two widths: from a text to a talk and to a file."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
import tsugiki.serve.page as page_module
from tests.serve.chromium import marks, open_page, violations
from tests.serve.workspace import Place, serve_in
from tests.tiny import TEXT

pytestmark = marks
MESSAGES = Path(page_module.__file__).with_name("page") / "messages"
WAIT = 300_000  # ms


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, own_files: tuple[str, Path]) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("outside") / "work"
    directory.mkdir()
    yield from serve_in(directory, own_files)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_from_a_text_to_a_talk(browser: Any, place: Place, problems: list[str], tmp_path: Path, lang: str, width: int):
    page = open_page(browser, f"{place.running.url}/#train", problems, lang, width)
    page.set_default_timeout(WAIT)
    said = {part: json.loads((MESSAGES / f"{part}.{lang}.json").read_text()) for part in ("train", "runs", "adapters")}
    seen: list[str] = []

    def button(part: str, key: str, inside: str = "body") -> Any:
        return page.locator(inside).get_by_role("button", name=said[part][key], exact=True)

    def label(key: str) -> Any:
        return page.get_by_label(said["train"][key], exact=True)

    def look(name: str) -> None:
        seen.append(name)
        page.screenshot(path=tmp_path / f"{len(seen)}-{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert violations(page) == [], name

    button("train", "sent.use").wait_for()
    look("empty")
    label("sent.paste").fill(TEXT * 2)
    button("train", "sent.use").click()
    page.locator("[data-result=preview] mark.target").first.wait_for()
    look("preview")
    name = f"walk-{lang}-{width}"
    label("name").fill(name)
    page.locator(".length input").fill("4")
    label("prompts").fill("branch")
    page.locator("summary", has_text=said["train"]["more"]).click()
    label("block_size").fill("32")
    page.get_by_text("epochs: 4").wait_for()
    button("train", "plan").click()
    page.locator("[data-result=plan] tbody tr").first.wait_for()
    look("plan")
    button("train", "start").click()

    page.locator("[data-view=runs] .plot svg").wait_for()
    look("curve")
    button("runs", "talk").click()
    page.locator("[data-view=talk] .composer textarea").first.fill("on the")
    page.keyboard.press("Control+Enter")
    page.locator(".answer[data-state=done]").nth(1).wait_for()
    assert page.locator(".answer h2").all_inner_texts() == ["base", f"runs/{name}"]
    look("talk")

    page.evaluate("name => (location.hash = `runs/${encodeURIComponent(name)}`)", f"runs/{name}")
    page.locator("[data-state=finished]").wait_for()
    look("finished")
    button("runs", "keep").click()
    look("keep")
    page.locator("dialog input").fill(f"kept-{lang}-{width}")
    button("runs", "keep", "dialog").click()
    page.locator("[data-view=adapters] h1", has_text=f"kept-{lang}-{width}").wait_for()
    page.locator(".facts").wait_for()
    look("kept")
    files = {}
    for kind in ("zip", "gguf"):
        with page.expect_download() as download:
            button("adapters", f"save_{kind}").click()
        files[kind] = Path(download.value.path()).read_bytes()
    assert files["gguf"][:4] == b"GGUF"
    with zipfile.ZipFile(io.BytesIO(files["zip"])) as archive:
        kept = place.running.library / f"kept-{lang}-{width}" / "adapter_model.safetensors"
        assert archive.read(f"kept-{lang}-{width}/adapter_model.safetensors") == kept.read_bytes()
    print(f"screenshots: {tmp_path}")
    assert [one for one in problems if not re.search("axe", one)] == []
