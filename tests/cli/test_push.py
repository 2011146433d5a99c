"""`tsugiki push` and `tsugiki pull` as a person uses them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.hub_server import HubServer
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
    hf = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    for arguments in (["push", "run", "me/it"], ["pull", "me/it"]):
        command = [sys.executable, "-m", "tsugiki", *arguments]
        done = subprocess.run(command, env={**os.environ, **hf}, capture_output=True, text=True, check=True)
        assert [line.startswith("next: ") for line in done.stdout.splitlines()] == [False, True]
        assert "it/s" not in done.stderr  # no bars where there is no terminal
    assert (tmp_path / "library" / "it" / ADAPTER_FILE).read_bytes() == Path("run", ADAPTER_FILE).read_bytes()
