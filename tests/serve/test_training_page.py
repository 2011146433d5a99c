"""A run in the browser: choose texts, preview, plan, start, see the curve grow, stop, resume, finished."""

import re
from typing import Any

import pytest

pytest.importorskip("starlette")
from tests.serve.chromium import marks, open_page
from tests.serve.workspace import Place
from tests.tiny import TEXT
from tsugiki.io import checkpoint_step, checkpoints

pytestmark = marks
WAIT = 300_000  # ms


@pytest.fixture
def place(own_place: Place) -> Place:
    return own_place


@pytest.fixture
def page(place: Place, browser: Any, problems: list[str]) -> Any:
    page = open_page(browser, f"{place.running.url}/#train", problems)
    page.set_default_timeout(WAIT)
    return page


def remove(page: Any, name: str) -> None:
    """Remove a text that was sent, and answer the question."""
    page.get_by_role("button", name=f"Remove {name}").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("checkbox", name=name).wait_for(state="detached")


def test_a_run_from_its_texts_to_its_end(place: Place, page: Any):
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
    page.get_by_role("button", name="Start").click()

    page.locator("[data-view=runs] .plot svg").first.wait_for()
    while page.locator("progress").evaluate("bar => bar.value") <= 20:  # the page's policy forbids to wait in it
        page.wait_for_timeout(100)
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
    assert re.match(r"[\d,]+: held-out, with its 95 % interval", page.locator(".readout").first.inner_text())
    page.get_by_role("button", name="日本語").click()
    page.get_by_text("生成例").first.wait_for()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_pasted_text_has_a_plain_name(place: Place, page: Any):
    page.get_by_label("Or paste a text").fill(f"１\n\n{TEXT}")
    page.get_by_role("button", name="Use this text").click()
    page.locator("[data-result=preview] mark.target").first.wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "pasted"
    shown = page.locator("main").inner_text()
    assert str(place.running.library) not in shown.replace(page.locator(".will").inner_text(), "")
    remove(page, "pasted.txt")


def test_a_text_is_dropped_planned_with_each_base_and_removed(place: Place, page: Any):
    page.locator("div.drop").wait_for()
    dropped = page.evaluate_handle(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "dropped.txt", { type: "text/plain" }));
            return data;
        }""",
        TEXT * 2,
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
    rows = page.locator("[data-result=compare] tbody tr")
    rows.nth(1).wait_for()
    assert "GB" in rows.nth(0).inner_text()

    remove(page, "dropped.txt")
    assert not file.exists()


def test_a_reload_keeps_what_was_filled_in(page: Any):
    from playwright.sync_api import expect

    columns = (page.get_by_role("button", name=name, exact=True) for name in ("frage", "antwort"))
    page.locator(".drop input").set_input_files(
        {"name": "own.csv", "mimeType": "text/csv", "buffer": b"frage,antwort\nwhat?,this\nwhere?,here\n"}
    )
    for column in columns:
        column.click()
    page.get_by_label("Or paste a text").fill("a text that took an hour")
    page.get_by_label("Name", exact=True).fill("own-name")
    page.locator("summary", has_text="More settings").click()
    page.get_by_label("Tokens per row").fill("32")
    page.reload()
    expect(page.get_by_role("checkbox", name="own.csv")).to_be_checked()
    expect(page.get_by_role("button", name="antwort", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Or paste a text")).to_have_value("a text that took an hour")
    expect(page.get_by_label("Name", exact=True)).to_have_value("own-name")
    expect(page.get_by_label("Tokens per row")).to_have_value("32")


def test_what_cannot_be_learned_is_answered_in_words_and_nothing_is_lost(page: Any, problems: list[str]):
    equal = b'{"prompt": "a?", "chosen": "same", "rejected": "same"}\n' * 9
    brought = {"picture.txt": bytes(range(256)), "pairs.jsonl": equal}
    said = {"picture.txt": "not text", "pairs.jsonl": "both answers have the same tokens"}

    def bring(name: str, content: bytes) -> None:
        page.locator(".drop input").set_input_files({"name": name, "mimeType": "text/plain", "buffer": content})

    for name, content in brought.items():
        bring(name, content)
        problem = page.locator("[data-found] [role=alert]")
        problem.get_by_text(said[name]).wait_for()
        assert "--" not in problem.inner_text()
        assert page.get_by_role("button", name="Start").is_disabled()
        page.get_by_role("button", name=f"Do not use {name}").click()
        page.locator("[data-state]").first.wait_for(state="detached")

    bring("sizes.csv", b"id,size\n1,2\n")
    page.get_by_text("Choose the columns first").wait_for()
    page.get_by_role("button", name="Do not use sizes.csv").click()

    files = "**/v1/files"
    page.route(files, lambda route: route.abort())  # the server stops while a text is sent
    page.get_by_label("Or paste a text").fill("a text that took an hour")
    page.get_by_role("button", name="Use this text").click()
    page.get_by_text("The server does not answer").wait_for()
    assert page.get_by_label("Or paste a text").input_value() == "a text that took an hour"

    page.unroute(files)
    limits = {"sent": {"suffixes": ".txt", "largest": 9, "size": "9 B"}}
    page.route("**/train/options", lambda route: route.fulfill(json={**route.fetch().json(), **limits}))
    page.reload()
    bring("large.txt", b"0123456789")
    page.get_by_text("large.txt is larger than").wait_for()
    problems[:] = [one for one in problems if not one.startswith("Failed to load resource")]  # as the test wants it
