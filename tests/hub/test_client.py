"""Push and pull against a hub on this machine, through huggingface_hub itself."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.errors import assert_refused
from tests.files import contents
from tests.hub_server import READER, HubServer
from tests.tiny import logits, save_grafted, tiny_model
from tsugiki import LoraConfig, load_adapter
from tsugiki.hub import HUB_FILES, pull, push, refuse_unknown_base
from tsugiki.io import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHAT_TEMPLATE_FILE, METADATA_FILE
from tsugiki.io.file_names import RECORD_FILE

CARD = b"---\nlicense: mit\n---\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], torch.Tensor]:
    """The files of an adapter of a tiny GPT-2, and its logits."""
    folder = tmp_path_factory.mktemp("made")
    adapted = logits(save_grafted(folder, tiny_model(), LoraConfig(r=4, lora_alpha=12)))
    return contents(folder), adapted


@pytest.fixture
def files(made: tuple[dict[str, bytes], torch.Tensor]) -> dict[str, bytes]:
    return dict(made[0])


def send(files: Any, repo_id: str = "me/it", card: bytes = CARD, may_replace: Any = lambda _: True, **more: Any) -> Any:
    return push({**files, "README.md": card}, repo_id, may_replace_card=may_replace, **more)


def test_what_is_pulled_is_what_was_pushed_and_peft_loads_it(hub: HubServer, made: Any, tmp_path: Path):
    files, adapted = made
    pushed = send(files)
    assert pushed.url == f"{hub.url}/me/it"
    assert (pushed.outcome, pushed.kept_card) == ("sent", False)
    assert pull("me/it", tmp_path / "b") == pushed.commit == hub.repositories["me/it"].commits[-1][0]
    there = contents(tmp_path / "b")
    assert there.pop("README.md").startswith(b"---")
    assert there == files
    assert torch.equal(logits(load_adapter(tiny_model(), tmp_path / "b")), adapted)
    theirs = peft.PeftModel.from_pretrained(tiny_model(), "me/it")
    assert float((logits(theirs) - adapted).abs().max()) < 1e-5
    assert f"GET /me/it/resolve/main/{ADAPTER_CONFIG_FILE}" in hub.requests


def test_a_second_push_takes_the_place_of_the_first(hub: HubServer, files: dict[str, bytes], tmp_path: Path):
    own = dict.fromkeys((RECORD_FILE, CHAT_TEMPLATE_FILE, "tokenizer.json"), b"{}")
    hub.add("me/it", {"notes.md": b"mine"})
    first = send({**files, **own})
    again = send({**files, **own})
    assert (again.outcome, again.commit) == ("unchanged", first.commit)
    save_grafted(tmp_path / "b", tiny_model(), LoraConfig(r=4, lora_alpha=12), 4)
    other = contents(tmp_path / "b")
    assert send(other).outcome == "updated"
    there = hub.repositories["me/it"].files
    assert there[ADAPTER_FILE] == other[ADAPTER_FILE]
    assert not own.keys() & there.keys()  # they belong to the first adapter
    assert there["notes.md"] == b"mine"
    assert pull("me/it", tmp_path / "old", first.commit) == first.commit
    del own["tokenizer.json"]  # it is downloaded only if the adapter has added words
    assert contents(tmp_path / "old").items() >= {**files, **own}.items()


def test_a_card_of_somebody_stays(hub: HubServer, files: dict[str, bytes]):
    mine, seen = "# わたしの\n", list[str]()
    hub.add("me/it", {"README.md": mine.encode()})
    assert send(files, may_replace=seen.append).kept_card
    there = hub.repositories["me/it"].files
    assert (seen, there["README.md"], ADAPTER_FILE in there) == ([mine], mine.encode(), True)
    assert not send(files).kept_card
    assert hub.repositories["me/it"].files["README.md"] == CARD


def test_a_change_meanwhile_is_not_overwritten(hub: HubServer, files: dict[str, bytes]):
    def edit(_: str) -> bool:
        hub.repositories["me/it"].commit({"README.md": b"new"})
        return True

    hub.add("me/it", {"README.md": b"old"})
    assert_refused("me/it", send, files, may_replace=edit)
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
    part: str, status: int, said: str, hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.failures[part] = status
    assert_refused(said, send, files)
    assert all(set(one.files) == {".gitattributes"} for one in hub.repositories.values())


@pytest.mark.parametrize(
    ("token", "said"), [(READER, "write access"), ("トークン", "characters.*HF_TOKEN"), (None, "hf auth login")]
)
def test_a_token_that_may_not_write(
    token: str | None, said: str, hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert_refused(said, send, files)
    assert hub.repositories == {}


def test_what_the_hub_has_or_does_not_take_is_refused(hub: HubServer, files: dict[str, bytes]):
    hub.add("me/model", {"config.json": b"{}", "model.safetensors": b""})
    hub.add("me/open", {})
    hub.add("them/base", {})
    assert_refused("me/model .* model", send, files, "me/model")
    assert_refused("me/open.*private", send, files, "me/open", private=True)
    assert_refused('"license" must be one of', send, files, "me/open", card=b"---\nlicense: wtf-1.0\n---\n")
    assert set(hub.repositories["me/model"].files) == {"config.json", "model.safetensors"}
    assert hub.repositories["me/open"].files == {}
    send(files, "me/new", private=True)
    assert hub.repositories["me/new"].private
    refuse_unknown_base("them/base")
    assert_refused("them/typo.*--base", refuse_unknown_base, "them/typo")


@pytest.mark.parametrize("repo_id", ["it", "me/../it", "me/it/there", "", "me/日本"])
def test_names_that_cannot_be_are_not_asked_for(repo_id: str, hub: HubServer, tmp_path: Path):
    assert_refused("USER/NAME", send, {}, repo_id)
    assert_refused("USER/NAME", pull, repo_id, tmp_path / "b")
    assert hub.requests == []


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
def test_what_is_no_whole_adapter_is_not_pulled(
    changed: dict[str, Any], said: str, hub: HubServer, files: dict[str, bytes], tmp_path: Path
):
    there = {**files, **changed, METADATA_FILE: None}
    hub.add("me/it", {name: content for name, content in there.items() if content is not None})
    (tmp_path / "library").mkdir()
    assert_refused(said, pull, "me/it", tmp_path / "library" / "b")
    assert list((tmp_path / "library").iterdir()) == []
    assert not any("adapter_model.bin" in request for request in hub.requests)


def test_only_an_adapters_own_files_are_fetched(hub: HubServer, files: dict[str, bytes], tmp_path: Path):
    more = {"adapter_model.bin": b"\x80", "train.py": b"1", "../outside": b"1", "sub/run.json": b"{}"}
    hub.add("me/it", {**files, **more})
    pull("me/it", tmp_path / "library" / "b")
    assert set(contents(tmp_path / "library" / "b")) <= set(HUB_FILES)
    assert not any(name in request for request in hub.requests for name in more)
    assert [path.name for path in (tmp_path / "library").iterdir()] == ["b"]


@pytest.mark.parametrize("name", [ADAPTER_FILE, ADAPTER_CONFIG_FILE])
def test_what_was_cut_short_is_not_there(name: str, hub: HubServer, files: dict[str, bytes], tmp_path: Path):
    hub.add("me/it", files)
    hub.cut.add(name)
    (tmp_path / "library").mkdir()
    assert_refused(f"me/it.*again|{ADAPTER_CONFIG_FILE}.*JSON", pull, "me/it", tmp_path / "library" / "b")
    assert list((tmp_path / "library").iterdir()) == []


def test_a_taken_name_is_refused_before_anything_is_fetched(hub: HubServer, files: dict[str, bytes], tmp_path: Path):
    hub.add("me/it", files)
    (tmp_path / "mine").write_text("x")
    assert_refused("exists", pull, "me/it", tmp_path)
    assert hub.requests == []
    assert contents(tmp_path) == {"mine": b"x"}


def test_revisions_and_repositories_that_are_not_there(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(said: str, repo_id: str, *revision: str) -> None:
        assert_refused(said, pull, repo_id, tmp_path / "b", *revision)

    hub.add("me/it", files)
    hub.add("me/gated", files, gated=True)
    hub.add("me/hidden", files, private=True)
    refused("me/it.*'v9'", "me/it", "v9")
    refused("me/nothing.*hf auth login", "me/nothing")
    refused("me/gated.*terms", "me/gated")
    pull("me/hidden", tmp_path / "mine")
    monkeypatch.delenv("HF_TOKEN")
    refused("me/hidden.*hf auth login", "me/hidden")
    hub.failures["/api/models/"] = 502
    refused("502", "me/it")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused("http://127.0.0.1:9 ", "me/it")
    assert not (tmp_path / "b").exists()
