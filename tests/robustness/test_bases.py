"""Mutated folders of base models are loaded, or refused in one line."""

import functools
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.mutations import VALUES, json_bytes, mutate_bytes, mutate_value
from tests.tiny import CONFIGS, byte_tokenizer, tiny_model
from tsugiki.base import folder_fingerprint, load_meta_model, load_model, load_tokenizer
from tsugiki.io import MODEL_CONFIG_FILE, MODEL_FILE, MODEL_INDEX_FILE, TOKENIZER_CONFIG_FILE

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

SETTINGS: Sequence[Any] = (
    *VALUES,
    *(3, 16, 64, 257, 1000, 10**6, 10**9, 1e-5, 1e4, "gelu", "float16", "eager", "gpt2", "llama", "gemma3_text"),
    *("GPT2LMHeadModel", "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "<|endoftext|>"),
    *({"rope_type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 0}, {"AutoConfig": "own.Config"}),
)
HEADERS: Sequence[Any] = (
    *VALUES,
    "F32",
    "BF16",
    "F8_E4M3",
    "I64",
    "Q4_K",
    [0],
    [0, 2**40],
    [1 << 62, 1 << 62],
    [1 << 62] * 40_000,
)
FILES: Sequence[Any] = (*VALUES, "../model.safetensors", "weights.bin", "model-00002-of-00003.safetensors", "/dev/zero")


@functools.cache
def base(kind: str, sharded: bool) -> dict[str, bytes]:
    """The files of a tiny model by name."""
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(kind, vocab_size=257).save_pretrained(folder, max_shard_size="30KB" if sharded else "5GB")
        byte_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def prepare() -> None:
    """Make the models before the harness forks, so that no case counts their time."""
    for kind in CONFIGS:
        base(kind, sharded=False)
        base(kind, sharded=True)


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def mutated_json(rng: random.Random, content: bytes, values: Sequence[Any]) -> bytes:
    if rng.random() < 0.15:
        return mutate_bytes(rng, content)
    return json_bytes(mutate_value(rng, json.loads(content), values))


def read_config(rng: random.Random, folder: Path) -> None:
    files = dict(base(rng.choice(list(CONFIGS)), sharded=False))
    files[MODEL_CONFIG_FILE] = mutated_json(rng, files[MODEL_CONFIG_FILE], SETTINGS)
    load_meta_model(write(folder, files))


def read_model(rng: random.Random, folder: Path) -> None:
    files = dict(base(rng.choice(list(CONFIGS)), sharded=rng.random() < 0.3))
    match rng.randrange(3):
        case 0:
            name = rng.choice([MODEL_CONFIG_FILE, MODEL_CONFIG_FILE, "generation_config.json"])
            files[name] = mutated_json(rng, files.get(name, b"{}"), SETTINGS)
        case 1 if MODEL_INDEX_FILE in files:
            files[MODEL_INDEX_FILE] = mutated_json(rng, files[MODEL_INDEX_FILE], FILES)
        case _:
            name = rng.choice([name for name in files if name.endswith(".safetensors")])
            files[name] = mutated_safetensors(rng, files[name])
    name = write(folder, files)
    folder_fingerprint(folder)
    load_model(name, rng.choice(["fp32", "bf16", "int8", "auto"]))


def mutated_safetensors(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = json_bytes(mutate_value(rng, json.loads(content[8 : 8 + length]), HEADERS))
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def read_tokenizer(rng: random.Random, folder: Path) -> None:
    files = dict(base("gpt2", sharded=False))
    del files[MODEL_FILE]
    name = rng.choice(["tokenizer.json", "tokenizer.json", TOKENIZER_CONFIG_FILE, "special_tokens_map.json"])
    files[name] = mutated_json(rng, files.get(name, b'{"eos_token": "a", "additional_special_tokens": []}'), SETTINGS)
    if rng.random() < 0.1:
        del files[rng.choice(list(files))]
    tokenizer = load_tokenizer(write(folder, files))
    tokenizer("枝を 3本\n<|endoftext|>").input_ids  # noqa: B018
    tokenizer(["a", "b" * 1000], add_special_tokens=False, verbose=False)


READERS = {"base configs": read_config, "base models": read_model, "base tokenizers": read_tokenizer}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    prepare()
    harness.check(name, READERS[name], harness.QUICK, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    prepare()
    harness.check(name, READERS[name], harness.LONG, tmp_path / "case")
