"""Fingerprints of what was learned: equal and nearly equal texts are found again, others are not."""

import random
from pathlib import Path

import numpy as np
import pytest

from tsugiki import TsugikiError
from tsugiki.base import local_folder
from tsugiki.data import (
    Document,
    Fingerprints,
    RecordIndex,
    find_learned,
    fingerprints,
    read_fingerprints,
    seen_texts,
    write_fingerprints,
)
from tsugiki.data.store import read_index
from tsugiki.io import LEARNED_FILE

LETTERS = "あいうえおかきくけこさしすせそ春夏秋冬山川草木人心時雨雪花"


def text(seed: int, length: int = 600) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


def index_of(*texts: str) -> RecordIndex:
    return read_index([Document(one, str(number)) for number, one in enumerate(texts)])


def learned_of(*texts: str) -> Fingerprints:
    return fingerprints(index_of(*texts), np.arange(len(texts)))


def test_equal_and_nearly_equal_texts_are_found():
    learned = [learned_of(*(text(seed) for seed in range(20))), learned_of(text(50))]
    edited = text(3)[:300] + "改" + text(3)[310:]
    asked = index_of(text(2), edited, text(50), text(99), "別の短い文。")
    assert find_learned(asked, learned) == ({0, 2}, {1})


@pytest.mark.parametrize("length", [5, 30, 100, 2000])
def test_other_texts_of_any_length_are_not_found(length: int):
    learned = learned_of(*(text(seed, length) for seed in range(200)))
    assert find_learned(index_of(*(text(seed, length) for seed in range(1000, 1100))), [learned]) == (set(), set())


def test_only_the_chosen_records_are_learned():
    index = index_of(text(1), text(2), text(3))
    assert find_learned(index, [fingerprints(index, np.array([0, 2]))])[0] == {0, 2}
    assert find_learned(index, [fingerprints(index, np.array([1, 2]))], np.array([0, 2]))[0] == {2}


def test_of_very_many_texts_only_equal_ones_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seen_texts, "_MOST_SKETCHES", 2)
    write_fingerprints([learned_of(text(1), text(2), text(3))], tmp_path)
    found = read_fingerprints(tmp_path)
    assert found is not None
    assert (len(found), found.sketches.shape) == (3, (0, 126))
    assert find_learned(index_of(text(3), text(2)[:-1] + "改", text(4)), [found]) == ({0}, set())


def test_they_are_written_beside_the_adapter_and_read_from_its_checkpoints_too(tmp_path: Path):
    write_fingerprints([learned_of(text(1))], tmp_path)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for folder in (tmp_path, checkpoint):
        found = read_fingerprints(folder)
        assert found is not None
        assert find_learned(index_of(text(1)), [found]) == ({0}, set())
    assert read_fingerprints(tmp_path / "checkpoints") is None


def test_fingerprints_of_several_are_joined_and_each_text_is_written_once(tmp_path: Path):
    write_fingerprints([learned_of(text(1), text(2)), learned_of(text(2), text(3))], tmp_path)
    found = read_fingerprints(tmp_path)
    assert found is not None
    assert len(found) == 3
    edited = text(3)[:300] + "改" + text(3)[310:]
    assert find_learned(index_of(text(1), text(2), edited, text(4)), [found]) == ({0, 1}, {2})


@pytest.mark.parametrize("change", [lambda data: data[:50], lambda data: b"{}" + data, lambda data: data[:-3]])
def test_a_damaged_file_is_one_line(change, tmp_path: Path):
    write_fingerprints([learned_of(text(1), text(2))], tmp_path)
    path = tmp_path / LEARNED_FILE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TsugikiError, match=LEARNED_FILE):
        read_fingerprints(tmp_path)


def test_the_embedded_base_tells_what_it_has_learned():
    folder = local_folder("embedded")
    assert folder is not None
    found = read_fingerprints(folder)
    assert found is not None
    assert len(found) == 3205
    assert find_learned(index_of(text(1), "庭の梅が咲いた。"), [found]) == (set(), set())
