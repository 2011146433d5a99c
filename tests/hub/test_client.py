"""Push and pull against a hub on this machine, through huggingface_hub itself."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.hub_server import READER, HubServer
from tests.tiny import logits, save_grafted, tiny_model
from tsugiki import LoraConfig, TsugikiError, load_adapter
from tsugiki.hub import HUB_FILES, pull, push, refuse_unknown_base
from tsugiki.io import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHAT_TEMPLATE_FILE, METADATA_FILE
from tsugiki.io.file_names import RECORD_FILE


def saved(folder: Path, seed: int = 3) -> torch.Tensor:
    """Save a shaken adapter of a tiny GPT-2; returns its logits."""
    return logits(save_grafted(folder, tiny_model(), LoraConfig(r=4, lora_alpha=12), seed))


def files_of(folder: Path) -> dict[str, bytes | Path]:
    return {path.name: path for path in folder.iterdir()} | {"README.md": b"---\nlicense: mit\n---\n"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nobody_minds(card: str) -> bool:
    return True


def test_what_is_pulled_is_what_was_pushed(hub: HubServer, tmp_path: Path):
    adapted = saved(tmp_path / "a")
    pushed = push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    assert pushed.url == f"{hub.url}/me/it"
    assert (pushed.outcome, pushed.kept_card) == ("sent", False)
    commit = pull("me/it", tmp_path / "b")
    assert commit == pushed.commit == hub.repositories["me/it"].commits[-1][0]
    there = contents(tmp_path / "b")
    assert there.pop("README.md").startswith(b"---")
    assert there == contents(tmp_path / "a")
    model = load_adapter(tiny_model(), tmp_path / "b")
    assert torch.equal(logits(model), adapted)


def test_peft_loads_it_from_there(hub: HubServer, tmp_path: Path):
    adapted = saved(tmp_path / "a")
    push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    theirs = peft.PeftModel.from_pretrained(tiny_model(), "me/it")
    assert float((logits(theirs) - adapted).abs().max()) < 1e-5
    assert f"GET /me/it/resolve/main/{ADAPTER_CONFIG_FILE}" in hub.requests


def test_a_second_push_takes_the_place_of_the_first(hub: HubServer, tmp_path: Path):
    saved(tmp_path / "a")
    saved(tmp_path / "b", seed=4)
    for name in (RECORD_FILE, CHAT_TEMPLATE_FILE, "tokenizer.json"):
        (tmp_path / "a" / name).write_text("{}")
    hub.add("me/it", {"notes.md": b"mine"})
    first = push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    again = push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    assert (again.outcome, again.commit) == ("unchanged", first.commit)
    second = push(files_of(tmp_path / "b"), "me/it", may_replace_card=nobody_minds)
    assert second.outcome == "updated"
    there = hub.repositories["me/it"].files
    assert there["adapter_model.safetensors"] == (tmp_path / "b" / "adapter_model.safetensors").read_bytes()
    assert not {RECORD_FILE, CHAT_TEMPLATE_FILE, "tokenizer.json"} & there.keys()  # they belong to the first adapter
    assert there["notes.md"] == b"mine"
    assert pull("me/it", tmp_path / "old", first.commit) == first.commit
    expected = contents(tmp_path / "a")
    del expected["tokenizer.json"]  # it is downloaded only if the adapter has added words
    assert contents(tmp_path / "old").items() >= expected.items()


def test_a_card_of_somebody_stays(hub: HubServer, tmp_path: Path):
    saved(tmp_path / "a")
    hub.add("me/it", {"README.md": "# わたしの\n".encode()})
    seen = []

    def mine(card: str) -> bool:
        seen.append(card)
        return False

    assert push(files_of(tmp_path / "a"), "me/it", may_replace_card=mine).kept_card
    assert seen == ["# わたしの\n"]
    assert hub.repositories["me/it"].files["README.md"] == "# わたしの\n".encode()
    assert "adapter_model.safetensors" in hub.repositories["me/it"].files
    assert not push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds).kept_card
    assert hub.repositories["me/it"].files["README.md"].startswith(b"---\nlicense")


def test_private_is_private_or_nothing(hub: HubServer, tmp_path: Path):
    saved(tmp_path / "a")
    push(files_of(tmp_path / "a"), "me/new", may_replace_card=nobody_minds, private=True)
    assert hub.repositories["me/new"].private
    hub.add("me/old", {})
    with pytest.raises(TsugikiError, match="me/old.*private"):
        push(files_of(tmp_path / "a"), "me/old", may_replace_card=nobody_minds, private=True)
    assert hub.repositories["me/old"].files == {}


def test_a_change_meanwhile_is_not_overwritten(hub: HubServer, tmp_path: Path):
    saved(tmp_path / "a")
    hub.add("me/it", {"README.md": b"old"})

    def edit(_: str) -> bool:
        hub.repositories["me/it"].commit({"README.md": b"new"})
        return True

    with pytest.raises(TsugikiError, match="me/it"):
        push(files_of(tmp_path / "a"), "me/it", may_replace_card=edit)
    assert hub.repositories["me/it"].files == {"README.md": b"new"}


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("/repos/create", 401, "token.*hf auth login"),
        ("/repos/create", 403, "me/it.*write access"),
        ("/api/models/me/it", 404, "me/it"),
        ("/commit/", 409, "me/it.*again"),
        ("/commit/", 429, "minutes"),
    ],
)
def test_a_push_that_the_hub_refuses_is_one_sentence(
    part: str, status: int, said: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    saved(tmp_path / "a")
    hub.failures[part] = status
    with pytest.raises(TsugikiError, match=said) as caught:
        push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    assert "\n" not in str(caught.value)
    assert all(set(one.files) == {".gitattributes"} for one in hub.repositories.values())


def test_a_token_that_may_only_read(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "a")
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(TsugikiError, match="write access"):
        push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    monkeypatch.setenv("HF_TOKEN", "トークン")
    with pytest.raises(TsugikiError, match="characters.*HF_TOKEN"):
        push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(TsugikiError, match="hf auth login"):
        push(files_of(tmp_path / "a"), "me/it", may_replace_card=nobody_minds)
    assert hub.repositories == {}


@pytest.mark.parametrize("repo_id", ["it", "me/../it", "me/it/there", "", "me/日本"])
def test_names_that_cannot_be_are_not_asked_for(repo_id: str, hub: HubServer, tmp_path: Path):
    with pytest.raises(TsugikiError, match="USER/NAME"):
        push({}, repo_id, may_replace_card=nobody_minds)
    with pytest.raises(TsugikiError, match="USER/NAME"):
        pull(repo_id, tmp_path / "b")
    assert hub.requests == []


def adapter_files(tmp_path: Path, **changed: bytes | None) -> dict[str, bytes]:
    saved(tmp_path / "source")
    files = {**contents(tmp_path / "source"), **changed}
    return {name: content for name, content in files.items() if content is not None}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({ADAPTER_CONFIG_FILE: None, "config.json": b"{}"}, "me/it.*--model"),
        ({ADAPTER_CONFIG_FILE: None}, f"me/it.*{ADAPTER_CONFIG_FILE}"),
        ({ADAPTER_FILE: None, "adapter_model.bin": b"\x80"}, "adapter_model.bin.*safetensors"),
        ({ADAPTER_CONFIG_FILE: b'{"peft_type": "LOHA"}'}, f"me/it.*{ADAPTER_CONFIG_FILE}.*peft_type.*'LOHA'"),
        ({ADAPTER_FILE: b"\x10\0\0\0\0\0\0\0{"}, f"me/it.*{ADAPTER_FILE}"),
    ],
)
def test_what_is_no_whole_adapter_is_not_pulled(changed: dict[str, Any], said: str, hub: HubServer, tmp_path: Path):
    hub.add("me/it", adapter_files(tmp_path, **changed, **{METADATA_FILE: None}))
    (tmp_path / "library").mkdir()
    with pytest.raises(TsugikiError, match=said):
        pull("me/it", tmp_path / "library" / "b")
    assert list((tmp_path / "library").iterdir()) == []
    assert not any("adapter_model.bin" in request for request in hub.requests)


def test_only_an_adapters_own_files_are_fetched(hub: HubServer, tmp_path: Path):
    more = {"adapter_model.bin": b"\x80", "train.py": b"1", "../outside": b"1", "sub/run.json": b"{}"}
    hub.add("me/it", {**adapter_files(tmp_path), **more})
    pull("me/it", tmp_path / "library" / "b")
    assert set(contents(tmp_path / "library" / "b")) <= set(HUB_FILES)
    assert not any(name in request for request in hub.requests for name in more)
    assert [path.name for path in (tmp_path / "library").iterdir()] == ["b"]


@pytest.mark.parametrize("name", [ADAPTER_FILE, ADAPTER_CONFIG_FILE])
def test_what_was_cut_short_is_not_there(name: str, hub: HubServer, tmp_path: Path):
    hub.add("me/it", adapter_files(tmp_path))
    hub.cut.add(name)
    (tmp_path / "library").mkdir()
    with pytest.raises(TsugikiError, match=f"me/it.*again|{ADAPTER_CONFIG_FILE}.*JSON"):
        pull("me/it", tmp_path / "library" / "b")
    assert list((tmp_path / "library").iterdir()) == []


def test_a_taken_name_is_refused_before_anything_is_fetched(hub: HubServer, tmp_path: Path):
    hub.add("me/it", adapter_files(tmp_path))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    with pytest.raises(TsugikiError, match="exists"):
        pull("me/it", tmp_path / "b")
    assert hub.requests == []
    assert contents(tmp_path / "b") == {"mine": b"x"}


def test_revisions_and_repositories_that_are_not_there(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.add("me/it", adapter_files(tmp_path))
    hub.add("me/gated", adapter_files(tmp_path), gated=True)
    hub.add("me/hidden", adapter_files(tmp_path), private=True)
    with pytest.raises(TsugikiError, match="me/it.*'v9'"):
        pull("me/it", tmp_path / "b", "v9")
    with pytest.raises(TsugikiError, match="me/nothing.*hf auth login"):
        pull("me/nothing", tmp_path / "b")
    with pytest.raises(TsugikiError, match="me/gated.*terms"):
        pull("me/gated", tmp_path / "b")
    pull("me/hidden", tmp_path / "mine")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(TsugikiError, match="me/hidden.*hf auth login"):
        pull("me/hidden", tmp_path / "b")
    hub.failures["/api/models/"] = 502
    with pytest.raises(TsugikiError, match="502"):
        pull("me/it", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_hub_that_is_away(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TsugikiError, match="http://127.0.0.1:9 "):
        pull("me/it", tmp_path / "b")


def test_a_repository_of_a_model_gets_no_adapter(hub: HubServer, tmp_path: Path):
    hub.add("me/model", {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(TsugikiError, match="me/model .* model"):
        push(adapter_files(tmp_path), "me/model", may_replace_card=nobody_minds)
    assert set(hub.repositories["me/model"].files) == {"config.json", "model.safetensors"}


def test_a_card_that_the_hub_does_not_take(hub: HubServer, tmp_path: Path):
    saved(tmp_path / "a")
    files = {**files_of(tmp_path / "a"), "README.md": b"---\nlicense: wtf-1.0\n---\n"}
    with pytest.raises(TsugikiError, match='"license" must be one of'):
        push(files, "me/it", may_replace_card=nobody_minds)


def test_bases_are_looked_up(hub: HubServer):
    hub.add("gpt2", {})
    hub.add("them/base", {})
    refuse_unknown_base("them/base")
    with pytest.raises(TsugikiError, match="them/typo.*--base"):
        refuse_unknown_base("them/typo")
