"""The view Adapters in Chromium: a mix that is read and saved, renamed and removed; an adapter's page."""

from pathlib import Path
from typing import Any

from tests.serve.chromium import marks, open_page
from tests.serve.conftest import Running

pytestmark = marks


def test_a_mix_is_read_saved_renamed_and_removed(browser: Any, server: Running, problems: list[str]):
    from playwright.sync_api import expect

    page = open_page(browser, f"{server.url}/#adapters", problems)
    for name in ("poet", "lawyer"):
        page.get_by_label(f"Choose {name}").check()
    assert page.get_by_label("Choose turns").count() == 0  # IA³ cannot be mixed
    page.get_by_role("button", name="Mix", exact=True).click()
    written = page.locator(".written .text")
    page.get_by_label("Beginning of the text").fill("on the mountain")
    page.get_by_label("New tokens").fill("12")

    def text() -> str:
        page.get_by_text("on the mountain").last.wait_for()
        page.wait_for_timeout(1500)  # the mix waits a moment for more changes
        page.locator('.written .text[aria-busy="false"]').wait_for()
        return str(written.inner_text())

    first = text()
    assert first.startswith("on the mountain")
    weight = page.get_by_role("spinbutton", name="Weight of lawyer")
    weight.fill("-1.5")
    assert page.locator(".written h2").inner_text() == "0.5 poet − 1.5 lawyer"
    expect(written).not_to_have_text(first, timeout=30_000)
    weight.fill("0.5")
    expect(written).to_have_text(first, timeout=30_000)  # the same seed
    page.get_by_label("Save the mix as an adapter called").fill("both")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("heading", name="both").wait_for()
    expect(page.locator(".heading")).to_contain_text("0.5 poet + 0.5 lawyer", timeout=30_000)

    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("poet")
    page.locator("dialog").get_by_role("button", name="Rename").click()
    page.locator("dialog").get_by_text("already").wait_for()
    page.get_by_label("New name").fill("二人")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="二人").wait_for()
    page.get_by_role("button", name="Remove").click()
    page.locator("dialog").get_by_role("button", name="Cancel").click()
    assert (server.library / "二人").is_dir()
    page.get_by_role("button", name="Remove").click()
    page.locator("dialog").get_by_role("button", name="Remove").click()
    page.get_by_role("heading", name="Adapters").wait_for()
    assert not (server.library / "二人").exists()
    problems[:] = [one for one in problems if "400" not in one]  # of the name that is taken


def test_an_adapter(browser: Any, server: Running, problems: list[str]):
    (server.library / "poet" / "README.md").write_text("<img src=x onerror=alert(1)>", encoding="utf-8")
    page = open_page(browser, f"{server.url}/#adapters/poet", problems, width=390)
    page.get_by_text("Model card").click()
    assert page.locator("pre").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the report").click()
    assert download.value.suggested_filename == "poet.html"
    assert b"<svg" in Path(download.value.path()).read_bytes()
