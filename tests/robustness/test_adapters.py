"""Mutated folders of adapters, alone and in a library, are loaded, listed and changed, or refused in one line."""

import functools
import json
import random
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.report.pages import record
from tests.robustness.mutations import MAX_SIZE, VALUES, json_bytes, mutate_bytes, mutate_value
from tests.tiny import save_grafted, tiny_model
from tsugiki import LoraConfig, TsugikiError, load_adapter
from tsugiki.adapters import (
    Combination,
    combine,
    copy_into_library,
    load_weighted_adapters,
    read_adapter_config,
    read_adapter_files,
    read_base,
    read_library,
    read_lora_weights,
    read_weights,
    scaled,
    truncated,
    write_lora_weights,
)
from tsugiki.io import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE
from tsugiki.lora import active_name, remove_adapter
from tsugiki.methods import METHODS
from tsugiki.report import (
    entry_line,
    info_lines,
    inspect_adapter,
    kinds_table,
    layers_table,
    library_table,
    tensors_table,
)

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

SMALL: dict[str, dict[str, Any]] = {
    **{name: {"r": 2} for name in ("lora", "rslora", "dora", "lora+", "pissa", "orthogonal", "lora-fa")},
    **{name: {"num_virtual_tokens": 2} for name in ("prompt-tuning", "prefix-tuning", "p-tuning")},
    "select": {"target_parameters": ["ln_f.weight", "c_fc.bias"]},
}
KINDS = {
    **{name: METHODS[name].configure(SMALL.get(name, {})) for name in METHODS if name != "full"},
    "many settings": LoraConfig(
        **{"r": 2, "target_modules": ["c_attn", "wte"], "rank_pattern": {"h.1.attn.c_attn": 1}, "bias": "lora_only"},
        **{"alpha_pattern": {"wte": 3}, "modules_to_save": ["ln_f"], "layers_to_transform": [0, 1]},
    ),
}
SETTINGS: Sequence[Any] = (
    *VALUES,
    *(
        "LORA",
        "IA3",
        "PREFIX_TUNING",
        "P_TUNING",
        "SHIRA",
        "all-linear",
        "lora_only",
        "pissa",
        "olora",
        "LSTM",
        "RANDOM",
    ),
    *(
        "c_attn",
        ["c_attn"],
        r".*",
        "(a+)+b",
        "[[a",
        "(",
        {"c_attn": 4},
        {"(a|a)+b": 10**9},
        {r"h\.0": -1},
        10**9,
        10**18,
    ),
)
HEADERS: Sequence[Any] = (*VALUES, "F32", "F16", "F8_E4M3", "I64", "BOOL", [0], [2, 2**40], [1 << 62] * 2, [1] * 99)


@functools.cache
def files(kind: str) -> dict[str, bytes]:
    """The files of a tiny adapter by name."""
    with tempfile.TemporaryDirectory() as folder:
        save_grafted(Path(folder), base(), KINDS[kind])
        remove_adapter(base(), "default")
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {**found, RECORD_FILE: RECORD} if kind == "lora" else found


@functools.cache
def base() -> Any:
    return tiny_model()


RECORD = json_bytes(record(config={"out": "run"}).to_json())


def prepare() -> None:
    """Make the adapters before the harness forks, so that no case counts their time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            files(kind)


def mutated(rng: random.Random, folder: Path) -> Path:
    """Write an adapter of which one file or two are changed."""
    found = dict(files(rng.choice(list(KINDS))))
    if rng.random() < 0.8:  # otherwise the digests find every change
        fields = json.loads(found[METADATA_FILE])
        del fields["digests"]
        found[METADATA_FILE] = json_bytes(fields)
    for name in rng.sample(list(found), rng.choice((1, 1, 2))):
        found[name] = mutated_weights(rng, found[name]) if name == ADAPTER_FILE else mutated_json(rng, found[name])
    if rng.random() < 0.05:
        del found[rng.choice(list(found))]
    folder.mkdir(exist_ok=True)
    for name, content in found.items():
        (folder / name).write_bytes(content)
    return folder


def mutated_json(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(rng, content)
    return json_bytes(mutate_value(rng, json.loads(content), SETTINGS))


def mutated_weights(rng: random.Random, content: bytes) -> bytes:
    """Change bytes, or the header: its values, or the names of the tensors, of which there can be very many."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if rng.random() < 0.1:
        name = rng.choice(["base_model.model.transformer.h.{}.attn.c_attn.lora_A.weight", "{}", "h.{}" + ".a" * 100])
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}
        header |= {name.format(number): empty for number in range(rng.choice((10, 1000, 9000)))}
    else:
        header = mutate_value(rng, header, HEADERS)
    text = json_bytes(header)
    return (len(text).to_bytes(8, "little") + text + data)[:MAX_SIZE]


def read_alone(rng: random.Random, folder: Path) -> None:
    """List the problems of an adapter, and load it; if that is refused, the model is as it was."""
    read_adapter_files(mutated(rng, folder))
    model = base()
    before = dict(model.named_parameters(remove_duplicate=False))
    try:
        load_adapter(model, folder, allow_base_mismatch=True)
    except TsugikiError:
        assert active_name(model) is None
        after = dict(model.named_parameters(remove_duplicate=False))
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)
        raise
    remove_adapter(model, "default")


def read_in_library(rng: random.Random, folder: Path) -> None:
    """List a library of adapters, and show each of them."""
    for name in ("a", "b" * rng.choice((1, 100))):
        mutated(rng, folder / name)
    entries = read_library(folder)
    if any(entry.info for entry in entries):
        library_table(entries)
    for entry in entries:
        entry_line(entry)
        try:
            report = inspect_adapter(entry.folder)
        except TsugikiError:
            continue
        info_lines(report)
        if report.tensors:
            tensors_table(report.tensors)
        if report.layers:
            layers_table(report.layers)
            kinds_table(report.layers)
    copy_into_library(folder / "a", folder, "c")


def change(rng: random.Random, folder: Path) -> None:
    """Scale, truncate and combine an adapter, and write the result."""
    source = mutated(rng, folder / "a")
    lora = read_lora_weights(source)
    combination = Combination(rng.choice(("cat", "svd", "linear")))
    results = [
        lambda: scaled(lora, rng.choice((0.5, -1.0, 1e30))),
        lambda: truncated(lora, 1)[0],
        lambda: combine(load_weighted_adapters([source, source], [1.0, 0.5]), combination),
    ]
    write_lora_weights(rng.choice(results)(), folder / "b", None)
    read_lora_weights(folder / "b")


QUICK = {"adapters": 60, "libraries of adapters": 25, "changes of adapters": 60}
READERS = {"adapters": read_alone, "libraries of adapters": read_in_library, "changes of adapters": change}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    prepare()
    harness.check(name, READERS[name], QUICK[name], tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    prepare()
    harness.check(name, READERS[name], harness.LONG, tmp_path / "case")


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path):
    draw = random.Random(0)
    found, _ = _flip(tmp_path, lambda size: draw.sample(range(8 * size), 40))
    assert found > 100


@pytest.mark.slow
def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path):
    found, harmless = _flip(tmp_path, lambda size: range(8 * size))
    print(f"\nadapter: {found + harmless:,} bits flipped one by one, {found:,} found, {harmless:,} change nothing")


def _flip(folder: Path, bits: Callable[[int], Iterable[int]]) -> tuple[int, int]:
    """Flip bits of each file of an adapter, one at a time; returns how many were found, and how many change nothing."""
    prepare()
    for name, content in files("many settings").items():
        (folder / name).write_bytes(content)
    intact = _content(folder)
    found = harmless = 0
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE):
        content = (folder / name).read_bytes()
        for bit in bits(len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(changed)
            try:
                now = _content(folder)
            except TsugikiError:
                found += 1
                continue
            assert now[:2] == intact[:2], f"bit {bit} of {name}"
            assert now[2].keys() == intact[2].keys(), f"bit {bit} of {name}"
            assert all(torch.equal(now[2][key], tensor) for key, tensor in intact[2].items()), f"bit {bit} of {name}"
            harmless += 1
        (folder / name).write_bytes(content)
    return found, harmless


def _content(folder: Path) -> tuple[Any, str | None, dict[str, torch.Tensor]]:
    """What the result depends on: the settings, the weights of the base, and the tensors."""
    tensors = {key: tensor.clone() for key, tensor in read_weights(folder).items()}
    return read_adapter_config(folder), read_base(folder).fingerprint, tensors
