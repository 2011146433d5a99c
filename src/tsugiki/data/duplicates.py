"""Documents that say nearly the same: one work in old and in modern orthography, an example with small edits.

Each text becomes a `signature` of fixed size; `near_duplicates` groups the indices of like signatures. To see
which held-out documents are also learned, group both lists together and look for groups with members of both.

What is compared are the sets of runs of four characters (shingles), after `fold` has taken out what orthography,
width and punctuation change. A signature is a one-permutation MinHash of the set: shingles are hashed into slots,
and each slot keeps its smallest hash. The share of equal slots estimates the Jaccard similarity of two sets, that
is the shingles they share by all they have, to about ±0.045; for texts of a line or two it is nearly exact.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tsugiki.data.old_characters import NEW_FORMS

SHINGLE = 4
SLOTS = 126

# The similarity that makes near-duplicates. Old and modern editions of a work fall to 0.44, works of one series
# reach 0.21; short texts reach 0.5 by sharing a turn of phrase such as …の首都はどこですか.
_LONG, _SHORT = 0.4, 0.6
# A pair is looked at if one of 42 bands of slots agrees: at similarity 0.4 for 94 % of pairs, at 0.5 for 99.6 %.
_BAND = 3
# In a crowd that agrees in a band each is compared with so many next to it: time stays linear, and likes that
# miss each other there meet in other bands.
_NEIGHBOURS = 4
_PAIRS = 1 << 15  # pairs compared at a time, for memory's sake
_EMPTY = 0xFFFFFFFF
_PIECE = 1 << 20  # characters hashed at a time, likewise

Signature = NDArray[np.uint32]


def signature(text: str) -> Signature:
    """uint32, shape (126,): the same for the same text on every machine; one text at a time, in linear time."""
    smallest = np.full(SLOTS, _EMPTY, np.uint32)
    for start in range(0, max(len(text), 1), _PIECE):
        piece = text[start : start + _PIECE]
        folded = fold(piece)
        hashes = _hash_shingles(folded if folded.size else _code_points(piece))
        slots = (hashes >> np.uint64(32)) * np.uint64(SLOTS) >> np.uint64(32)
        np.minimum.at(smallest, slots.astype(np.intp), hashes.astype(np.uint32))
    return smallest


def near_duplicates(signatures: Sequence[Signature] | NDArray[np.uint32]) -> list[list[int]]:
    """Groups of indices of near-duplicates, two or more in each, sorted; whatever is alone is in none.

    Likeness is passed on: where A is like B and B like C, the three are one group. Only signatures that
    agree in a band of slots are compared, and in a crowd only some: time is nearly linear. A million short
    texts take about half a minute and 1.5 GB, signatures included.
    """
    if not len(signatures):
        return []
    rows = np.asarray(signatures, np.uint32)
    group = np.arange(len(rows))
    for start in range(0, SLOTS, _BAND):
        order = np.lexsort(rows[:, start : start + _BAND].T)
        band = rows[order, start : start + _BAND]
        for distance in range(1, min(_NEIGHBOURS, len(rows) - 1) + 1):
            same = (band[distance:] == band[:-distance]).all(axis=1) & (band[distance:] != _EMPTY).any(axis=1)
            if not same.any():
                break
            one, other = order[:-distance][same], order[distance:][same]
            apart = group[one] != group[other]
            _join(group, rows, one[apart], other[apart])
    members = defaultdict(list)
    for index, first in enumerate(group.tolist()):
        members[first].append(index)
    return [indices for indices in members.values() if len(indices) > 1]


def similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of signatures, over the last axis."""
    shared = (one == other) & (one != _EMPTY)
    filled = (one != _EMPTY) | (other != _EMPTY)
    return np.asarray(shared.sum(axis=-1) / filled.sum(axis=-1))


def _are_alike(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.bool_]:
    # The share of small hashes tells how much text there is: 3 % at 20 characters, 18 % at 100, 86 % at 1000.
    length = (np.minimum(one, other) < 1 << 30).mean(axis=-1)
    return np.asarray(similarity(one, other) >= _SHORT + (_LONG - _SHORT) * length)


# Orthography ---------------------------------------------------------------------------------------------


def fold(text: str) -> NDArray[np.uint32]:
    """Code points of the text without what old and modern orthography, width and punctuation change.

    What is left: letters, digits and symbols, small and of plain width; new forms of characters; hiragana
    for all kana, with つ for っ, ず for づ, わいうえお for はひふへほ and such; そう for さう, しう for しょう,
    しやう and せう; no character but a digit twice in a row, since 々 and ゝ go too. For comparing alone.
    """
    table, before_u, kinds = _tables()
    codes: NDArray[np.uint32] = table[_code_points(unicodedata.normalize("NFC", text))]
    codes = codes[codes != 0]
    if not codes.size:
        return codes
    kind = kinds[codes]
    codes = codes[np.append(True, (kind[:-1] != _I_ROW) | (kind[1:] != _Y_ROW))]
    u_follows = np.append(codes[1:] == ord("う"), False)
    codes = np.where(u_follows, before_u[codes], codes)
    digit = (codes >= ord("0")) & (codes <= ord("9"))  # 11 is not 1
    different = np.append(True, (codes[1:] != codes[:-1]) | digit[1:])
    return np.asarray(codes[different])


_OLD_KANA = dict(
    zip("はひふへほをゐゑぢづぁぃぅぇぉっゃゅょゎゔ", "わいうえおおいえじずあいうえおつやゆよわう", strict=True)
)
_BEFORE_U = dict(
    zip(
        "あかさたなまやらわがざだばぱえけせてねめれげぜでべぺ",
        "おこそとのもよろおごぞどぼぽいきしちにみりぎじじびぴ",
        strict=True,
    )
)
_I_ROW, _Y_ROW = 1, 2


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint8]]:
    """By code point: what it folds to (0 for nothing), what it becomes before う, and its kind of kana."""
    table = np.arange(0x110000, dtype=np.uint32)
    table[:0x10000] = [_fold_character(chr(code)) for code in range(0x10000)]
    before_u = np.arange(0x110000, dtype=np.uint32)
    for kana, changed in _BEFORE_U.items():
        before_u[ord(kana)] = ord(changed)
    kinds = np.zeros(0x110000, np.uint8)
    kinds[[ord(kana) for kana in "いきしちにみりぎじびぴ"]] = _I_ROW
    kinds[[ord(kana) for kana in "やゆよ"]] = _Y_ROW
    return table, before_u, kinds


def _fold_character(character: str) -> int:
    plain = unicodedata.normalize("NFKC", character).casefold()
    if len(plain) != 1:  # ㍿ and such stay whole
        plain = character
    category = unicodedata.category(plain)
    if category[0] in "PZCM" or category == "Lm" or plain == "〓":  # Lm: ー 々 ゝ
        return 0
    if "ァ" <= plain <= "ヴ":
        plain = chr(ord(plain) - ord("ァ") + ord("ぁ"))
    return ord(_OLD_KANA.get(plain) or NEW_FORMS.get(plain) or plain)


# Hashing and grouping ------------------------------------------------------------------------------------


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _hash_shingles(codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """64-bit hashes of the runs of `SHINGLE` code points, with 0 around the text: its ends count like its middle."""
    wide = np.pad(codes, SHINGLE - 1).astype(np.uint64)
    count = wide.size - SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(SHINGLE):
        hashes += wide[place : place + count]
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return hashes ^ (hashes >> np.uint64(32))


def _join(group: NDArray[np.intp], rows: NDArray[np.uint32], one: NDArray[np.intp], other: NDArray[np.intp]) -> None:
    """Bring together, in place, the groups of those pairs that are alike; a group is named by its first index."""
    for start in range(0, len(one), _PAIRS):
        a, b = one[start : start + _PAIRS], other[start : start + _PAIRS]
        alike = _are_alike(rows[a], rows[b])
        for first, second in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
            first, second = sorted((_root(group, first), _root(group, second)))
            group[second] = first
    while (group != group[group]).any():
        group[:] = group[group]


def _root(group: NDArray[np.intp], index: int) -> int:
    while group[index] != index:
        group[index] = group[group[index]]
        index = int(group[index])
    return index
