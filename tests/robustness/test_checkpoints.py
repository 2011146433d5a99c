"""A flipped bit in a checkpoint is found before anything of the checkpoint is used."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.runs import interrupt, run_config
from tsugiki.errors import TsugikiError
from tsugiki.io import CHECKPOINTS
from tsugiki.training import newest_checkpoint, train


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The only checkpoint of an interrupted run of this method."""
    method = {"method": "full"} if request.param == "full" else {"lora": {"r": 1, "target_modules": ["c_attn"]}}
    interrupt(train, run_config(tmp_path, max_steps=2, save_steps=1, prompts=[], **method), 1)
    return tmp_path / "run" / CHECKPOINTS / "checkpoint-1"


@pytest.mark.parametrize("checkpoint", ["lora", "full"], indirect=True)
def test_a_flipped_bit_is_found(checkpoint: Path):
    generator = random.Random(0)
    found = _flip(checkpoint, lambda size: generator.sample(range(8 * size), 25))
    assert set(found) == {path.name for path in checkpoint.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["lora"], indirect=True)
def test_every_flipped_bit_is_found(checkpoint: Path):
    found = _flip(checkpoint, lambda size: range(8 * size))
    print(f"\n{checkpoint.name}: {found.total():,} bits flipped one by one, all found")
    for name, count in sorted(found.items()):
        print(f"  {name} {count:,}")


def _flip(checkpoint: Path, bits: Callable[[int], Iterable[int]]) -> Counter[str]:
    """Flip bits of each file, one at a time, and return how many were found, by file.

    Args:
        checkpoint: it must be the only one in its folder.
        bits: returns the numbers of the bits for the size of a file in bytes.
    """
    found: Counter[str] = Counter()
    intact = newest_checkpoint(checkpoint.parent)
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        for bit in bits(len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert _is_damaged(checkpoint), f"bit {bit} of {path.name} was flipped, and the checkpoint was read"
            found[path.name] += 1
        path.write_bytes(content)
    assert newest_checkpoint(checkpoint.parent) == intact
    return found


def _is_damaged(checkpoint: Path) -> bool:
    try:
        newest_checkpoint(checkpoint.parent)
    except TsugikiError as error:
        return checkpoint.name in str(error) and "\n" not in str(error)
    return False
