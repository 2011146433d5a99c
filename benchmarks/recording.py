"""Record a command in a terminal as an SVG in which its lines appear as they did, faster.

python -m benchmarks.recording docs/quickstart.svg tsugiki quickstart

The command runs in a pseudo terminal of this machine. A line that was written several times, such as a progress bar,
has its last text.
"""

import argparse
import os
import pty
import shlex
import subprocess
import sys
import time
from html import escape
from pathlib import Path

from rich.cells import cell_len
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH, ROWS = 100, 28
CELL, ROW, SIZE = 8.4, 19, 14
FOREGROUND, BACKGROUND = "#d9d9d9", "#16181d"
_CONSOLE = Console(width=WIDTH)
LONGEST = 1.2
"""A pause in seconds; longer ones are shortened to it."""
HOLD = 6.0
"""Seconds for which the end stays before the recording begins again."""


def recorded(command: list[str]) -> list[tuple[float, str]]:
    """Run a command in a pseudo terminal; return the time of each line's last change in seconds, and its text."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(WIDTH), "LINES": str(ROWS), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    started, pending = time.monotonic(), b""
    lines: list[tuple[float, str]] = []
    while True:
        try:
            received = os.read(ours, 65536)
        except OSError:  # Linux: the command has closed the terminal
            break
        if not received:
            break
        *whole, pending = (pending + received).split(b"\n")
        lines += [(time.monotonic() - started, _last(line)) for line in whole]
    if process.wait():
        raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}")
    return lines


def drawn(command: list[str], lines: list[tuple[float, str]]) -> str:
    """Return the SVG of recorded lines: the window shows the last `ROWS` of them at every time."""
    texts = [Text.from_ansi(line) for _, line in lines]
    times, now, before = [], 0.8, 0.0
    for seconds, _ in lines:
        now += min(seconds - before, LONGEST)
        before = seconds
        times.append(now)
    length = now + HOLD
    title = Text.assemble(("$ ", "bold green"), shlex.join(command))
    rows = [(0.0, title), *zip(times, texts, strict=True)]
    shown = "\n".join(
        f'<g class="line" style="animation-delay:{when:.2f}s">{_row(text, number)}</g>'
        for number, (when, text) in enumerate(rows)
    )
    extra = max(0, len(rows) - ROWS)
    steps = ["0%{transform:translateY(0)}"]
    for number in range(ROWS, len(rows)):
        share = 100 * rows[number][0] / length
        steps.append(f"{max(share - 0.01, 0):.3f}%{{transform:translateY(-{(number - ROWS) * ROW}px)}}")
        steps.append(f"{share:.3f}%{{transform:translateY(-{(number - ROWS + 1) * ROW}px)}}")
    steps.append(f"100%{{transform:translateY(-{extra * ROW}px)}}")
    width, height = WIDTH * CELL + 32, ROWS * ROW + 58
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">
<title>{escape(shlex.join(command))}</title>
<style>
text {{ font: {SIZE}px ui-monospace, "DejaVu Sans Mono", "Noto Sans Mono CJK JP", monospace; fill: {FOREGROUND};
  white-space: pre; }}
.line {{ animation: appear 0.01s both; }}
.all {{ animation: move {length:.2f}s linear both; }}
@keyframes appear {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
@keyframes move {{ {" ".join(steps)} }}
@media (prefers-reduced-motion: reduce) {{ .line {{ animation: none }} }}
</style>
<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>
<circle cx="20" cy="18" r="6" fill="#ff5f57"/><circle cx="40" cy="18" r="6" fill="#febc2e"/>
<circle cx="60" cy="18" r="6" fill="#28c840"/>
<clipPath id="window"><rect x="0" y="36" width="{width:.0f}" height="{ROWS * ROW + 8}"/></clipPath>
<g clip-path="url(#window)"><g class="all">
{shown}
</g></g>
</svg>
"""


def _last(line: bytes) -> str:
    """Return what a line shows after its last return to its start, without movements of the cursor."""
    text = line.decode("utf-8", errors="replace").rstrip("\r")
    return text.rpartition("\r")[2]


def _row(text: Text, number: int) -> str:
    y, place, parts = 36 + ROW * (number + 1), 0, []
    for segment in text.render(_CONSOLE):
        cells = cell_len(segment.text)
        if segment.text.strip():
            parts.append(
                f'<text x="{16 + place * CELL:.1f}" y="{y}" textLength="{cells * CELL:.1f}" '
                f'lengthAdjust="spacingAndGlyphs"{_look(segment.style)}>{escape(segment.text)}</text>'
            )
        place += cells
    return "".join(parts)


def _look(style: Style | None) -> str:
    if style is None:
        return ""
    look = ' font-weight="bold"' if style.bold else ""
    if style.dim:
        look += ' opacity="0.6"'
    if style.color is not None and not style.color.is_default:
        colour: ColorTriplet = style.color.get_truecolor(MONOKAI)
        look += f' style="fill:{colour.hex}"'
    return look


def main() -> None:
    """Read the arguments, record, and write the SVG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    lines = recorded(arguments.command)
    arguments.out.write_text(drawn(arguments.command, lines), encoding="utf-8")
    print(f"{arguments.out}: {len(lines)} lines", file=sys.stderr)


if __name__ == "__main__":
    main()
