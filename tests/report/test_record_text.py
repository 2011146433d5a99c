"""What a record says in words; `test_run.py` has the pages that show it."""

from tests.report.pages import record
from tsugiki.report import speed_text


def test_the_speed_counts_tokens_outside_the_loss_too():
    run = record()
    assert run.training
    assert run.data
    run.training.tokens_per_second = 100.0
    run.data.target_tokens_per_epoch = run.data.tokens_per_epoch
    assert speed_text(run) == "100 tokens/s"
    run.data.tokens_per_epoch = 4 * run.data.target_tokens_per_epoch
    assert speed_text(run) == "400 tokens/s, 100 of them in the loss"
