"""The view Runs in Chromium: a queue, a failed run that is started again, runs in one chart, and deleting."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")
from tests.serve.chromium import marks, open_page, violations
from tests.serve.workspace import Place, write_run
from tsugiki.serve import LOG_FILE

pytestmark = marks
WAIT = 300_000  # ms
LOOKS = [("en", 1280), ("ja", 390)]


@pytest.fixture
def place(own_place: Place) -> Place:
    return own_place


@pytest.fixture
def opened(browser: Any, place: Place, problems: list[str]) -> Any:
    """Open the list of the runs, or one of them."""
    url = f"{place.running.url}/#runs"
    return lambda run="", *look: open_page(browser, f"{url}/{quote(run, safe='')}" if run else url, problems, *look)


def look(page: Any, name: str, folder: Path) -> None:
    """Take a picture; nothing is wider than the window, and axe-core finds nothing."""
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], name
    assert violations(page) == [], name


def begin(place: Place, name: str, epochs: int) -> Any:
    """Start a run as the form does, and return the answer."""
    texts = [f"novels/{number}.txt" for number in range(4)]
    settings = {"epochs": epochs, "block_size": 32, "batch_size": 2}
    return place.begin(name=name, texts=texts, base=place.running.base, **settings).json()["run"]


def fail(folder: Path, words: str, step: int | None = None) -> None:
    """Let a run have failed, with a checkpoint or without."""
    (folder / LOG_FILE).write_text(f"step 4 of 10\ntsugiki: {words}\n", encoding="utf-8")
    if step is not None:
        (folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)


def test_runs_wait_for_each_other(opened: Any, place: Place, tmp_path: Path):
    from playwright.sync_api import expect

    assert begin(place, "first", 400)["place"] is None
    assert [begin(place, name, 1)["place"] for name in ("second", "third", "fourth")] == [1, 2, 3]
    page = opened()
    page.set_default_timeout(WAIT)
    rows = page.locator(".queue li a")
    expect(rows).to_have_text(["runs/second", "runs/third", "runs/fourth"])
    page.get_by_role("button", name="Take runs/second out").click()
    expect(rows).to_have_text(["runs/third", "runs/fourth"])
    look(page, "queue", tmp_path)

    rows.nth(1).click()
    page.get_by_text("Place 2 in the queue. It begins by itself when runs/third ends.").wait_for()
    page.locator("summary", has_text="Plan").click()
    page.locator(".plan tbody tr").first.wait_for()
    look(page, "queued", tmp_path)
    page.goto(f"{place.running.url}/#runs/runs%2Ffirst")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    page.locator("[data-state=stopped]").wait_for()
    page.goto(f"{place.running.url}/#runs")
    for name in ("third", "fourth"):  # one after the other, by themselves
        page.locator(".run", has_text=f"runs/{name}").locator("[data-state=finished]").wait_for()


@pytest.mark.parametrize(("lang", "width"), LOOKS)
def test_a_failed_run_has_its_reason_and_a_button(opened: Any, place: Place, tmp_path: Path, lang: str, width: int):
    from playwright.sync_api import expect

    fail(write_run(place.directory, "runs/bad"), "the base is broken")
    fail(write_run(place.directory, "runs/full"), "cannot write x: No space left on device", 4)
    said = {"en": ("Resume", "Again with other settings…"), "ja": ("再開", "設定を変えてもう一度…")}[lang]
    page = opened("runs/full", lang, width)
    page.get_by_role("alert").wait_for()
    assert page.locator("button.primary").inner_text() == said[0]
    assert "No space" not in page.get_by_role("alert").inner_text()
    look(page, "full", tmp_path)
    page.goto(f"{place.running.url}/#runs/runs%2Fbad")
    page.get_by_text("the base is broken").first.wait_for()
    assert page.locator("button.primary").inner_text() == said[1]
    look(page, "bad", tmp_path)
    page.locator("button.primary").click()  # the run has its record alone
    page.wait_for_url("**/#train")  # it is filled in, once
    expect(page.get_by_label({"en": "Name", "ja": "名前"}[lang], exact=True)).to_have_value("bad-2")
    expect(page.locator(".length input")).to_have_value("4")
    look(page, "again", tmp_path)


@pytest.mark.parametrize(("lang", "width"), LOOKS)
def test_runs_in_one_chart(opened: Any, place: Place, tmp_path: Path, lang: str, width: int):
    for name in "abcde":
        write_run(place.directory, f"runs/{name}", status="finished")
    page = opened("", lang, width)
    boxes = page.get_by_role("checkbox")
    boxes.first.check()
    assert page.locator(".selection button").is_disabled()  # one alone is no comparison
    for name in "bca":
        page.get_by_role("checkbox", name=f"runs/{name}").check()
    assert boxes.and_(page.locator(":enabled")).count() in (3, 4)
    look(page, "list", tmp_path)
    page.locator(".selection button").click()
    page.locator(".plot svg path").first.wait_for()
    names = page.locator(".chart").first.locator(".legend li").all_inner_texts()
    assert set(names) >= {"runs/a", "runs/b", "runs/c"}
    assert page.locator("table tbody tr").count() == len(names)
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    readout = page.locator(".readout").first.inner_text()
    assert all(name in readout for name in names)
    look(page, "compared", tmp_path)


@pytest.mark.parametrize(("lang", "width"), LOOKS)
def test_deleting_is_asked_twice_and_spares_the_library(
    opened: Any, place: Place, tmp_path: Path, lang: str, width: int
):
    folder = write_run(place.directory, "runs/old", status="finished")
    shutil.copytree(place.running.library / "poet", folder / "checkpoints" / "checkpoint-1")
    write_run(place.directory, "runs/other")
    assert place.post("keep-run", {"name": "runs/old", "to": f"kept-{lang}"}).status_code == 200
    page = opened("runs/old", lang, width)
    dialog = page.locator("dialog[open]")
    page.locator("button.danger").click()
    look(page, "first-question", tmp_path)
    dialog.locator("button.primary").click()
    dialog.get_by_text({"en": "cannot be undone", "ja": "元に戻す"}[lang]).wait_for()
    page.keyboard.press("Escape")
    assert folder.exists()
    page.locator("button.danger").click()
    for _question in range(2):
        text = dialog.inner_text()
        dialog.locator("button.primary").click()
        page.wait_for_function("text => document.querySelector('dialog')?.innerText !== text", arg=text)
    page.locator(".run").first.wait_for()
    assert page.locator(".run strong").all_inner_texts() == ["runs/other"]
    assert not folder.exists()
    assert (place.running.library / f"kept-{lang}" / "adapter_config.json").is_file()
