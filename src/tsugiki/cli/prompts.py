"""The prompts of `tsugiki generate`: from options, a file or standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tsugiki.data.read.character_encoding import decode
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.json import parse_json
from tsugiki.language import _

STDIN = "-"


def read_prompts(texts: Sequence[str], file: str | None) -> list[str]:
    """Return all prompts in order.

    Args:
        texts: prompts; `-` stands for the whole standard input, as one prompt.
        file: the path of a file with a prompt in each line, or `-` for standard input. In a `.jsonl` file, each line is
            an object with `prompt`. Empty lines are skipped.

    Raises:
        TsugikiError: there is no prompt, or the file cannot be read.
    """
    prompts = [_read(STDIN).removesuffix("\n") if text == STDIN else text for text in texts]
    if file is not None:
        lines = [line for line in _read(file).split("\n") if line.strip()]
        is_json = file.endswith(".jsonl")
        prompts += [_prompt_in(line, f"{file}:{number}") if is_json else line for number, line in enumerate(lines, 1)]
    if not prompts:
        raise TsugikiError(_("no prompt: give --prompt TEXT, --prompt - for standard input, or --prompts FILE"))
    return prompts


def _read(file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == STDIN else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise TsugikiError(
            _("cannot read {file}: {reason}").format(file=file, reason=error.strerror or error_text(error))
        ) from error
    return decode(content, _("standard input") if file == STDIN else file)[0]


def _prompt_in(line: str, where: str) -> str:
    try:
        fields = parse_json(line)
    except ValueError as error:
        raise TsugikiError(_("{where} is not JSON: {error}").format(where=where, error=error_text(error))) from error
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if not isinstance(prompt, str):
        raise TsugikiError(
            _("{where} has no prompt: each line is an object such as {example}").format(
                where=where, example='{"prompt": "…"}'
            )
        )
    return prompt
