"""Make the pictures of the first page of the site in `docs`, from real runs in both languages.

pip install '.[serve]' termtosvg-ng playwright && python .ci/pictures.py

Each language has a recording of a terminal and a picture of the server's page. This needs Chromium and some minutes.
"""

import json
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
COMMANDS = (
    "tsugiki quickstart --out runs/telegram",
    f"tsugiki generate --adapter runs/telegram --prompt {PROMPT} --compare",
)
SIZE = "84x26"
FASTER, LONGEST = 4, 1.0
"""The recording is so many times as fast as the run was, and no pause is longer than so many seconds."""
PORT = "8765"
ADDRESS = f"http://127.0.0.1:{PORT}"


def record(file: Path) -> None:
    """Run the commands in a terminal, and write the animation."""
    lines = [f"printf '\\e[1;32m$\\e[0m %s\\n' '{line}'; sleep 4; {line}; sleep 4" for line in COMMANDS]
    Path("session").write_text("\n".join(lines), encoding="utf-8")
    recorder = ["termtosvg-ng", "record", "session.cast", "-g", SIZE, "-c", "bash session"]
    with subprocess.Popen(recorder, stdin=subprocess.PIPE) as process:  # it ends when its input does
        if process.wait():
            raise SystemExit("the recorder failed")
    cast = Path("session.cast").read_text(encoding="utf-8").splitlines()
    now = before = 0.0
    for number, (seconds, *rest) in enumerate(map(json.loads, cast[1:]), 1):
        now += min((seconds - before) / FASTER, LONGEST)
        before = seconds
        cast[number] = json.dumps([now, *rest])
    Path("session.cast").write_text("\n".join(cast), encoding="utf-8")
    options = ["-m", "150", "-D", "5000", "-t", "window_frame"]
    subprocess.run(["termtosvg-ng", "render", "session.cast", file, *options], check=True)


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
            page.goto(f"{ADDRESS}/#talk/telegram")
            page.locator("form.composer textarea").fill(PROMPT)
            page.keyboard.press("Control+Enter")
            page.locator(".answer[data-state=done]").nth(1).wait_for(timeout=120_000)
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
            record(DOCS / f"recording{ending}.svg")
            photograph(DOCS / f"page{ending}.png", language)
            os.chdir(DOCS)


if __name__ == "__main__":
    main()
