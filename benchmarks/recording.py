"""Record a command in a terminal as a moving picture: `python -m benchmarks.recording --out FILE.svg -- tsugiki …`.

The command runs once, in a terminal of its own, and the picture shows what that terminal showed: every line appears
when it was printed, and bars move. Times are shortened by one factor, so that the picture lasts `--seconds`; a longer
pause than a second without any change counts as a second. Where pictures do not move, it shows the end.

A README shows how long a run takes, so record on a machine on which nothing else runs:

    python -m benchmarks.recording --out docs/quickstart.svg -- tsugiki quickstart --questions --lang en
    python -m benchmarks.recording --out docs/quickstart.ja.svg -- tsugiki quickstart --questions --lang ja
"""

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import tempfile
import termios
import time
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

COLUMNS, ROWS = 72, 200  # so many rows that nothing scrolls
_CHARACTER, _LINE, _MARGIN = 8.4, 20, 16  # CSS pixels of a character and of a line, at 14 pixels of text
_FRAME = 0.1  # seconds: changes within it are one
_SHOWN = 0.2  # seconds of the picture between two of its screens
_STYLES = {"1": "b", "2": "d", "32": "g", "92": "g", "31": "r", "91": "r", "36": "d", "35": "d", "90": "d"}
_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{label}">
<style>
text {{ font: 14px ui-monospace, "SF Mono", Menlo, Consolas, "Noto Sans Mono CJK JP", "MS Gothic", monospace;
  fill: #e6e4dd; white-space: pre; }}
.b {{ font-weight: 600; }} .d {{ fill: #8d938f; }} .g {{ fill: #7fd69a; }} .r {{ fill: #f08c80; }}
</style>
<rect width="100%" height="100%" rx="8" fill="#171a18"/>
"""


class Cell(NamedTuple):
    """A character, and the class of its style."""

    text: str
    style: str = ""


Screen = tuple[tuple[Cell, ...], ...]


def main() -> None:
    """Run the command, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the SVG file")
    parser.add_argument("--seconds", type=float, default=12, help="how long the picture moves")
    parser.add_argument("--columns", type=int, default=COLUMNS, help="width of the terminal")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frames = list(screens(recorded(options.command, Path(folder), options.columns), options.columns))
    shown = shlex.join(options.command)
    options.out.write_text(picture(frames, shown, options.seconds, options.columns), encoding="utf-8")


def recorded(command: Sequence[str], folder: Path, columns: int) -> Iterator[tuple[float, str]]:
    """Run a command in a folder, and yield what it writes on its terminal, with the seconds since its start.

    Raises:
        SystemExit: the command failed.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(ROWS)}
        os.execvp(command[0], [*command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    start, rest = time.monotonic(), b""
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the command has ended
            break
        text = (rest + data).decode("utf-8", "ignore")
        rest = (rest + data)[len(text.encode()) :]  # half of a character
        yield time.monotonic() - start, text
    if status := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise SystemExit(f"{shlex.join(command)} exited with {status}")


def screens(output: Iterator[tuple[float, str]], columns: int) -> Iterator[tuple[float, Screen]]:
    """Yield the screen after each change, with its time; changes that follow each other at once are one."""
    lines: list[list[Cell]] = [[]]
    row, column, style, last = 0, 0, "", -1.0
    for seconds, text in output:
        for sequence, character in re.findall(r"(\x1b\[[\d;?]*[A-Za-z])|([^\x1b])", text):
            if sequence:
                numbers, kind = sequence[2:-1], sequence[-1]
                if kind == "m":
                    style = " ".join(sorted({_STYLES[one] for one in numbers.split(";") if one in _STYLES}))
                elif kind == "A":
                    row -= int(numbers or 1)
                elif kind == "K":
                    lines[row] = [] if numbers == "2" else lines[row][:column]
            elif character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                lines += [[] for _ in range(row + 1 - len(lines))]
            elif character.isprintable():
                wide = 1 + (unicodedata.east_asian_width(character) in "WF")
                if column + wide > columns:
                    row, column = row + 1, 0
                    lines += [[] for _ in range(row + 1 - len(lines))]
                line = lines[row]
                line += [Cell(" ")] * (column - len(line))
                line[column : column + wide] = [Cell(character, style), *[Cell("")] * (wide - 1)]
                column += wide
        if seconds - last >= _FRAME:
            yield seconds, tuple(map(tuple, lines))
            last = seconds
    yield last + _FRAME, tuple(map(tuple, lines))


def picture(frames: Sequence[tuple[float, Screen]], command: str, seconds: float, columns: int) -> str:
    """Return an SVG in which each line of each screen is visible while it was on the screen."""
    every = _shortened([at for at, _screen in frames], seconds)
    kept = sorted({round(at / _SHOWN): number for number, at in enumerate(every)}.values())
    times, screens = [every[number] for number in kept], [frames[number][1] for number in kept]
    height = max(len(screen) for screen in screens)
    body = [f'<text class="b" x="{_MARGIN}" y="{_MARGIN + 12}">$ {escape(command)}</text>']
    for row in range(height):
        shown = [screen[row] if row < len(screen) else () for screen in screens]
        at = 0
        for line, group in groupby(shown):
            first, at = at, at + len(list(group))
            if not "".join(cell.text for cell in line).strip():
                continue
            hidden = at < len(shown)
            times_of = f'begin="{times[first]:.2f}s" dur="{times[at] - times[first]:.2f}s"' if hidden else ""
            move = f'<set attributeName="visibility" to="visible" {times_of}/>' if hidden else ""
            if not hidden and times[first]:
                move = f'<set attributeName="visibility" to="hidden" begin="0s" dur="{times[first]:.2f}s"/>'
            state = ' visibility="hidden"' if hidden else ""
            body.append(f"<g{state}>{move}{_line(line, _MARGIN + 12 + _LINE * (row + 1))}</g>")
    head = _HEAD.format(
        width=columns * _CHARACTER + 2 * _MARGIN, height=(height + 1) * _LINE + 2 * _MARGIN, label=escape(command)
    )
    return head + "\n".join(body) + "\n</svg>\n"


def _shortened(times: Sequence[float], seconds: float) -> list[float]:
    """Return times in which long pauses are short, and the last one is `seconds`."""
    steps = [min(after - before, 10 * _FRAME) for before, after in zip([0.0, *times], times, strict=False)]
    factor = seconds / sum(steps)
    return [factor * total for total in accumulate(steps)]


def _line(line: Sequence[Cell], y: float) -> str:
    """Return a line as texts, each as wide as its columns in a terminal, whatever the font of the reader."""
    found, column = [], 0
    for (style, _wide), group in groupby(zip(line, range(len(line)), strict=True), lambda one: _kind(line, one[1])):
        cells = [cell for cell, _number in group]
        text = "".join(cell.text for cell in cells)
        if text.strip():
            lead = len(text) - len(text.lstrip(" "))
            width = (len(cells) - lead) * _CHARACTER
            found.append(
                f'<text class="{style}" x="{_MARGIN + (column + lead) * _CHARACTER:.1f}" y="{y}" '
                f'textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs">{escape(text.lstrip(" "))}</text>'
            )
        column += len(cells)
    return "".join(found)


def _kind(line: Sequence[Cell], number: int) -> tuple[str, bool]:
    """Return the style of a cell, and whether its character has two columns."""
    cell = line[number]
    if cell.text:
        return cell.style, number + 1 < len(line) and not line[number + 1].text
    return line[number - 1].style, True


if __name__ == "__main__":
    main()
