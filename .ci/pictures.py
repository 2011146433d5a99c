"""Make pictures in `docs` from real runs in both languages.

pip install '.[serve]' playwright && python .ci/pictures.py

Each language has a picture of the server's page. This needs Chromium and some minutes.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROMPT = "明治時代の"
PORT = "8765"
ADDRESS = f"http://127.0.0.1:{PORT}"


def photograph(file: Path, language: str) -> None:
    """Let the base and the adapter answer in the server's page, and take a picture of it."""
    serve = ["tsugiki", "serve", "--model", "embedded", "--adapter", "runs/telegram", "--port", PORT]
    server = subprocess.Popen(serve)
    try:
        while not _answers():
            time.sleep(1)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(locale=language, viewport={"width": 1000, "height": 640}, device_scale_factor=1.5)
            page.set_default_timeout(300_000)
            page.goto(f"{ADDRESS}/#talk/telegram")
            page.locator("form.composer > textarea").fill(PROMPT)
            page.keyboard.press("Control+Enter")
            page.locator(".answer[data-state=done]").nth(1).wait_for()
            page.locator(".answer").nth(1).locator(".text span").nth(6).hover()
            page.screenshot(path=file)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _answers() -> bool:
    try:
        return bool(urlopen(f"{ADDRESS}/health"))
    except OSError:
        return False


def main() -> None:
    """Make the pictures of each language in a temporary folder."""
    for language, ending in (("en", ""), ("ja", ".ja")):
        os.environ["TSUGIKI_LANG"] = language
        with tempfile.TemporaryDirectory() as work:
            os.chdir(work)
            subprocess.run(["tsugiki", "quickstart", "--out", "runs/telegram"], check=True)
            photograph(DOCS / f"page{ending}.png", language)
            os.chdir(DOCS)


if __name__ == "__main__":
    main()
