"""The counts of a run's data, with labels."""

from tsugiki.train.record import DataSummary

_DOCUMENT_MASKING = {
    "position_ids": "masked from each other by position ids",
    "attention_mask": "masked from each other by an attention mask",
    "separate_rows": "in separate rows",
}


def data_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the counts of a run's data."""
    size = data.blocks * data.block_size
    return [
        ("training data", f"{data.train.documents:,} records, {data.train.characters:,} characters"),
        ("held out", f"{data.held_out.documents:,} records, {data.held_out.characters:,} characters"),
        ("tokens per epoch", f"{data.tokens_per_epoch:,}"),
        (
            "target tokens per epoch",
            f"{data.target_tokens_per_epoch:,}, {data.target_tokens_per_epoch / data.tokens_per_epoch:.1%}",
        ),
        ("rows", f"{data.blocks:,} of {data.block_size} tokens, {data.padding / size:.1%} padding"),
        ("documents in a row", _DOCUMENT_MASKING[data.document_masking]),
        ("continue in other rows", f"{data.split_records:,} documents"),
        ("cut off", f"{data.cut_records:,} examples, {data.cut_tokens:,} tokens"),
        ("near-duplicates", f"{data.near_duplicates.records:,} records in {data.near_duplicates.groups:,} groups"),
    ]


def near_duplicate_lines(data: DataSummary) -> list[tuple[str, str]]:
    """Return labels and texts for the first groups of near-duplicates: the names of their records."""
    return [("  group", " · ".join(group)) for group in data.near_duplicates.first]
