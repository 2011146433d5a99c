"""Two runs that want the same folder: one has it, and the other says so in one line."""

import os
from pathlib import Path

import pytest

from tests.errors import assert_refused
from tests.runs import short_texts, tiny_base
from tsugiki.io import sole_use
from tsugiki.training import RunConfig, SweepConfig, sweep, train


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    short_texts(tmp_path)
    given = {"model": tiny_base(tmp_path), "data": "texts"}
    run = RunConfig.model_validate({**given, "out": "run", "max_steps": 1})
    several = {**given, "out": "runs", "settings": {"max_steps": 1}, "grid": {"r": [1, 2]}}
    for function, config, flags in (
        (train, run, {}),
        (train, run, {"overwrite": True}),
        (sweep, SweepConfig.model_validate(several), {}),
    ):
        with sole_use(tmp_path / config.out):
            assert_refused(f"{config.out} is in use by process {os.getpid()}", function, config, **flags)
        assert not (tmp_path / config.out).exists()
