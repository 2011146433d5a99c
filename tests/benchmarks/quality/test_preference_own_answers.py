"""The verifier, on texts whose scores can be counted."""

import pytest
from benchmarks.quality.preference_own_answers import VERIFIERS


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("雨が降りました。傘がない。駅まで行きますか？", 2 / 3),
        ("雨が降りますから。\nそして", 1.0),
        ("雨が降る。ですが晴れた。", 0.0),
        ("まだ終わらない", 0.0),
    ],
)
def test_polite_sentences_are_counted_by_their_ends(text: str, score: float):
    assert VERIFIERS["polite"](text) == pytest.approx(score)
