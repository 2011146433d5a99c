"""What there is to know about a run's data, labelled."""

from collections.abc import Mapping
from typing import Any

from tsugiki.report.formatting import fill_template

_ISOLATION = {
    "position_ids": "do not see each other (positions begin anew)",
    "attention_mask": "do not see each other (a mask)",
    "separate_rows": "each in rows of its own",
}
_LINES = (
    ("to learn", "{train[documents]:,} records, {train[characters]:,} characters"),
    ("held out", "{held_out[documents]:,} records, {held_out[characters]:,} characters"),
    ("tokens", "{tokens_per_epoch:,}, {characters_per_token:.2f} characters a token"),
    ("learned", "{target_tokens_per_epoch:,} tokens, {learned_share:.1%}"),
    ("rows", "{blocks:,} of {block_size} tokens, {padded_share:.1%} padding"),
    ("records in a row", "{kept_apart}"),
    ("longest record", "{longest[tokens]:,} tokens, {longest[source]}"),
    ("go on in other rows", "{split_records:,} documents"),
    ("cut off", "{cut_records:,} examples, {cut_tokens:,} tokens"),
    ("near-duplicates", "{near_duplicates[records]:,} records in {near_duplicates[groups]:,} groups"),
)


def data_lines(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The counts of `train.preparation`, and those of a preview where they are given; what is not there is left out."""
    shares = {}
    if counts.get("blocks") and counts.get("block_size"):
        shares["padded_share"] = counts.get("padding", 0) / (counts["blocks"] * counts["block_size"])
    if counts.get("tokens_per_epoch"):
        shares["learned_share"] = counts.get("target_tokens_per_epoch", 0) / counts["tokens_per_epoch"]
    if counts.get("document_masking") in _ISOLATION:
        shares["kept_apart"] = _ISOLATION[counts["document_masking"]]
    return fill_template(_LINES, {**shares, **counts})


def alike_lines(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first groups of near-duplicates, by name."""
    return [("  alike", " · ".join(group)) for group in counts.get("near_duplicates", {}).get("first", ())]
