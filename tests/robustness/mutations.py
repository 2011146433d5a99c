"""Seeded mutations of valid inputs: bytes, lines, and values as JSON and YAML represent them."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MAX_SIZE = 1_000_000
"""Bytes; the limits of time and memory are promised up to this size."""

_DEEP: list[Any] = []
for _ in range(300):
    _DEEP = [_DEEP]

VALUES: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 10**4000),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
    "",
    " ",
    "a",
    "0",
    "-1",
    "1e999",
    "nan",
    "\0",
    "\n",
    "\ud800",
    "\u202e",
    "漢字",
    "a" * 100_000,
    "../" * 50,
    "/dev/zero",
    *([], {}, [None], [[]], {"": {}}, {"a": "b"}, ["a"] * 1000, {str(i): i for i in range(1000)}, _DEEP),
)
"""Values of every type, and at the ends of their ranges."""

PIECES: Sequence[bytes] = (
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b",",
    b":",
    b"- ",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x81\xff",
    b"\xa1\xa1",
    b"\\ud800",
    b"\\u0000",
    b"NaN",
    b"1e999",
    b"9" * 200,
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/name:os.system ",
    b"%YAML 1.1\n",
    b"\\U0011FFFF",
    *(piece.encode() for piece in ("《", "》", "｜", "※", "［＃", "］", "〔", "／＼", "底本：", "U+4E16", "e\u0301")),
    *(b"{% for m in messages %}", b"{% endfor %}", b"{{", b"}}", b"{{ ''.__class__ }}", b"(" * 300),
)
"""Pieces that have a meaning in some format: of bytes and encodings, JSON, YAML, Aozora Bunko, templates."""


def mutate_bytes(rng: random.Random, data: bytes, pieces: Sequence[bytes] = PIECES) -> bytes:
    """Change a few places of the bytes; sometimes a piece is repeated up to the largest size."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _mutate_once(rng, data, pieces)
    return data[:MAX_SIZE]


def _mutate_once(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    start, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    short = min(end, start + rng.choice((1, 2, 8, 64)))
    match rng.randrange(8):
        case 0 if data:
            place = rng.randrange(len(data))
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:start]
        case 2:
            return data[:start] + data[short:]
        case 3:
            return data[:start] + data[start:end] + data[start:]
        case 4:
            return data[:start] + rng.randbytes(rng.choice((1, 2, 8, 64))) + data[short:]
        case 5:
            return data[:start] + data[end:] + data[start:end]
        case 6:
            piece = rng.choice(pieces) + data[start:short]
            return data[:start] + piece * _times(rng, len(piece)) + data[start:]
        case _:
            return data[:start] + rng.choice(pieces) + data[short:]


def _times(rng: random.Random, length: int) -> int:
    """Return how often to repeat a piece: mostly a few times, rarely up to the largest size."""
    size = rng.choice((2, 10, 100, 1000, 10_000, MAX_SIZE)) if rng.random() < 0.2 else rng.choice((2, 10, 100))
    return max(1, min(size, MAX_SIZE // max(length, 1)))


def mutate_value(rng: random.Random, value: T, values: Sequence[Any] = VALUES) -> T:
    """Change a few places of a value that consists of dictionaries, lists and simple values; return a changed copy."""
    holder = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        parent: Any = holder
        key: Any = 0
        while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.8:
            parent = parent[key]
            key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        _change(rng, parent, key, values)
    return holder[0]


def _change(rng: random.Random, parent: Any, key: Any, values: Sequence[Any]) -> None:
    """Replace, remove, move, wrap or repeat the item of a dictionary or a list."""
    item = parent[key]
    match rng.randrange(8):
        case 0 if len(parent) > 1:
            del parent[key]
        case 1 if isinstance(parent, dict):
            del parent[key]
            parent[rng.choice(("", "a", str(key) + "_", str(key)[:-1], "漢"))] = item
        case 2:
            parent[key] = [item]
        case 3:
            parent[key] = {"a": item}
        case 4 if isinstance(item, list) and item:
            parent[key] = item * rng.choice((2, 50))
        case 5:
            others = list(parent.values()) if isinstance(parent, dict) else parent
            parent[key] = copy.deepcopy(rng.choice(others))
        case 6 if isinstance(item, str):
            text = item.encode("utf-8", "surrogatepass")
            parent[key] = mutate_bytes(rng, text)[:100_000].decode("utf-8", "replace")
        case _:
            parent[key] = copy.deepcopy(rng.choice(values))


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON, also values that JSON does not allow, such as NaN."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
