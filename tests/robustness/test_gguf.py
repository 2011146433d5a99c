"""Mutated GGUF files are converted, or refused in one line."""

import functools
import random
import struct
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.mutations import MAX_SIZE, VALUES, mutate_bytes, mutate_value

pytest.importorskip("resource", reason="the harness needs a Unix system")
pytest.importorskip("gguf")
harness = pytest.importorskip("tests.robustness.harness")

from tests.base.gguf.files import tiny_base, write_gguf, write_vocabulary  # noqa: E402  (they import gguf)
from tsugiki.base import (  # noqa: E402
    converted_folder,
    gguf_fingerprint,
    load_tokenizer,
    read_header,
    read_model_header,
)

KINDS = ("llama", "gpt2", "gemma3_text", "qwen2", "vocabulary")
SETTINGS: Sequence[Any] = (
    *VALUES,
    *("llama", "gpt2", "gemma3", "mamba", "clip", "adapter", "linear", "yarn", "llama-bpe", "smollm"),
    *(3, 2**32, 2**64 - 1, 1e-6, 1e30, ["a"], ["a"] * 300, [0.5] * 300, [6] * 300, list(range(300))),
)
_FORMATS = {int: "q", bool: "?", float: "d"}
_NUMBERS = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "?": 7, "Q": 10, "q": 11, "d": 12}


@functools.cache
def file(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        write_vocabulary(path) if kind == "vocabulary" else write_gguf(path, tiny_base(kind))
        return path.read_bytes()


@functools.cache
def parts(kind: str) -> tuple[dict[str, Any], list[tuple[str, list[int], int, int]], bytes]:
    """The settings, the names, dimensions, types and offsets of the tensors, and their values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        path.write_bytes(file(kind))
        header = read_header(path)
    tensors = [
        (tensor.name, list(tensor.shape[::-1]), int(tensor.type), tensor.begin - header.size)
        for tensor in header.tensors
    ]
    return dict(header.metadata), tensors, file(kind)[header.size :]


def prepare() -> None:
    """Make the files before the harness forks, so that no case counts their time."""
    for kind in KINDS:
        parts(kind)


def text(value: Any) -> bytes:
    data = str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def value_bytes(rng: random.Random, value: Any) -> bytes:
    """A value with its type. A number gets one of the types that can hold it, or eight bytes of it."""
    if isinstance(value, list | dict):
        items = list(value)
        if items and all(type(item) is type(items[0]) and type(item) in _FORMATS for item in items):
            form = _FORMATS[type(items[0])]
            numbers = struct.pack(f"<{len(items)}{form}", *(fitting(form, item) for item in items))
            return struct.pack("<IIQ", 9, _NUMBERS[form], len(items)) + numbers
        return struct.pack("<IIQ", 9, 8, len(items)) + b"".join(map(text, items))
    if type(value) not in _FORMATS:
        return struct.pack("<I", 8) + text("" if value is None else value)
    forms = ["?"] if isinstance(value, bool) else ["d", "f"] if isinstance(value, float) else ["I", "I", "i", "q", "Q"]
    form = rng.choice(forms)
    return struct.pack("<I", _NUMBERS[form]) + struct.pack(f"<{form}", fitting(form, value))


def fitting(form: str, value: Any) -> Any:
    if form == "f":
        return struct.unpack("<f", struct.pack("<d", value)[4:])[0] if abs(value) > 1e38 else value
    if form in "dq?" and not isinstance(value, int):
        return value
    bits = {"I": 32, "i": 31, "q": 63, "Q": 64, "?": 1}.get(form, 64)
    return value % (1 << bits)


def mutated(rng: random.Random, path: Path) -> Path:
    """Write a file of which bytes, settings, or descriptions of tensors are changed."""
    kind = rng.choice(KINDS)
    if rng.random() < 0.25:
        path.write_bytes(mutate_bytes(rng, file(kind)))
        return path
    settings, tensors, data = parts(kind)
    if rng.random() < 0.6:
        settings = mutate_value(rng, settings, SETTINGS)
    if rng.random() < 0.4:
        tensors = mutated_tensors(rng, tensors)
    if not isinstance(settings, dict) or not isinstance(tensors, list):
        settings, tensors = {}, []
    counts = [len(tensors), len(settings)]
    if rng.random() < 0.05:
        counts[rng.randrange(2)] = rng.choice((0, 10**6, 2**32, 2**63, 2**64 - 1))
    head = b"GGUF" + struct.pack("<IQQ", rng.choice((3, 3, 3, 3, 2, 1)), *counts)
    head += b"".join(text(key) + value_bytes(rng, value) for key, value in settings.items())
    for name, shape, number, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", number, offset)
    path.write_bytes((head + b"\0" * (-len(head) % 32) + data)[:MAX_SIZE])
    return path


def mutated_tensors(rng: random.Random, tensors: list[Any]) -> list[Any]:
    """Change one description, or repeat one."""
    changed = list(tensors)
    place = rng.randrange(len(changed))
    name, shape, number, offset = changed[place]
    match rng.randrange(6):
        case 0:
            name = rng.choice(("", "a", name + "x", "rope_freqs.weight", "a" * 9999, "漢"))
        case 1:
            shape = rng.choice(([], [0], [1], [2**63] * 2, shape[::-1], [*shape, 1], [2**62] * 60_000, [1] * 50_000))
        case 2:
            number = rng.choice((0, 1, 2, 3, 4, 8, 12, 24, 30, 39, 99, 2**32 - 1))
        case 3:
            offset = rng.choice((0, 1, offset + 32, 2**63, 2**64 - 1))
        case 4:
            return changed + [changed[place]] * rng.choice((1, 100, 10_000))
        case _:
            long = [(f"{number}", shape, number, offset) for number in range(rng.choice((1, 100, 10_000)))]
            return changed + long
    changed[place] = (name, shape, number, offset)
    return changed


def read_headers(rng: random.Random, folder: Path) -> None:
    path = mutated(rng, folder / "a.gguf")
    read_model_header(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        gguf_fingerprint(path)


def convert(rng: random.Random, folder: Path) -> None:
    path = mutated(rng, folder / "a.gguf")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        load_tokenizer(str(converted_folder(path)))("枝を 3本\n<|endoftext|>").input_ids  # noqa: B018


READERS = {"GGUF headers": read_headers, "GGUF models": convert}
LONG = {"GGUF headers": harness.LONG, "GGUF models": harness.LONG // 10}  # a conversion takes a tenth of a second
QUICK = {"GGUF headers": 100, "GGUF models": 8}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    prepare()
    harness.check(name, READERS[name], QUICK[name], tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    prepare()
    harness.check(name, READERS[name], LONG[name], tmp_path / "case")
