"""Write a Modelfile, from which `ollama create NAME -f FILE` makes a model. https://docs.ollama.com/modelfile"""

from collections.abc import Sequence

MAX_CONTEXT = 4096
"""The longest context, in tokens, that a Modelfile sets."""
_NO_ADAPTERS = "# Ollama supports no adapters since version 0.34.1; for that version or newer, export the merged model."


def modelfile(
    base: str | None, adapter: str | None = None, stop: Sequence[str] = (), num_ctx: int | None = None
) -> str:
    """Return the text of a Modelfile.

    It has no TEMPLATE, because Ollama's templates are written in Go's language and a chat template is written in
    Jinja. Ollama recognises well-known chat templates in the GGUF file itself; without one, it completes plain text.

    Args:
        base: the path of a GGUF file, relative to the Modelfile, or a name in Ollama's library; None: write a comment
            that the user replaces.
        adapter: the path of a GGUF adapter, relative to the Modelfile.
        stop: texts that end an answer.
        num_ctx: the context in tokens; Ollama's default is short.
    """
    lines = [f"FROM {base}" if base else "# FROM the adapter's base: a GGUF file, or its name in Ollama's library"]
    if adapter:
        lines = [_NO_ADAPTERS, *lines, f"ADAPTER {adapter}"]
    lines += [f"PARAMETER num_ctx {num_ctx}"] if num_ctx else []
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
