"""Commands that let a model write: `tsugiki generate`, `chat` and `serve`."""

import json
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import FlagsOf, Given
from tsugiki.cli.terminal import print_command_after_trying, print_next_command, print_sections
from tsugiki.errors import Interrupted, TsugikiError, error_text, unreadable
from tsugiki.language import VARIABLE, _, marked
from tsugiki.report.sections import Samples, Section

if TYPE_CHECKING:
    from tsugiki.data.records import Message
    from tsugiki.generation.prompt import Prompt
    from tsugiki.generation.sampling import Sampling
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.score.targets import EvaluationTarget, TargetLoader


_STDIN = "-"
_GENERATE = "tsugiki.functions.generate"


def generate_command(
    beginnings: list[str] | None = None,
    *,
    prompt: list[str] | None = None,
    prompts: str | None = None,
    compare: bool = False,
    jsonl: bool = False,
    json_schema: str | None = None,
    options: Annotated[Given, FlagsOf(_GENERATE, without=("prompt", "json_schema"))],
) -> None:
    """Continue prompts with a model, alone or with an adapter; the text appears while it is generated.

    If the adapter has learned conversations, a prompt is the user's turn, which the model answers.

    Args:
        beginnings: Texts to continue, as with --prompt.
        prompt: Text to continue; - is the standard input. Can be repeated.
        prompts: File with a prompt in each line; in a .jsonl file, objects with prompt. - is the standard input.
        compare: Show what the base writes beside what it writes with the adapter.
        jsonl: Print one JSON object in each line: model, adapter, prompt and text.
        json_schema: File with a JSON schema; what the model writes is JSON that it allows.

    Examples:
        tsugiki generate --adapter runs/ichiyo --prompt 秋の夜、
        tsugiki generate --adapter runs/ichiyo --prompt 秋の夜、 --compare
        tsugiki generate --model embedded --prompts prompts.txt --jsonl
    """
    model, adapter, max_new_tokens = options["model"], options["adapter"], options["max_new_tokens"]
    if model is None and adapter is None:
        raise TsugikiError("give a model as --model, or an adapter as --adapter")
    if compare and adapter is None:
        raise TsugikiError("--compare needs an --adapter, which is compared with its base")
    texts = read_prompts([*(beginnings or ()), *(prompt or ())], prompts)

    import_libraries()
    from tsugiki.generation.generate import generate_text, generate_texts
    from tsugiki.generation.grammar import json_grammar
    from tsugiki.generation.prompt import as_prompt, learned_conversations
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.score.targets import dtype_of_training, evaluation_targets, loaded_targets

    chosen = evaluation_targets([model] if model else [], [adapter] if adapter else [])
    if not compare:
        chosen = chosen[-1:]
    sampling = _sampling(options, json_grammar(_read(json_schema)) if json_schema else None)
    display, results = ProgressDisplay(), list[list[str]]()
    display.announce(_("loading {model}", model=chosen[0]))
    loading = {name: options[name] for name in ("allow_base_mismatch", "trust_remote_code", "chat_template")}
    targets = loaded_targets(chosen, **loading, dtype=options["dtype"] or dtype_of_training(chosen))
    _target, loaded, tokenizer = next(targets)
    as_turns = not options["raw"] and learned_conversations(chosen[-1].adapter, tokenizer)
    inputs: list[Prompt] = [as_prompt(text, as_turns, options["system"]) for text in texts]
    if not compare and not jsonl:
        for text, model_input in zip(texts, inputs, strict=True):
            start = partial(generate_text, loaded, tokenizer, model_input, max_new_tokens, sampling)
            _stream(text, model_input, start)
        _print_chat(adapter, model)
        return
    while True:
        with display.stage(_("writing"), None):
            results.append(generate_texts(loaded, tokenizer, inputs, max_new_tokens, sampling))
        following = next(targets, None)
        if following is None:
            break
        _target, loaded, tokenizer = following
    if jsonl:
        _print_jsonl(chosen, texts, results)
    else:
        _print_columns(chosen, texts, results)
        _print_chat(adapter, model)


def _print_chat(adapter: str | None, model: str | None) -> None:
    """Print the command that talks to what has written."""
    print_next_command("chat", *([adapter] if adapter else []), *(["--model", model] if model else []), err=True)


def _sampling(options: Given, grammar: str | None = None) -> "Sampling":
    from tsugiki.generation.sampling import Sampling

    names = ("temperature", "top_p", "seed", "repetition_penalty")
    return Sampling(**{name: options[name] for name in names}, grammar=grammar)


def _stream(text: str, prompt: "Prompt", generate: Callable[[Callable[[str], None]], str]) -> None:
    """Print a text and its continuation, or a question and its answer, while it is generated."""
    started = False

    def emit(piece: str) -> None:
        nonlocal started
        typer.echo(piece if started or not isinstance(prompt, str) else text + piece, nl=False)
        started = True

    generate(emit)
    if not started and not isinstance(prompt, str):
        typer.echo(_("(the model wrote nothing)"), err=True)
    typer.echo("" if started or not isinstance(prompt, str) else text)


def _print_jsonl(
    targets: "Sequence[EvaluationTarget]", prompts: Sequence[str], results: Sequence[Sequence[str]]
) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    for number, prompt in enumerate(prompts):
        for target, written in zip(targets, results, strict=True):
            fields = {"model": target.model, "adapter": target.adapter_name or None, "prompt": prompt}
            typer.echo(json.dumps({**fields, "text": written[number]}, ensure_ascii=not is_utf8))


def _print_columns(
    targets: "Sequence[EvaluationTarget]", prompts: Sequence[str], results: Sequence[Sequence[str]]
) -> None:
    """Print what each target wrote after each prompt."""
    names = [target.adapter_name or target.model for target in targets]
    texts = [list(zip(names, written, strict=True)) for written in zip(*results, strict=True)]
    print_sections([Section("samples", "", list(map(Samples, prompts, texts)))])


_HELP = marked("""\
/base            switch to the base alone, and answer the last input again
/adapter NAME    switch to this adapter (without NAME: the previous one), and answer the last input again
/again           answer the last input again, with other random numbers
/new             forget the conversation
/help            show this list
/quit            end the program, as Ctrl-D does
If the model continues texts, Enter alone lets it continue further. Ctrl-C stops an answer.""")


@dataclass
class _Session:
    """The state of a chat: the loaded model, and the conversation or the text so far."""

    loader: "TargetLoader"
    target: "EvaluationTarget"
    max_new_tokens: int
    sampling: "Sampling"
    display: "ProgressDisplay"
    raw: bool
    system: str | None
    model: Any = None
    tokenizer: Any = None
    turns: "list[Message]" = field(default_factory=list)
    """The conversation, without the system message; empty for a model that continues text."""
    text: str = ""
    """The last text that was continued, with its continuation."""
    asked: str = ""
    """The last input of the user."""
    former: "EvaluationTarget | None" = None
    """The last target with an adapter."""
    number: int = -1
    """Added to the seed, 0 for the first answer. It stays the same when targets are compared."""


def chat_command(
    adapter: str | None = None,
    *,
    max_new_tokens: Annotated[int, typer.Option(min=1, rich_help_panel="Sampling")] = 400,
    options: Annotated[
        Given, FlagsOf(_GENERATE, without=("prompt", "json_schema", "adapter", "max_new_tokens", "chat_template"))
    ],
) -> None:
    """Talk to a model, alone or with an adapter; `/base` and `/adapter NAME` compare at once.

    A model or an adapter that holds conversations answers; any other one continues what is typed.

    Args:
        adapter: Adapter: a folder, such as that of a run or a checkpoint, or a name in the library.
        max_new_tokens: Largest number of new tokens.

    Examples:
        tsugiki chat runs/chat
        tsugiki chat --model embedded --repetition-penalty 1.2
    """
    model = options["model"]
    if model is None and adapter is None:
        raise TsugikiError("give an adapter, or a model as --model")

    import_libraries()
    from tsugiki.adapters.saved_tokenizer import saved_chat_template
    from tsugiki.generation.sampling import with_penalty_of
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.score.targets import TargetLoader, dtype_of_training, evaluation_targets

    target = evaluation_targets([model] if model else [], [adapter] if adapter else [])[-1]
    sampling = _sampling(options)
    loader = TargetLoader(
        options["allow_base_mismatch"],
        options["trust_remote_code"],
        template_of_base=saved_chat_template(target.adapter) if target.adapter else None,
        dtype=options["dtype"] or dtype_of_training([target]),
    )
    session = _Session(loader, target, max_new_tokens, sampling, ProgressDisplay(), options["raw"], options["system"])
    _switch(session, target)
    message = _(
        "{target}; temperature {temperature:g}, top-p {top_p:g}, repetition penalty {penalty:g}; /help lists what else "
        "can be typed"
    )
    penalty = with_penalty_of(session.model, sampling).repetition_penalty
    typer.echo(message.format(target=target, temperature=sampling.temperature, top_p=sampling.top_p, penalty=penalty))
    while (line := _read_line()) is not None:
        command, _space, argument = line.strip().partition(" ")
        if command in ("/quit", "/exit", "/bye"):
            break
        try:
            if command.startswith("/"):
                _run_command(session, command, argument.strip())
            else:
                session.number += 1
                _answer(session, line)
        except TsugikiError as error:
            typer.echo(f"{error}", err=True)
    print_command_after_trying(adapter, model)


def _read_line() -> str | None:
    """Read one line from the user. Return None at the end of the input, or if the user presses Ctrl-C."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Windows' terminal edits by itself
            import readline  # noqa: F401  (editing and history, also of Japanese text)
    try:
        return input("> " if interactive else "")
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return None


def _run_command(session: _Session, command: str, argument: str) -> None:
    """Run a command of the chat, which begins with /.

    Raises:
        TsugikiError: there is no such command, no such adapter, or an adapter for another base.
    """
    from tsugiki.training.score.targets import EvaluationTarget, evaluation_targets

    if command == "/help":
        typer.echo(_(_HELP))
    elif command == "/new":
        session.turns.clear()
        session.text = session.asked = ""
    elif command == "/again":
        session.number += 1
        _repeat(session)
    elif command == "/base":
        _switch(session, EvaluationTarget(session.target.model))
        _repeat(session)
    elif command == "/adapter" and (argument or session.former):
        named = evaluation_targets([session.target.model], [argument])[-1] if argument else session.former
        assert named is not None
        _switch(session, named)
        _repeat(session)
    elif command == "/adapter":
        raise TsugikiError("name an adapter: /adapter NAME")
    else:
        raise TsugikiError("no such command: {command}; /help lists them", command=command)


def _switch(session: _Session, target: "EvaluationTarget") -> None:
    """Load a target; if that fails, switch to the base alone."""
    session.display.announce(_("loading {model}", model=target))
    try:
        session.model, session.tokenizer = session.loader.use(target)
    except TsugikiError:
        if session.model is not None:
            session.target = type(target)(session.target.model)
            session.model, session.tokenizer = session.loader.use(session.target)
        raise
    session.target = target
    if target.adapter is not None:
        session.former = target


def _repeat(session: _Session) -> None:
    """Answer the last input again."""
    if session.asked:
        while session.turns and session.turns[-1].role == "assistant":
            session.turns.pop()
        if session.turns:
            session.turns.pop()
        typer.echo(f"[{session.target}]")
        session.text = ""
        _answer(session, session.asked)


def _answer(session: _Session, line: str) -> None:
    """Let the model answer a turn, or continue a text, and print the generated text."""
    from tsugiki.data.records import Message
    from tsugiki.generation.generate import generate_text
    from tsugiki.generation.prompt import as_prompt, learned_conversations

    adapter: Path | None = session.target.adapter
    as_turns = not session.raw and learned_conversations(adapter, session.tokenizer)
    if not line.strip() and (as_turns or not session.text):
        return
    session.asked = line if line.strip() else session.asked
    before = list(session.turns)
    text = line if line.strip() else session.text
    new = as_prompt(text, as_turns)
    system = [Message("system", session.system)] if session.system else []
    prompt = new if isinstance(new, str) else [*system, *before, *new]
    written: list[str] = []

    def emit(piece: str) -> None:
        written.append(piece)
        typer.echo(piece, nl=False)

    if isinstance(prompt, str) and line.strip():
        typer.echo(text, nl=False)
    sampling = replace(session.sampling, seed=(session.sampling.seed or 0) + session.number)
    with suppress(KeyboardInterrupt):
        generate_text(session.model, session.tokenizer, prompt, session.max_new_tokens, sampling, emit)
    typer.echo("" if written else _("(the model wrote nothing)"))
    answer = "".join(written)
    session.text = text + answer
    if not isinstance(new, str):
        session.turns = [*before, *new, Message("assistant", answer)]


def read_prompts(texts: Sequence[str], file: str | None) -> list[str]:
    """Return all prompts in order: the texts, then those in the lines of a file; `-` stands for standard input."""
    prompts = [_read(_STDIN).removesuffix("\n") if text == _STDIN else text for text in texts]
    if file is not None:
        lines = [line for line in _read(file).split("\n") if line.strip()]
        is_json = file.endswith(".jsonl")
        prompts += [_prompt_in(line, f"{file}:{number}") if is_json else line for number, line in enumerate(lines, 1)]
    if not prompts:
        raise TsugikiError("no prompt: give --prompt TEXT, --prompt - for standard input, or --prompts FILE")
    return prompts


def _read(file: str) -> str:
    from tsugiki.data.read.character_encoding import decode

    try:
        content = sys.stdin.buffer.read() if file == _STDIN else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error
    return decode(content, _("standard input") if file == _STDIN else file)[0]


def _prompt_in(line: str, where: str) -> str:
    from tsugiki.io.json import parse_json

    try:
        fields = parse_json(line)
    except ValueError as error:
        raise TsugikiError("{where} is not JSON: {error}", where=where, error=error_text(error)) from error
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if not isinstance(prompt, str):
        raise TsugikiError(
            "{where} has no prompt: each line is an object such as {example}", where=where, example='{"prompt": "…"}'
        )
    return prompt


def serve_command(
    *, settings: Annotated[Given, FlagsOf("tsugiki.serve.settings.ServerSettings")], open_: bool = False
) -> None:
    """Answer requests by OpenAI's HTTP interface, with one base and many adapters in a batch.

    Args:
        open_: Show the server's page in the browser.

    Examples:
        tsugiki serve --model embedded
        tsugiki serve --model embedded --adapter ichiyo=runs/ichiyo --port 8080
        tsugiki serve --model embedded --host 0.0.0.0 --api-key-file key.txt
    """
    try:
        import_libraries("tsugiki.serve.server")
        from tsugiki.serve.server import serve
        from tsugiki.serve.settings import ServerSettings
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise TsugikiError(
            "tsugiki serve needs {module}; install it by pip install 'tsugiki[serve]'", module=error.name
        ) from error

    def ready(name: str, dtype: str, url: str) -> None:
        page = f"{url}/?lang={os.environ[VARIABLE]}" if os.environ.get(VARIABLE) else url
        message = _(
            "{name} in {dtype} at {url}/v1, page at {page} (Ctrl-C stops it)",
            name=name,
            dtype=dtype,
            url=url,
            page=page,
        )
        typer.echo(message)
        if open_:
            webbrowser.open(page)

    try:
        serve(ServerSettings(**settings), ready)
    except (Interrupted, KeyboardInterrupt):
        typer.echo(_("stopped"))
