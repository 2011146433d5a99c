"""`tsugiki push` and `tsugiki pull` as a person uses them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.hub_server import HubServer
from tests.tiny import save_grafted, tiny_model
from tsugiki import LoraConfig
from tsugiki.io import ADAPTER_FILE


@pytest.fixture(autouse=True)
def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))


def test_there_and_back(trained: str, hub: HubServer, run, tmp_path: Path):
    hub.add("them/base", {})
    arguments = ("push", "run", "me/niwashi", "--base", "them/base", "--license", "mit", "--language", "ja")
    status, card, err = run(*arguments, "--dry-run")
    assert status == 0
    assert hub.requests == []
    assert card.startswith("---\nbase_model: them/base\n")
    assert f"bytes  {ADAPTER_FILE}" in err

    status, out, err = run(*arguments)
    assert (status, out.startswith(f"{hub.url}/me/niwashi (")) == (0, True)
    assert "note:" not in err
    there = hub.repositories["me/niwashi"].files
    assert there["README.md"].decode() == card
    assert ModelCard(card).data.license == "mit"
    assert str(tmp_path) not in card + there["run.json"].decode() + there["adapter_config.json"].decode()

    status, out, _ = run("pull", "me/niwashi", "--name", "庭師")
    assert (status, "an adapter for them/base" in out) == (0, True)
    pulled = tmp_path / "library" / "庭師"
    assert (pulled / ADAPTER_FILE).read_bytes() == Path("run", ADAPTER_FILE).read_bytes()
    prompt = ("generate", "--model", trained, "--prompt", "枝", "--max-new-tokens", "9", "--adapter")
    assert run(*prompt, str(pulled))[1] == run(*prompt, "run")[1]
    assert run("report", str(pulled))[0] == 0

    status, out, _ = run(*arguments)
    assert (status, "nothing differs" in out) == (0, True)
    assert run("push", "庭師", "me/another", "--base", "none")[0] == 0  # by its name in the library


def test_a_card_that_a_person_edited(trained: str, hub: HubServer, run):
    assert run("push", "run", "me/it")[0] == 0
    repository = hub.repositories["me/it"]
    edited = repository.files["README.md"] + "\nわたしの言葉。\n".encode()
    repository.commit({**repository.files, "README.md": edited})
    status, _, err = run("push", "run", "me/it", "--license", "mit")
    assert (status, "--replace-card" in err) == (0, True)
    assert repository.files["README.md"] == edited
    assert run("push", "run", "me/it", "--license", "mit", "--replace-card")[0] == 0
    assert b"license: mit" in repository.files["README.md"]
    assert run("push", "run", "me/it", "--license", "apache-2.0")[0] == 0  # one that nobody edited
    assert b"license: apache-2.0" in repository.files["README.md"]


@pytest.mark.slow
def test_through_hf_endpoint(trained: str, hub: HubServer, tmp_path: Path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    code = (
        "import sys\nfrom tsugiki.cli import root_command\n"
        "for arguments in (['push', 'run', 'me/it'], ['pull', 'me/it']):\n"
        "    root_command()(arguments, standalone_mode=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (tmp_path / "library" / "it" / ADAPTER_FILE).read_bytes() == Path("run", ADAPTER_FILE).read_bytes()
    assert [line.partition(" ")[0] == "next:" for line in done.stdout.splitlines()] == [False, True, False, True]
    assert "it/s" not in done.stderr  # no bars where there is no terminal


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("push", "nowhere", "me/it"), "nowhere"),
        (("push", "run", "it"), "'it'"),
        (("push", "run", "me/it", "--base", "them/typo"), "them/typo"),
        (("push", "run", "me/it", "--message", " "), "--message"),
        (("push", "run", "me/open", "--private"), "--private"),
        (("pull", "me/nothing"), "me/nothing"),
        (("pull", "me/open", "--name", "taken"), "taken"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, hub: HubServer, run, tmp_path: Path):
    model = tiny_model()
    model.name_or_path = "embedded"
    save_grafted(tmp_path / "run", model, LoraConfig(r=4))
    (tmp_path / "library" / "taken").mkdir(parents=True)
    (tmp_path / "library" / "taken" / "mine").write_text("x")
    hub.add("me/open", {"notes.md": b""})
    status, out, err = run(*arguments)
    errors = [line for line in err.splitlines() if line.startswith("tsugiki: ")]
    assert (status, out, len(errors)) == (2, "", 1)
    assert said in errors[0]
    assert not any(ADAPTER_FILE in repository.files for repository in hub.repositories.values())
    assert [path.name for path in (tmp_path / "library").iterdir()] == ["taken"]
