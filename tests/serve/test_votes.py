"""Votes become pairs in the library, which a run can learn from; what can be no pair is counted and left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("starlette")
import tsugiki.serve.votes as votes_module
from tests.serve.workspace import Place
from tsugiki.data.read.answers import read_answers


@pytest.fixture(autouse=True)
def empty(place: Place) -> Iterator[None]:
    yield
    place.post("votes/remove", {})


def vote(*texts: str, best: int = 0, prompt: Any = "春の朝、") -> dict[str, Any]:
    answers = [{"model": f"m{number}", "text": text} for number, text in enumerate(texts)]
    return {"prompt": prompt, "answers": answers, "best": best}


def rows(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.get("votes/file").text.splitlines()]


def test_a_vote_is_a_pair_with_each_other_answer(place: Place):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert place.post("vote", vote("a", "b", "c", best=1)).json() == {"pairs": 2, "added": 2, "left_out": 0}
    assert place.post("vote", vote("a", "b", prompt=messages)).json()["pairs"] == 3
    first, second, third = rows(place)
    assert (first["chosen"], first["rejected"], second["rejected"]) == ("春の朝、b", "春の朝、a", "春の朝、c")
    assert first["models"] == {"chosen": "m1", "rejected": "m0"}
    assert (third["prompt"], third["rejected"]) == (messages, [{"role": "assistant", "content": "b"}])
    listed = place.get("votes").json()
    assert (listed["pairs"], listed["last"]) == (3, [third, second, first])
    assert len(list(read_answers(str(place.running.library / ".votes" / "votes.jsonl")))) == 6
    assert place.post("votes/remove", {}).json()["pairs"] == 0
    assert place.get("votes/file").content == b""


@pytest.mark.parametrize(
    ("asked", "added", "left_out"),
    [
        (vote("", "b"), 0, 1), (vote(" \n", "b", "c"), 0, 2), (vote("a", ""), 0, 1), (vote("a", "a "), 0, 1),
        (vote("a", "a", "b"), 1, 1),
    ],
)  # fmt: skip
def test_empty_and_equal_answers_are_no_pair(place: Place, asked: dict[str, Any], added: int, left_out: int):
    assert place.post("vote", asked).json() == {"pairs": added, "added": added, "left_out": left_out}


def test_wrong_votes_and_too_many_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch):
    for wrong in (vote("a", "b", best=2), vote("a"), vote("a", "b", prompt=[{"role": "assistant", "content": "x"}])):
        assert place.post("vote", wrong).status_code == 400
    place.post("vote", vote("a", "b"))
    kept = rows(place)
    monkeypatch.setattr(votes_module, "_LARGEST", 200)
    assert place.post("vote", vote("a", "b")).status_code == 413
    assert rows(place) == kept


def bring(place: Place) -> Any:
    """Send the pairs as a file, as the page does to learn from them."""
    return place.send("votes.jsonl", place.get("votes/file").content)


def test_fewer_than_a_hundred_pairs_all_train_and_none_chooses(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(votes_module, "FEW", 3)

    def settings(**more: Any) -> Any:
        name = bring(place).json()["filename"]
        assert bring(place).json()["filename"] == name  # the same pairs are not written twice
        shown = place.post("train/settings", {"name": "first", "uploads": [name], **more}).json()
        return name, yaml.safe_load(shown["yaml"])

    place.post("vote", vote("a", "b"))
    place.post("vote", vote("a", "c"))
    first, given = settings()
    assert (given["held_out"], given["validation"]) == ("none", "none")
    assert Path(given["data"]).expanduser().read_bytes() == place.get("votes/file").content
    assert settings(held_out=0.1)[1]["held_out"] == 0.1
    assert "held_out" not in settings(texts=["a.txt"])[1]
    place.post("vote", vote("a", "d"))
    second, given = settings()
    assert not {"held_out", "validation"} & given.keys()
    for name in (first, second):
        assert place.discard(name).json()["deleted"]


def test_without_votes_there_is_nothing_to_learn(place: Place):
    assert bring(place).status_code == 400
    assert place.sent() == []


def test_what_can_be_read_of_a_damaged_file_is_shown_and_the_rest_is_named(place: Place):
    place.post("vote", vote("a", "b"))
    file = place.running.library / ".votes" / "votes.jsonl"
    good = file.read_bytes()
    for damaged in (b"xx", b"\xff\xfe", b"[" * 9000, b'{"chosen": "a"}', b"1", good[:20]):
        file.write_bytes(good + damaged + b"\n" + good)
        shown = place.get("votes").json()
        assert (shown["pairs"], len(shown["last"])) == (2, 2)
        assert shown["damaged"].startswith("votes.jsonl:2 is damaged")
        name = bring(place).json()["filename"]
        assert (place.running.library / ".texts" / name).read_bytes() == good * 2, "what can be read is learned"
        assert place.discard(name).json()["deleted"]
    file.write_bytes(b"xx")
    assert bring(place).status_code == 400


def test_a_vote_begins_a_line_of_its_own_after_an_editor(place: Place):
    place.post("vote", vote("a", "b"))
    file = place.running.library / ".votes" / "votes.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert place.post("vote", vote("c", "d\u2028e")).json()["pairs"] == 2
    assert [row["rejected"] for row in place.get("votes").json()["last"]] == ["春の朝、d\u2028e", "春の朝、b"]
    assert place.get("votes").json()["damaged"] == ""
