"""The view Adapters in Chromium: a mix that is read and saved, renamed and removed; an adapter's page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.chromium import marks, open_page
from tests.serve.conftest import Running, start

pytestmark = marks


@pytest.fixture(scope="module")
def server(own_files: tuple[str, Path]) -> Iterator[Running]:
    """A server with a library of its own, which tests change."""
    base, own = own_files
    (own / "poet" / "README.md").write_text("<img src=x onerror=alert(1)>", encoding="utf-8")
    yield from start(base, own, max_loaded=4)


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
    assert [one for one in problems if "400" not in one] == []  # of the name that is taken


def test_an_adapter(browser: Any, server: Running, problems: list[str], tmp_path: Path):
    page = open_page(browser, f"{server.url}/#adapters/poet", problems, width=390)
    page.get_by_text("Model card").click()
    assert page.locator("pre").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for label, name, part in (
        ("Save the report", "poet.html", b"<svg"),
        ("Save as .zip", "poet.zip", b"adapter_model.safetensors"),
        ("Save as GGUF", "poet.gguf", b"GGUF"),
    ):
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        download.value.save_as(tmp_path / name)
        assert download.value.suggested_filename == name
        assert part in (tmp_path / name).read_bytes()
    assert problems == []
