"""`tsugiki chat`: talk to a model, and compare adapters on the way."""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.cli.sampling import (
    AllowBaseMismatch,
    BaseWeights,
    MaxNewTokens,
    Model,
    Raw,
    RepetitionPenalty,
    Seed,
    System,
    Temperature,
    TopP,
    TrustRemoteCode,
)
from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked

if TYPE_CHECKING:
    from tsugiki.data.records import Message
    from tsugiki.generation.texts import Sampling
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.evaluation.targets import EvaluationTarget, TargetLoader

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
    number: int = 0
    """Added to the seed. It stays the same when targets are compared."""


def chat_command(
    adapter: Annotated[
        str | None,
        typer.Argument(help="Adapter: a folder, such as that of a run or a checkpoint, or a name in the library."),
    ] = None,
    model: Model = None,
    system: System = None,
    raw: Raw = False,
    max_new_tokens: MaxNewTokens = 400,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    dtype: BaseWeights = None,
    allow_base_mismatch: AllowBaseMismatch = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model, alone or with an adapter; `/base` and `/adapter NAME` compare at once.

    A model or an adapter that holds conversations answers; any other one continues what is typed.
    """
    if model is None and adapter is None:
        raise TsugikiError(_("give an adapter, or a model as --model"))
    from tsugiki.cli.libraries import import_libraries

    import_libraries()
    from tsugiki.adapters.chat_template import saved_chat_template
    from tsugiki.generation.texts import Sampling
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.evaluation.targets import TargetLoader, dtype_of, evaluation_targets

    target = evaluation_targets([model] if model else [], [adapter] if adapter else [])[-1]
    sampling = Sampling(max_new_tokens, temperature, top_p, seed, repetition_penalty)
    template = saved_chat_template(target.adapter) if target.adapter else None
    loader = TargetLoader(
        allow_base_mismatch, trust_remote_code, template_of_base=template, dtype=dtype or dtype_of([target])
    )
    session = _Session(loader, target, sampling, ProgressDisplay(), raw, system)
    _switch(session, target)
    typer.echo(_("{target}; /help lists what else can be typed").format(target=target))
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


def _read_line() -> str | None:
    """Return a line that the user types; None at the end of the input, and after Ctrl-C."""
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
    from tsugiki.training.evaluation.targets import EvaluationTarget, evaluation_targets

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
        raise TsugikiError(_("name an adapter: /adapter NAME"))
    else:
        raise TsugikiError(_("no such command: {command}; /help lists them").format(command=command))


def _switch(session: _Session, target: "EvaluationTarget") -> None:
    """Load a target; if that fails, switch to the base alone.

    Raises:
        TsugikiError: the model or the adapter cannot be read.
    """
    session.display.announce(_("loading {model}").format(model=target))
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
    """Let the model answer a turn, or continue a text, and print the generated text.

    Raises:
        TsugikiError: the conversation fills the model's context.
    """
    from dataclasses import replace

    from tsugiki.data.records import Message
    from tsugiki.generation.prompts import as_prompt, learned_conversations
    from tsugiki.generation.texts import generate_text

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
    sampling = replace(session.sampling, seed=session.sampling.seed + session.number)
    with suppress(KeyboardInterrupt):
        generate_text(session.model, session.tokenizer, prompt, sampling, emit)
    typer.echo("" if written else _("(the model wrote nothing)"))
    answer = "".join(written)
    session.text = text + answer
    if not isinstance(new, str):
        session.turns = [*before, *new, Message("assistant", answer)]
