"""Write a Modelfile, from which `ollama create NAME -f FILE` makes a model. https://docs.ollama.com/modelfile"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import new_file, refuse_existing

MAX_CONTEXT = 4096
"""The longest context, in tokens, that a Modelfile sets."""


@contextmanager
def new_gguf_file(out: Path, modelfile_text: str) -> Iterator[Path]:
    """Yield the temporary name of a new GGUF file, which appears with its Modelfile if the block raises nothing."""
    check_gguf_name(out)
    if os.path.lexists(out):  # The Modelfile is in the outer block, so that an error while writing names the GGUF file.
        refuse_existing(out)
    with new_file(out.with_suffix(".Modelfile")) as modelfile_path, new_file(out) as temporary:
        modelfile_path.write_text(modelfile_text, encoding="utf-8")
        yield temporary


def check_gguf_name(out: Path) -> None:
    """Raise a TsugikiError for a name that does not end as those of GGUF files do."""
    if out.suffix != ".gguf":
        raise TsugikiError("{out}: the name of a GGUF file must end in .gguf", out=out)


def modelfile(gguf: str, stop: Sequence[str] = (), context: int | None = None) -> str:
    """Return the text of a Modelfile for a model, whose GGUF file is at a path relative to the Modelfile.

    It has no TEMPLATE, because Ollama's templates are written in Go's language and a chat template is written in
    Jinja. Ollama recognises well-known chat templates in the GGUF file itself; without one, it completes plain text.

    The texts `stop` end an answer. `context` is that of the model in tokens; Ollama's default is short.
    """
    lines = [f"FROM {gguf}", f"PARAMETER num_ctx {min(context or MAX_CONTEXT, MAX_CONTEXT)}"]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
