"""`tsugiki plan` and `tsugiki train --fit` from the command line."""

import json
import shlex
from pathlib import Path

import pytest

from tests.files import json_of
from tests.hub_server import HubServer
from tests.runs import TRAIN
from tsugiki.base import load_model
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets
from tsugiki.training.tools import memory


def test_a_plan_is_a_table_or_json_and_names_a_command_that_runs(base: str, run):
    arguments = ("--model", base, "--data", "text.txt", "--block-size", "32", "--base-dtype", "fp32", "--r", "4")
    assert "fits, chosen" in run("plan", *arguments)[1]
    found = json.loads(run("plan", *arguments, "--max-steps", "2", "--json")[1])
    keys = {"base_dtype", "recompute", "micro_batch_size", "peak_memory", "seconds", "fits"}
    assert all(keys <= option.keys() for option in found["options"])
    assert found["options"][0]["fits"]
    words = shlex.split(found["command"])
    assert words[:2] == ["tsugiki", "train"]
    status, _, err = run(*words[1:])
    assert status == 0, err
    assert Path("RUN/run.json").exists()


def test_a_plan_counts_the_output_head_that_a_run_adds_by_itself(base: str, run):
    arguments = ("--model", base, "--data", "text.txt", "--block-size", "32", "--max-steps", "1")
    layers = find_targets(load_model(base), LoraConfig())
    both = ",".join([*{path.rpartition(".")[2] for path in layers}, "lm_head"])
    found = json.loads(run("plan", *arguments, "--json")[1])
    given = json.loads(run("plan", *arguments, "--json", "--target-modules", both)[1])
    assert found["head"] > 0
    assert found["trainable"] + found["head"] == given["trainable"]
    assert given["head"] == 0


def test_a_model_on_the_hub_is_not_downloaded(base: str, run, hub: HubServer):
    files = {path.name: path.read_bytes() for path in Path(base).iterdir()}
    hub.add("some/one", files)
    status, out, err = run("plan", "--model", "some/one", "--block-size", "32", "--base-dtype", "fp32")
    assert status == 0, err
    assert "to download" in out
    assert not any("tokenizer" in request for request in hub.requests)
    config = json.loads(files["config.json"])
    hub.add("some/other", {**files, "config.json": json.dumps({**config, "n_embd": 2 * config["n_embd"]}).encode()})
    status, out, err = run("plan", "--model", "some/other")
    assert (status, out) == (2, "")
    assert "in its files" in err.splitlines()[-1]


@pytest.mark.slow
def test_what_fits_nowhere_is_told_with_the_smallest_need(base: str, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    status, out, _ = run("plan", "--model", base, "--block-size", "32")
    assert status == 1
    assert "does not fit in the memory" in out
    status, out, err = run("train", "--model", base, *TRAIN, "--fit")
    assert status == 2
    assert "does not fit in the memory" in err.splitlines()[-1]
    assert not Path("run").exists()


def test_fit_takes_an_option(base: str, run):
    status, _, err = run("train", "--model", base, *TRAIN, "--fit", "--base-dtype", "nf4")
    assert status == 0, err
    assert json_of("run/run.json")["config"]["base_dtype"] == "nf4"


def test_a_plan_for_another_machine(base: str, run):
    arguments = ("--model", base, "--block-size", "32", "--json")
    found = json.loads(run("plan", *arguments, "--memory", "8 GB", "--device", "cuda")[1])
    assert (found["device"], found["available"], found["parts"]["process"]) == ("cuda", 8_000_000_000, 0)
    assert {option["base_dtype"] for option in found["options"]} == {"bf16", "int8", "nf4"}
    assert not any(option["step_seconds"] for option in found["options"])
    assert found["options"][0]["recomputed_blocks"] == 0
    status, out, _ = run("plan", *arguments[:-1], "--memory", "1KB", "--device", "cuda")
    assert status == 1
    assert "another machine" in out
