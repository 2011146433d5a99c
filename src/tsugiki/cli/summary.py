"""What a finished run shows on standard output."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from tsugiki.adapters.files import WEIGHTS_FILE
from tsugiki.train.record import RunRecord


def print_summary(record: RunRecord) -> None:
    """Held-out figures before and after, what it cost, and where the adapter is."""
    console = Console(highlight=False)
    before, after = record.evaluations[0], record.evaluations[-1]
    table = Table("held-out text", "before", "after", "change")
    for name, label in (("loss", "loss"), ("perplexity", "perplexity"), ("bits_per_char", "bits per character")):
        change = after[name] / before[name] - 1
        table.add_row(label, f"{before[name]:,.4g}", f"{after[name]:,.4g}", f"{change:+.1%}")
    console.print(table)
    training, out = record.training, Path(record.config["out"])
    console.print(
        f"{training['steps']:,} steps, {training['tokens']:,} tokens in {training['seconds']:,.0f} s "
        f"({training['tokens_per_second']:,.0f} tokens/s), peak memory {training['peak_memory'] / 1e9:.2f} GB"
    )
    size = (out / WEIGHTS_FILE).stat().st_size
    console.print(f"adapter: {out} ({size / 1e6:.2f} MB); record: {out / 'run.json'}", soft_wrap=True)
    if after["caveat"]:
        console.print(after["caveat"])
