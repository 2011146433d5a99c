"""Checkpoints of a run."""

from pathlib import Path

from transformers import AutoModelForCausalLM

from tests.runs import run_config, tiny_base
from tsugiki import load_adapter
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.train.checkpoint import checkpoints
from tsugiki.train.run import CHECKPOINTS, train


def test_a_checkpoint_is_an_adapter_folder(tmp_path: Path):
    train(run_config(tmp_path))
    last = checkpoints(tmp_path / "run" / CHECKPOINTS)[-1]
    model = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path))
    load_adapter(model, last)
    assert (last / ADAPTER_FILE).read_bytes() == (tmp_path / "run" / ADAPTER_FILE).read_bytes()
