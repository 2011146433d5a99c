"""Every Japanese message, with example arguments, is in one language, and has a space beside Latin letters and digits.

An argument is a name or a number (`Abc`, `3`), unless the source translates it.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import typer

from tests.language.catalogue import ERRORS, SOURCE, forms, read_catalogue, syntax_tree, untranslated
from tsugiki.cli import root_command, settings_text
from tsugiki.language import JAPANESE, speaking
from tsugiki.methods import METHODS
from tsugiki.training import RunConfig, SweepConfig, settings_of

_JAPANESE = "ぁ-んァ-ヶー一-龥々"
_SPACELESS = re.compile(rf"[{_JAPANESE}][A-Za-z0-9]|[A-Za-z0-9%][{_JAPANESE}]")
_QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"|\{[^}]*\}|\([^)]*\)|--\S+|^ {2,}.*$|\$.*$", re.MULTILINE)
_WORD = re.compile(r"(?<![\w./:@=-])[a-z]{3,}(?![\w./=+-])")
_SENTENCE = re.compile(r"(ます|ません|です|した|ください|ましょう)(（[^（）]*）)?$")
_TAKE_VALUES = {"_", "ngettext", "format", *ERRORS}
_TRANSLATING = {"_", "ngettext", "format_duration", "summarise_list", "_type_name", "_role_name", "pickle_hint"}
_PHRASES = {"advice", "what", "why"}  # translated by those who pass them on
_NAMES = """
accelerate adapter all alpha answer assistant auth author auto best beta bias bitsandbytes blocks cat chmod choice
choices chosen command completion config content cosine cpu dare default density dict echo editor embedded energy
expected false field fingerprints folder forgetting fsdp full gguf git glibc grader graft history https install kyoka
label last launch lfs likelihood linear llama llguidance login magnitude messages mlp mmproj mode name none null part
pickle pip probe process prompt pull pyarrow quantized references regex rejected reviser role rounds runs safetensors
samples scale schema seconds sentencepiece small split sqrt state stored svd targets tau temperature tensorboard text
ties tokens tools torch torchrun transformers translator true tsugiki ungraft unmerge user wandb weight zip
"""
"""Names that the settings and commands do not have: programs, functions, fields and values."""


def test_every_message_is_in_one_language() -> None:
    names = _names()
    found = {text: words for text in _printed() if (words := set(_WORD.findall(_QUOTED.sub(" ", text))) - names)}
    assert not found, "these words are English; if they are names, add them"


def test_a_space_is_between_japanese_and_latin_characters() -> None:
    assert [text for text in _printed() if _SPACELESS.search(re.sub(r"`[^`]*`", "", text))] == []


def test_arguments_of_messages_are_translated() -> None:
    names = _names()
    found = [
        f"{path}:{keyword.value.lineno}: {text!r}"
        for path, keyword in _arguments()
        for value in _values(keyword.value, path)
        for text in untranslated(value)
        if set(_WORD.findall(_QUOTED.sub(" ", text))) - names
    ]
    assert found == []


def test_sentences_of_errors_and_notes_end_with_a_full_stop() -> None:
    shown = {
        part.value
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(syntax_tree(path))
        if _is_function(node) and (node.func.id in ERRORS or path.name == "notes.py")
        for part in node.args
        if isinstance(part, ast.Constant)
    }
    said = [form for one in read_catalogue() if {*map(str, _keys(one))} & shown for form in forms(one)]
    assert len(said) > 400
    assert [text for text in said if _SENTENCE.search(text)] == []


def _keys(message: Any) -> tuple[str, ...]:
    return (message.id,) if isinstance(message.id, str) else message.id


def test_comments_of_settings_are_in_japanese() -> None:
    with speaking(JAPANESE):
        paragraphs = settings_text(RunConfig, {}).split("\n\n")
    assert [text for text in paragraphs if "#" in text and not re.search(f"[{_JAPANESE}]", text)] == []


@pytest.mark.parametrize("text", ["学習率 Abc rate 3", "この学習は3 ステップ", "Abc には対応していません。Abcのどれか"])
def test_faults_are_found(text: str) -> None:
    assert set(_WORD.findall(text)) - _names() or _SPACELESS.search(text)


@cache
def _printed() -> tuple[str, ...]:
    """Return each Japanese message with example arguments."""
    return tuple(
        _with_examples(text, [path for path, _line in message.locations])
        for message in read_catalogue()
        if message.id
        for text in forms(message)
    )


def _with_examples(text: str, paths: list[str]) -> str:
    """Return a message with arguments; a help text, which takes none and may have braces, stays as it is."""
    kinds = _kinds()
    try:
        found = [(name, spec) for _literal, name, spec, _conversion in Formatter().parse(text) if name]
        examples: dict[str, Any] = {
            name: next((kinds[path, name] for path in paths if (path, name) in kinds), "Abc") for name, _spec in found
        }
        return text.format(**examples | {name: 3 for name, spec in found if spec})
    except (ValueError, KeyError):
        return text


@cache
def _kinds() -> dict[tuple[str, str | None], str]:
    """Return (file, placeholder) -> an example of the text that the source translates for it."""
    kinds: dict[tuple[str, str | None], str] = {}
    for path, keyword in _arguments():
        called = {node.func.id for node in ast.walk(keyword.value) if _is_function(node)}
        attributes = {node.value.id for node in ast.walk(keyword.value) if _is_attribute(node)}
        if "counts" in attributes or "ngettext" in called:
            kinds[path, keyword.arg] = "3 件"
        elif keyword.arg in _PHRASES or called & _TRANSLATING or _is_variable(keyword.value, path):
            kinds[path, keyword.arg] = "・"
    return kinds


def _is_function(node: ast.AST) -> Any:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _is_attribute(node: ast.AST) -> Any:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def _is_variable(value: ast.AST, path: str) -> bool:
    """Return whether an argument is a variable whose text the module translates, or an error, which is translated."""
    names = {node.id for node in ast.walk(value) if isinstance(node, ast.Name)}
    return bool(names & _translated_names(path))


@cache
def _translated_names(path: str) -> set[str]:
    names = set()
    for node in ast.walk(_module(path)):
        if isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        if isinstance(node, ast.Assign) and any(
            _is_function(part) and part.func.id in _TRANSLATING for part in ast.walk(node.value)
        ):
            names |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return names


def _values(node: ast.AST, path: str) -> list[ast.AST]:
    """Return an argument, or, if it is a variable, what the module assigns to variables of this name."""
    if not isinstance(node, ast.Name):
        return [node]
    assigned = [part for part in ast.walk(_module(path)) if isinstance(part, ast.Assign)]
    return [part.value for part in assigned for one in part.targets if isinstance(one, ast.Name) and one.id == node.id]


def _module(path: str) -> ast.Module:
    return syntax_tree(SOURCE / Path(path).relative_to("src/tsugiki"))


@cache
def _arguments() -> tuple[tuple[str, ast.keyword], ...]:
    """Return the values of messages in all modules: the arguments of `_`, of `ngettext` and of `.format`."""
    paths = [str(Path("src/tsugiki") / path.relative_to(SOURCE)) for path in sorted(SOURCE.rglob("*.py"))]
    return tuple(
        (path, keyword)
        for path in paths
        for node in ast.walk(_module(path))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in _TAKE_VALUES
        for keyword in node.keywords
        if keyword.arg
    )


@cache
def _names() -> set[str]:
    """Return the words that are names: of settings, commands, methods and files, and those of `_NAMES`."""
    settings = [
        part
        for config in (RunConfig, SweepConfig)
        for setting in settings_of(config)
        for part in (*setting.path, *re.findall("[a-z]+", str(setting.types)))
    ]
    return {*settings, *_commands(root_command()), *METHODS, *_NAMES.split()}


def _commands(command: Any) -> Iterator[str]:
    for name, one in getattr(command, "commands", {}).items():
        yield name
        yield from _commands(one)
        if not hasattr(one, "commands"):
            yield from (str(parameter.name) for parameter in one.get_params(typer.Context(one)))
