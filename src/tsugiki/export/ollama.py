"""Write a Modelfile, from which `ollama create NAME -f FILE` makes a model. https://docs.ollama.com/modelfile"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import new_file, refuse_existing
from tsugiki.language import _

MAX_CONTEXT = 4096
"""The longest context, in tokens, that a Modelfile sets."""
_NO_ADAPTERS = "# Ollama supports no adapters since version 0.34.1; for that version or newer, export the merged model."


@contextmanager
def new_gguf_file(out: Path, modelfile_text: str) -> Iterator[Path]:
    """Yield the temporary name of a new GGUF file, which appears with its Modelfile if the block raises nothing."""
    if out.suffix != ".gguf":
        raise TsugikiError(_("{out}: the name of a GGUF file must end in .gguf").format(out=out))
    if os.path.lexists(out):  # The Modelfile is in the outer block, so that an error while writing names the GGUF file.
        refuse_existing(out)
    with new_file(out.with_suffix(".Modelfile")) as modelfile_path, new_file(out) as temporary:
        modelfile_path.write_text(modelfile_text, encoding="utf-8")
        yield temporary


def modelfile(
    base: str | None, adapter: str | None = None, stop: Sequence[str] = (), context: int | None = None
) -> str:
    """Return the text of a Modelfile.

    It has no TEMPLATE, because Ollama's templates are written in Go's language and a chat template is written in
    Jinja. Ollama recognises well-known chat templates in the GGUF file itself; without one, it completes plain text.

    `base` and `adapter` are paths of GGUF files, relative to the Modelfile; without a base, the user has to fill it in.
    The texts `stop` end an answer. `context` is that of the model in tokens; Ollama's default is short.
    """
    lines = [f"FROM {base}" if base else "# FROM the adapter's base: a GGUF file, or its name in Ollama's library"]
    if adapter:
        lines = [_NO_ADAPTERS, *lines, f"ADAPTER {adapter}"]
    lines.append(f"PARAMETER num_ctx {min(context or MAX_CONTEXT, MAX_CONTEXT)}")
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
