"""Split the prompts of a run with a reward: to learn from, to choose the round that is kept, and to report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsugiki.data.read.prompts import PromptRow, read_prompts
from tsugiki.data.records import normalise_name, without_spaces
from tsugiki.data.splits import FieldCondition, parse_held_out
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.training.settings.config import RunConfig

_FEWEST, _MOST = 8, 48
"""Prompts in a part that the settings leave open: a tenth of all, but at least and at most so many, and at most a fifth
of them."""


def split_prompts(config: RunConfig) -> dict[str, list[PromptRow]]:
    """Read the prompts of a run, and return those of its parts `training`, `validation` and `held_out`.

    Prompts that are the same are in the same part. The rewards of validation prompts choose the round that is kept;
    those of held-out prompts are reported, and choose nothing. The settings `held_out` and `validation` are those of
    any run: a share, a condition on a field, a file or none.
    """
    rows, parts = read_prompts(config.data, config.columns), dict[str, list[PromptRow]]()
    left = [rows[place] for place in np.random.default_rng(config.seed).permutation(len(rows))]
    for setting in ("held_out", "validation"):
        parts[setting] = _part(config, setting, left, len(rows))
        texts = {_text(row) for row in parts[setting]}
        left = [row for row in left if _text(row) not in texts]
    if not left:
        raise TsugikiError(_("no prompts are left to learn from; hold fewer out, or give more"))
    places = {row.source: place for place, row in enumerate(rows)}
    return {"training": sorted(left, key=lambda row: places[row.source]), **parts}


def _part(config: RunConfig, setting: str, left: Sequence[PromptRow], count: int) -> list[PromptRow]:
    """Return the prompts of a part: those of a file, or some that are `left` of all."""
    wanted = parse_held_out(getattr(config, setting), setting)
    if isinstance(wanted, Path):
        return read_prompts(str(wanted), config.columns)
    if isinstance(wanted, FieldCondition):
        value = normalise_name(wanted.value)
        return [row for row in left if normalise_name(str(row.fields.get(wanted.field))) == value]
    some = min(max(count // 10, _FEWEST), count // 5, _MOST)
    amount = 0 if wanted is None else max(round(wanted * count), 1) if isinstance(wanted, float) else some
    texts = {_text(row) for row in left[:amount]}
    return [row for row in left if _text(row) in texts]


def _text(row: PromptRow) -> str:
    return without_spaces(row.text).casefold()
