"""Near-duplicates of invented texts, compared with plain loops, and of the Aozora corpus."""

import hashlib
import random
import unicodedata
from collections import defaultdict

import numpy as np
import pytest

from tsugiki.data import SHINGLE, duplicates, fold, near_duplicates, signature, signatures, similarity

MODERN = (
    "庭の奥に古い井戸があって、そこの水は夏でも氷のように冷たかった。祖母は毎朝そこへ行って、「今日はよい"
    "天気でしょう」と言いながら桶に水を汲んだ。私はその声を聞くと目をさまし、学校へ行く支度をしたものだ。"
    "帰りには弟と一緒に団栗を拾い、机の引き出しへしまっておいた。"
)
OLD = (
    "庭の奧に古い井戸があつて、そこの水は夏でも氷のやうに冷たかつた。祖母は毎朝そこへ行つて、『今日はよい"
    "天氣でせう』と言ひながら桶に水を汲んだ。私はその聲を聞くと目をさまし、學校へ行く支度をしたものだ。歸"
    "りには弟と一緖に團栗を拾ひ、机の引き出しへしまつておいた。"
)
OTHER = (
    "港の外れに小さな時計屋があり、店の主人は一日じゅう窓の下で歯車を磨いていた。客はめったに来なかったが"
    "、鐘の鳴る頃になると子供たちが集まって、彼の手もとをじっと眺めた。壊れた時計はみな、直ったとたんに同"
    "じ時を打つのである。"
)


def groups(*texts: str) -> list[list[int]]:
    return near_duplicates([signature(text) for text in texts])


def folded_codes(text: str) -> list[int]:
    codes, owners = fold([text])
    assert not owners.any()
    return list(codes.tolist())


def shingles(text: str) -> set[tuple[int, ...]]:
    padding = [0] * (SHINGLE - 1)
    folded = [*padding, *folded_codes(text), *padding]
    return {tuple(folded[start : start + SHINGLE]) for start in range(len(folded) - SHINGLE + 1)}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def random_text(rng: random.Random, length: int) -> str:
    return "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(length))


def edited(rng: random.Random, text: str, edits: int) -> str:
    characters = list(text)
    for place in rng.sample(range(len(text)), edits):
        characters[place] = "鱧"
    return "".join(characters)


# Orthography


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MODERN, OLD),
        ("きやうだい、てふてふ、けふ", "きょうだい、ちょうちょう、きょう"),
        ("人々のこゝろ", "人人のこころ"),
        ("ハンカチとＡＢＣ１２ ｶﾀﾝ 神", "はんかちとabc12 カタン 神"),
        (unicodedata.normalize("NFD", "がんばる"), "がんばる"),
        ("改行\nと　空白", "改行と空白"),
        ("か" + "\u0301" * 29 + "\u3099", "が"),
    ],
)
def test_fold_equates_two_spellings(one: str, other: str) -> None:
    assert folded_codes(one) == folded_codes(other)


@pytest.mark.parametrize(("one", "other"), [("はい", "いいえ"), ("三人", "二人"), ("かく", "がく"), ("1+1", "1-1")])
def test_fold_distinguishes_different_texts(one: str, other: str) -> None:
    assert folded_codes(one) != folded_codes(other)


# Signatures


def test_signature_is_the_same_everywhere() -> None:
    made = signature(MODERN)
    hostile = signature("か" + "\u3099\u0301\u0327" * 100_000)  # marks are not compared, and take linear time
    assert (hostile == signature("が")).all()
    assert (made.dtype, made.shape, made.nbytes) == (np.uint32, (126,), 504)
    assert hashlib.sha256(made.astype("<u4").tobytes()).hexdigest()[:16] == "db4f53e232e914b0"


def test_signatures_of_several_texts_are_those_of_each_text() -> None:
    draw = random.Random(0)
    letters = [*"いきしちやゆよううあかさたっ々ゝー。、 　11aaＡｱﾞ庭梅學", "\u0301", "\u3099", "\U0010ffff", "\ud800"]
    texts = ["", "。、", "\u0301" * 40, "う", "や", "x" * 9000, MODERN, "か" + "\u3099\u0301\u0327" * 40, "1", "1"]
    texts += ["".join(draw.choices(letters, k=draw.randint(0, 12))) for _ in range(500)]
    draw.shuffle(texts)
    found = signatures(texts)
    assert found.dtype == np.uint32
    for text, row in zip(texts, found, strict=True):
        assert row.tolist() == signature(text).tolist(), repr(text)
    assert signatures([]).shape == (0, 126)


@pytest.mark.parametrize(("length", "tolerance"), [(20, 0.12), (100, 0.16), (3000, 0.18)])
def test_similarity_estimates_the_jaccard_index_of_the_shingles(length: int, tolerance: float) -> None:
    rng = random.Random(length)
    errors = []
    for share in (0.0, 0.002, 0.01, 0.05, 0.1, 0.2, 0.3) * 6:
        one = random_text(rng, length)
        other = edited(rng, one, round(share * length))
        errors.append(float(similarity(signature(one), signature(other))) - jaccard(one, other))
    assert max(map(abs, errors)) < tolerance
    assert abs(sum(errors) / len(errors)) < 0.02


# Groups


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((MODERN, OTHER, OLD), [[0, 2]]),
        (("明日の朝は何時に起きればよいですか。", "明日の朝は何時に起きればよいですか？"), [[0, 1]]),
        (("……", "……"), [[0, 1]]),
        (("", ""), [[0, 1]]),
        ((OTHER, OTHER.replace("一日じゅう", "朝から晩まで").replace("小さな", "古い")), [[0, 1]]),
        ((OTHER, f"問い：この話を要約してください。\n{OTHER}"), [[0, 1]]),
        # a shared template makes no near-duplicates
        (("「犬」を英語で何と言いますか。", "「鉛筆」を英語で何と言いますか。"), []),
        (("はい、そうです。", "いいえ、そうではありません。"), []),
        (("……", "？！"), []),
        ((), []),
    ],
)
def test_small_changes_make_near_duplicates(texts: tuple[str, ...], found: list[list[int]]) -> None:
    assert groups(*texts) == found


def test_similarity_is_transitive() -> None:
    rng = random.Random(3)
    first = random_text(rng, 400)
    second = edited(rng, first, 25)
    third = edited(rng, second, 25)
    assert groups(third, OTHER, first, second) == [[0, 2, 3]]


def test_groups_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_PAIRS", 1)
    rng = random.Random(4)
    texts, made = [], []
    for label in range(150):
        text = random_text(rng, rng.choice((20, 60, 300, 2000)))
        for _ in range(rng.choice((1, 1, 2, 3))):
            texts.append(edited(rng, text, len(text) // 60))
            made.append(label)
    order = rng.sample(range(len(texts)), len(texts))
    expected = defaultdict(list)
    for place, index in enumerate(order):
        expected[made[index]].append(place)
    found = groups(*(texts[index] for index in order))
    assert found == sorted(members for members in expected.values() if len(members) > 1)


def test_nearly_all_pairs_of_half_equal_long_texts_are_found() -> None:
    rng = random.Random(6)
    pairs = []
    for _ in range(60):
        common = random_text(rng, 2000)
        pairs.append((common + random_text(rng, 1000), common + random_text(rng, 1000)))
    assert 0.49 < jaccard(*pairs[0]) < 0.51
    found = groups(*(text for pair in pairs for text in pair))
    assert all(group[0] % 2 == 0 and group[1:] == [group[0] + 1] for group in found)
    assert len(found) >= 56


def test_many_texts_of_one_template_take_linear_time() -> None:
    rng = random.Random(5)
    template = "次の文を読んで、その要点を一つだけ短くまとめてください。"
    texts = [template + random_text(rng, 60) for _ in range(600)]
    signatures = [signature(text) for text in [*texts, *(edited(rng, text, 1) for text in texts)]]
    assert near_duplicates(signatures) == [[index, index + 600] for index in range(600)]
