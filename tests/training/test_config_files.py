import math
from pathlib import Path
from typing import Any

import pytest

from tsugiki import TsugikiError
from tsugiki.training import load_config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rate": -1.0}, "learning_rate: .*greater than 0"),
        ({"learning_rate": math.nan}, "learning_rate: .*finite"),
        ({"learning_rate": math.inf}, "learning_rate: .*finite"),
        ({"epochs": 0}, "epochs: .*greater than 0"),
        ({"lora": {"r": 0}}, "r: "),
        ({"lora": {"rank": 4}}, "rank"),
        ({"method": "lola"}, "method: .*lora"),
        ({"method": "dora", "lora": {"use_dora": False}}, "use_dora is True"),
        ({"method": "houlsby", "method_config": {"mh_adapter": False}}, "mh_adapter is True"),
        ({"lora": {"freeze_B": True}}, "freeze_A"),
        ({"banana": 1}, "banana: unknown setting$"),
        ({"learning_rat": 1}, "learning_rat: unknown setting; did you mean 'learning_rate'"),
        ({"batch_size": "many"}, "batch_size"),
    ],
)
def test_invalid_values_are_refused_by_name(fields: dict[str, Any], said: str):
    with pytest.raises(TsugikiError, match=said):
        load_config(None, {"model": "m", "data": "d", "out": "o", **fields})


def test_yaml_and_flags(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nout: o\nlora: {r: 4}\nepochs: 2\n")
    config = load_config(path, {"epochs": 5, "lora": {"lora_alpha": 16}})
    assert (config.epochs, config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (5, 4, 16, 0.1)
    for content, said in (
        ("[1]", "holds no settings"),
        ("a: [", "is not YAML"),
        ("lora: 5", "lora is 5"),
        ("model: m", "data: field required"),
    ):
        path.write_text(content)
        with pytest.raises(TsugikiError, match=said):
            load_config(path, {})
