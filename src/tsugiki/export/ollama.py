"""An Ollama Modelfile: what `ollama create NAME -f FILE` takes. https://docs.ollama.com/modelfile"""

from collections.abc import Sequence

CONTEXT = 4096
"""Tokens that a Modelfile asks for, where the model takes as many."""
_NO_ADAPTERS = "# Ollama takes no adapters since version 0.34.1; for that one or a newer, export the merged model."


def modelfile(
    base: str | None, adapter: str | None = None, stop: Sequence[str] = (), num_ctx: int | None = None
) -> str:
    """The text of a Modelfile.

    No TEMPLATE is written: it would have to be one of Go's, and a chat template is Jinja's. Ollama finds its own by
    the chat template in the GGUF file where it knows that; a file with none is completed as plain text.

    Args:
        base: a GGUF file, by its path from the Modelfile, or a name in Ollama's library; None leaves a line to fill in.
        adapter: a GGUF adapter, by its path from the Modelfile.
        stop: texts that end an answer.
        num_ctx: tokens of context; Ollama's default is short.
    """
    lines = [
        f"FROM {base}" if base else "# FROM the base that the adapter was trained on: a GGUF file, or Ollama's name"
    ]
    if adapter:
        lines = [_NO_ADAPTERS, *lines, f"ADAPTER {adapter}"]
    lines += [f"PARAMETER num_ctx {num_ctx}"] if num_ctx else []
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
