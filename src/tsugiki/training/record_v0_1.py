"""Translate the `run.json` of version 0.1, whose settings and figures had other names."""

import math
from typing import Any

FORMAT = 1
"""The `format` of a `run.json` that version 0.1 wrote."""

_CONFIG = {
    "frozen": "base_dtype",
    "arithmetic": "compute_dtype",
    "stored": "save_dtype",
    "own_text": "retention_data",
    "adapter": "method_config",
}
_SAVE_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_DATA = {"isolation": "document_masking", "learned_tokens_per_epoch": "target_tokens_per_epoch"}
_MASKING = {"positions": "position_ids", "mask": "attention_mask", "rows": "separate_rows"}
_RECORD = {"choices": "resolved_settings", "own_evaluations": "retention_evaluations"}
_EVALUATION = {
    "cut_windows": "split_windows",
    "left_out": "skipped_records",
    "round_trips": "tokenizer_is_lossless",
    "caveat": "warning",
}
_EMPTY_UNTIL_KNOWN = ("machine", "base", "data", "parameters", "training")


def translate_record(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a version 0.1 `run.json` under today's names, without `format`."""
    fields = _rename(fields, _RECORD)
    fields.pop("format", None)
    for name in _EMPTY_UNTIL_KNOWN:
        if fields.get(name) == {}:
            del fields[name]
    for name in ("evaluations", "retention_evaluations"):
        if isinstance(fields.get(name), list):
            fields[name] = [_rename(entry, _EVALUATION) if isinstance(entry, dict) else entry for entry in fields[name]]
    if isinstance(fields.get("config"), dict):
        fields["config"] = _translate_config(fields["config"])
    if isinstance(fields.get("resolved_settings"), dict):
        fields["resolved_settings"] = _rename(fields["resolved_settings"], _CONFIG)
    if isinstance(fields.get("data"), dict):
        fields["data"] = _rename(fields["data"], _DATA)
        masking = fields["data"].get("document_masking")
        if isinstance(masking, str):
            fields["data"]["document_masking"] = _MASKING.get(masking, masking)
    return fields


def _translate_config(config: dict[str, Any]) -> dict[str, Any]:
    config = _rename(config, _CONFIG)
    if config.get("method") != "pretrain":
        config.setdefault("validation", "none")
    dtype = config.get("save_dtype")
    if isinstance(dtype, str):
        config["save_dtype"] = _SAVE_DTYPES.get(dtype, dtype)
    # `batch_size` was the rows of a batch, of which a step had several.
    batches = config.pop("grad_accum", 1)
    if isinstance(config.get("batch_size"), int) and isinstance(batches, int):
        config["batch_size"] *= batches
    for name in ("warmup", "decay"):
        # One setting held both: a value below 1 was a share of all steps.
        length = config.pop(f"{name}_steps", None)
        if isinstance(length, int | float) and 1 <= length < math.inf:
            config[f"{name}_steps"] = int(length)
        elif length is not None:
            config[f"{name}_ratio"] = length
    return config


def _rename(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in fields.items()}
