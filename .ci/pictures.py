"""Make pictures in `docs` from real runs in both languages.

pip install '.[serve]' termtosvg-ng playwright && python .ci/pictures.py

Each language has a recording of a terminal and a picture of the server's page. This needs Chromium and some minutes.
"""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import wcwidth
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROMPT = "明治時代の"
COMMANDS = (
    "tsugiki quickstart --out runs/telegram",
    f"tsugiki generate --adapter runs/telegram --prompt {PROMPT} --compare",
)
SIZE = "64x26"  # legible on a phone
CELL = 8
"""Pixels of a column of the terminal."""
LENGTH, PAUSE, LAST = 20.0, 4.0, 5.0
"""Seconds of the recording, without the pauses in which commands and their ends can be read; pause; last picture."""
PORT = "8765"
ADDRESS = f"http://127.0.0.1:{PORT}"


def record(file: Path) -> None:
    """Run the commands in a terminal, and write the animation."""
    lines = [f"printf '\\e[32m$\\e[0m %s\\n' '{line}'; sleep {PAUSE}; {line}; sleep {PAUSE}" for line in COMMANDS]
    Path("session").write_text("\n".join(lines), encoding="utf-8")
    recorder = ["termtosvg-ng", "record", "session.cast", "-g", SIZE, "-c", "bash session"]
    with subprocess.Popen(recorder, stdin=subprocess.PIPE) as process:  # it ends when its input does
        if process.wait():
            raise SystemExit("the recorder failed")
    draw(Path("session.cast"), file)


def draw(cast: Path, file: Path) -> None:
    """Write the animation of a recording, faster than it was."""
    head, *events = cast.read_text(encoding="utf-8").splitlines()
    times = [json.loads(event)[0] for event in events]
    waits = [after - before for before, after in itertools.pairwise([0.0, *times])]
    factor = min(1, LENGTH / sum(wait for wait in waits if wait < PAUSE))
    now, lines = 0.0, [head]
    for wait, event in zip(waits, events, strict=True):
        now += min(PAUSE / 2, wait) if wait >= PAUSE else wait * factor
        lines.append(json.dumps([now, *json.loads(event)[1:]]))
    cast = cast.with_name("short.cast")
    cast.write_text("\n".join(lines), encoding="utf-8")
    options = ["-m", "250", "-D", str(round(1000 * LAST)), "-t", "window_frame"]
    subprocess.run(["termtosvg-ng", "render", cast, file, *options], check=True)
    text = re.compile(r'<text x="(\d+)" textLength="\d+"([^>]*)>([^<]*)</text>')
    drawn = text.sub(_in_columns, file.read_text(encoding="utf-8"))
    file.write_text(re.sub(r"( animation-duration: (\d+)ms;)", _from_the_end, drawn), encoding="utf-8")


def _from_the_end(duration: re.Match[str]) -> str:
    """Let the animation begin with its last picture, the result, and not with an empty terminal."""
    return f"{duration[1]}\n                animation-delay: -{round(int(duration[2]) - 1000 * LAST)}ms;"


def _in_columns(text: re.Match[str]) -> str:
    """Give Japanese characters elements of their own, so that what follows them stands in its column in every font."""
    place, parts = int(text[1]), []
    for columns, characters in itertools.groupby(html.unescape(text[3]), wcwidth.wcwidth):
        run = "".join(characters)
        length = CELL * columns * len(run)
        parts.append(f'<text x="{place}" textLength="{length}"{text[2]}>{html.escape(run)}</text>')
        place += length
    return "".join(parts)


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
            record(DOCS / f"recording{ending}.svg")
            photograph(DOCS / f"page{ending}.png", language)
            os.chdir(DOCS)


if __name__ == "__main__":
    main()
