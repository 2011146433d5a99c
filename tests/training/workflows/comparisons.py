"""Settings and YAML files of small comparisons."""

from pathlib import Path
from typing import Any

import yaml

SETTINGS = {"max_steps": 3, "batch_size": 2, "block_size": 32, "held_out": 0.3, "sample_tokens": 4}


def write(name: str, **fields: Any) -> Path:
    path = Path(name)
    path.write_text(
        yaml.safe_dump({"model": "base", "data": "d.jsonl", "out": "c", **fields}, allow_unicode=True, sort_keys=False)
    )
    return path
