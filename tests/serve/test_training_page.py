"""A run in the browser: choose texts, preview, plan, start, see the curve grow, stop, resume, finished."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
from tests.serve.chromium import marks
from tests.serve.workspace import Place, serve_in
from tsugiki.io import checkpoint_step, checkpoints

pytestmark = marks
WAIT = 300_000  # ms


@pytest.fixture
def place(tmp_path: Path, served_files: tuple[str, Path]) -> Iterator[Place]:
    (tmp_path / "work").mkdir()
    yield from serve_in(tmp_path / "work", served_files)


@pytest.fixture
def page(place: Place, browser: Any) -> Any:
    page = browser.new_context(locale="en").new_page()
    page.set_default_timeout(WAIT)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"{place.running.url}/#train")
    return page


def test_a_run_from_its_texts_to_its_end(place: Place, page: Any, tmp_path: Path):
    page.locator("summary", has_text="Texts in a folder").click()
    page.get_by_role("button", name="novels/").click()
    for number in range(4):
        page.get_by_label(f"{number}.txt").check()
    page.get_by_label("Name", exact=True).fill("first")
    page.locator(".length input").fill("60")
    page.get_by_label("Prompts").fill("branch")
    page.locator("summary", has_text="More settings").click()
    page.get_by_label("Tokens per row").fill("32")
    page.get_by_text("epochs: 60").wait_for()
    assert page.locator("[data-result=preview] mark.target").first.inner_text()
    page.get_by_role("button", name="Plan").click()
    assert page.locator("[data-result=plan] tbody tr").first.inner_text()
    page.screenshot(path=tmp_path / "train.png", full_page=True)
    page.get_by_role("button", name="Start").click()

    page.locator("[data-view=runs] .plot svg").first.wait_for()
    while page.locator("progress").evaluate("bar => bar.value") <= 20:  # the page's policy forbids to wait in it
        page.wait_for_timeout(100)
    page.screenshot(path=tmp_path / "running.png", full_page=True)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    page.locator("[data-state=stopped]").wait_for()
    stopped = place.get("run", name="runs/first").json()
    assert 20 < stopped["step"] < stopped["steps"]
    saved = checkpoints(place.directory / "runs" / "first" / "checkpoints")
    assert checkpoint_step(saved[-1]) >= stopped["step"]  # the record is written once a second

    page.get_by_role("button", name="Resume").click()
    page.locator("[data-state=finished]").wait_for()
    assert (place.directory / "runs" / "first" / "adapter_model.safetensors").is_file()
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    assert re.match(r"[\d,]+: training", page.locator(".readout").first.inner_text())
    page.screenshot(path=tmp_path / "finished.png", full_page=True)
    page.get_by_role("button", name="日本語").click()
    page.get_by_text("生成例").first.wait_for()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.problems == []


def test_a_pasted_text_has_a_plain_name(place: Place, page: Any):
    page.get_by_label("Or paste a text").fill(
        "１\n\n" + (place.directory / "texts" / "a.txt").read_text(encoding="utf-8")
    )
    page.get_by_role("button", name="Use this text").click()
    page.locator("[data-result=preview] mark.target").first.wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "pasted"
    shown = page.locator("main").inner_text()
    assert str(place.running.library) not in shown.replace(page.locator(".will").inner_text(), "")
    page.get_by_role("button", name="Remove pasted.txt").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("checkbox", name="pasted.txt").wait_for(state="detached")
    assert page.problems == []


def test_a_text_is_dropped_planned_with_each_base_and_removed(place: Place, page: Any):
    page.locator("div.drop").wait_for()
    dropped = page.evaluate_handle(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "dropped.txt", { type: "text/plain" }));
            return data;
        }""",
        (place.directory / "texts" / "a.txt").read_text(encoding="utf-8") * 2,
    )
    page.locator("div.drop").dispatch_event("drop", {"dataTransfer": dropped})
    page.locator("[data-result=preview] mark.target").first.wait_for()
    assert page.get_by_role("checkbox", name="dropped.txt").is_checked()
    (file,) = place.running.library.rglob("dropped.txt")

    page.get_by_label("Name", exact=True).fill("dropped")
    page.locator("summary", has_text="More settings").click()
    page.get_by_label("Tokens per row").fill("32")
    page.get_by_text("block_size: 32").wait_for()
    page.get_by_role("button", name="Compare bases").click()
    rows = page.locator("[data-result=bases] tbody tr")
    rows.nth(1).wait_for()
    assert "GB" in rows.nth(0).inner_text()

    page.get_by_role("button", name="Remove dropped.txt").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("checkbox", name="dropped.txt").wait_for(state="detached")
    assert not file.exists()
    assert page.problems == []


def test_what_cannot_be_learned_is_answered_in_words_and_nothing_is_lost(page: Any):
    turns = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    equal = [{"prompt": f"{number}?", "chosen": "same", "rejected": "same"} for number in range(9)]
    brought = {
        "picture.txt": (bytes(range(256)), "not text"),
        "fake.zip": (b"no zip", "damaged zip"),
        "talk.jsonl": (json.dumps({"messages": turns}).encode(), "put the user's turn before it"),
        "pairs.jsonl": ("\n".join(map(json.dumps, equal)).encode(), "both answers have the same tokens"),
    }
    choose = page.locator(".drop input")
    for name, (content, said) in brought.items():
        choose.set_input_files({"name": name, "mimeType": "text/plain", "buffer": content})
        problem = page.locator("[data-found] [role=alert]")
        problem.get_by_text(said).wait_for()
        assert "--" not in problem.inner_text()
        assert page.get_by_role("button", name="Start").is_disabled()
        page.get_by_role("button", name=f"Do not use {name}").click()
        page.locator("[data-state]").first.wait_for(state="detached")

    choose.set_input_files({"name": "sizes.csv", "mimeType": "text/plain", "buffer": b"id,size\n1,2\n"})
    page.get_by_text("Choose the columns first").wait_for()
    page.get_by_role("button", name="Do not use sizes.csv").click()

    page.route("**/train/uploads?*", lambda route: route.abort())  # the server stops while a text is sent
    page.get_by_label("Or paste a text").fill("a text that took an hour")
    page.get_by_role("button", name="Use this text").click()
    page.get_by_text("The server does not answer").wait_for()
    assert page.get_by_label("Or paste a text").input_value() == "a text that took an hour"

    page.route("**/train/uploads", lambda route: route.fulfill(json={"files": [], "suffixes": [".txt"], "largest": 9}))
    page.reload()
    choose.set_input_files({"name": "large.txt", "mimeType": "text/plain", "buffer": b"0123456789"})
    page.get_by_text("large.txt is larger than").wait_for()
    assert page.problems == []
