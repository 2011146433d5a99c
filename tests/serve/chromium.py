"""Chromium, for the tests of the page; they are skipped where it or Playwright is not installed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
PROGRAM = os.environ.get("TSUGIKI_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
marks = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed; TSUGIKI_CHROMIUM names another program"),
]
WAIT = 90_000  # ms
AXE = Path(os.environ.get("TSUGIKI_AXE", "node_modules/axe-core/axe.min.js"))


def open_page(browser: Any, url: str, problems: list[str], lang: str = "en", width: int = 1280, **options: Any) -> Any:
    """Open an address in a context of its own, and note its problems."""
    context = browser.new_context(locale=lang, viewport={"width": width, "height": 850}, **options)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    own = (url.partition("/#")[0], "blob:", "data:")
    page.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith(own) else None)
    page.goto(url)
    return page


def violations(page: Any) -> list[Any]:
    """Return what axe-core finds wrong on a page; nothing where it is not installed (npm install axe-core)."""
    if not AXE.is_file():
        return []
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    return [(one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]]) for one in found]
