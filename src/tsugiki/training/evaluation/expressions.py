"""Search for regular expressions in texts within a time limit.

`re` can take years for a short expression and a short text, and cannot be interrupted. So another process searches, and
is ended at the time limit.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from tsugiki.language import _

_SECONDS = 30
_PROGRAM = """
import json, re, sys
for line in sys.stdin:
    expressions, text = json.loads(line)
    print(int(any(re.search(expression, text) for expression in expressions)), flush=True)
"""


class TooSlowError(Exception):
    """A search took too long; `index` is the index of its pair."""

    def __init__(self, index: int) -> None:
        super().__init__(_("takes more than {seconds} s").format(seconds=_SECONDS))
        self.index = index


def search(pairs: Sequence[tuple[Sequence[str], str]]) -> list[bool]:
    """Return for each pair of regular expressions and a text whether one of them matches a part of the text.

    Raises:
        TooSlowError: the searches together took more than 30 s; it names the one that was going on.
    """
    if not pairs:
        return []
    lines = "".join(json.dumps([list(expressions), text]) + "\n" for expressions, text in pairs)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM],
            input=lines.encode(),
            stdout=subprocess.PIPE,
            timeout=_SECONDS,
            check=True,
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise TooSlowError(len((error.stdout or b"").split())) from error
    return [value == b"1" for value in done.split()]
