"""The command `tsugiki pairs`: answers of a model as pairs, by a rule."""

from pathlib import Path
from typing import Annotated

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import RUN_CONFIG, FlagsOf, Given
from tsugiki.cli.terminal import print_line, print_next_command
from tsugiki.language import _, counts

_ASKED = ("model", "data", "columns", "reward", "reward_settings", "start_from", "system", "chat_template", "seed")


def pairs_command(*, settings: Annotated[Given, FlagsOf(RUN_CONFIG, only=_ASKED)], out: Path) -> None:
    """Sample answers of a model to prompts, score them by a rule, and write the best and the worst as pairs.

    Look at the file, correct it, and train with --preference. `tsugiki train --reward` does the same in rounds.

    Args:
        out: File to write, such as pairs.jsonl; pairs.answers.jsonl beside it gets all answers with their scores.

    Examples:
        tsugiki pairs --model embedded --data prompts.jsonl --reward 'regex:ました。$' --out pairs.jsonl
        tsugiki pairs --model USER/NAME --from runs/chat --data prompts.jsonl --reward rule.py --out pairs.jsonl
    """
    import_libraries("tsugiki.training.run.stages")
    from tsugiki.functions import pairs

    found = pairs(out=str(out), **settings)
    message = _(
        "{out}: {pairs} of {drawn:,} prompts; mean reward {reward:.3f}; cut off: {cut:,} of {answers:,} answers"
    )
    print_line(message.format(**{**vars(found), "pairs": counts.pairs(found.pairs)}, out=out))
    words = ["--model", settings["model"], "--data", str(out), "--out", "runs/pairs"]
    print_next_command("train", "--preference", "simpo", *words)
