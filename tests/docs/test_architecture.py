"""The documentation refers only to files, modules, names, commands and flags that exist."""

import re
import shlex
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from tsugiki.cli import root_command

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tsugiki"
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")],
    key=lambda page: page.relative_to(ROOT),
)
TWINS = [page for page in PAGES if page.with_name(f"{page.stem}.ja.md") in PAGES]
PACKAGES = sorted(folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file())
HISTORY = {"CHANGELOG.md", "log.md"}
"""Pages that name what existed at the time of an entry."""
ANYWHERE = {"--debug", "--lang", "--verbose"}
"""Flags of every command."""
CURRENT = [page for page in PAGES if page.name not in HISTORY]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def places(page: Path) -> set[str]:
    """What a link can name in a page: its headings, and the ids of `<a id="…">`."""
    text = text_of(page)
    return {*map(anchor, re.findall(r"(?m)^#+ (.+)$", text)), *re.findall(r'<a id="(.+?)">', text)}


def versions(page: Path, target: Path) -> list[Path]:
    """The pages that a link leads to. The Japanese site shows `docs/log.md`, with links to the Japanese pages."""
    twin = target.with_name(f"{target.stem}.ja.md")
    return [target, twin] if page == ROOT / "docs" / "log.md" and twin in PAGES else [target]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_point_to_existing_files_and_headings(page: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?:", link):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
        elif heading and target.suffix == ".md":
            broken += [f"{link} in {one.name}" for one in versions(page, target) if heading not in places(one)]
    assert broken == []


def exists(name: str) -> bool:
    """Whether a path is in the repository or in the package."""
    return any((root / name).exists() for root in (ROOT, SOURCE))


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or a name in one."""
    module, _, attribute = dotted.rpartition(".")
    try:
        return hasattr(import_module(module), attribute) or bool(import_module(dotted))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_paths_and_module_names_exist(page: Path):
    code = re.findall(r"`([^`\n]+)`", text_of(page))
    roots = ("src", "tests", "docs", "examples", "benchmarks", *PACKAGES)
    paths = {token for token in code if re.fullmatch(rf"(?:{'|'.join(roots)})/[\w./-]*", token)}
    assert sorted(path for path in paths if not exists(path)) == []
    names = {f"tsugiki.{token.removeprefix('tsugiki.')}" for token in code if is_module_name(token)}
    names |= {f"{module}.{name}" for module, name in imports_of(text_of(page))}
    assert sorted(name for name in names if not resolves(name)) == []


def is_module_name(token: str) -> bool:
    """Whether code in a page, such as `lora.graft.graft`, names something in the package."""
    return bool(re.fullmatch(rf"(?:tsugiki\.)?(?:{'|'.join(PACKAGES)})(?:\.\w+)+", token)) and not token.endswith(
        (".md", ".py", ".html", ".json", ".yaml", ".safetensors")
    )


def imports_of(text: str) -> list[tuple[str, str]]:
    """(module, name) for each name that code in a page imports from the package."""
    found = re.findall(r"(?m)^from (tsugiki[\w.]*) import (.+)$", text)
    return [(module, name.strip()) for module, names in found for name in names.split(",")]


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/architecture.ja.md"])
def test_packages_are_listed_and_the_rooms_of_training_in_the_order_that_is_checked(page: str):
    tools = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]
    (layers,) = (
        contract["layers"]
        for contract in tools["importlinter"]["contracts"]
        if contract.get("containers") == ["tsugiki.training"]
    )
    listed = re.findall(r"\[`(\w+)`\]\(\.\./src/tsugiki/training/\1\)", text_of(ROOT / page))
    assert listed == layers[::-1]
    assert all(f"[`{package}`](../src/tsugiki/{package})" in text_of(ROOT / page) for package in PACKAGES)


@cache
def flags() -> dict[str, set[str]]:
    """The flags of every command by its words, such as `adapters list`."""

    def walk(command: Any, words: tuple[str, ...]) -> dict[str, set[str]]:
        if not hasattr(command, "commands"):
            parameters = command.get_params(typer.Context(command))
            return {" ".join(words): {flag for one in parameters for flag in (*one.opts, *one.secondary_opts)}}
        inner = command.commands.items()
        return {name: found for word, each in inner for name, found in walk(each, (*words, word)).items()}

    return walk(root_command(), ())


def quoted_commands(text: str) -> list[list[str]]:
    """The words after `tsugiki` of every command that a text quotes, in lines of code and in backticks.

    A table of figures names the command that was run, which may be older.
    """
    text = re.sub(r"(?s)<!-- figures: .*?<!-- end of figures -->", "", text)
    lines = [line for block in re.findall(r"(?ms)^```\w*\n(.*?)^```", text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    lines += re.findall(r"(?m)^#\s+(tsugiki .+)$", text)
    found = [match[1] for line in lines if (match := re.match(r"(?:\$ |pip install \. && )?tsugiki ([a-z].*)", line))]
    return [shlex.split(re.sub(r"\s+#.*", "", command.replace("'", '"'))) for command in found]


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a quoted command: a command or a flag that does not exist."""
    name = next((" ".join(words[:length]) for length in (2, 1) if " ".join(words[:length]) in flags()), None)
    if name is None:
        return None if words == ["adapters"] else f"no such command: {' '.join(words[:2])}"
    known = flags()[name] | ANYWHERE
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"{name} has no {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", [*CURRENT, *sorted(ROOT.glob("examples/**/*.yaml"))], ids=name_of)
def test_quoted_commands_have_existing_subcommands_and_flags(page: Path):
    assert [problem for words in quoted_commands(text_of(page)) if (problem := problem_of(words))] == []


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_flags_in_prose_exist(page: Path):
    known = {flag for found in flags().values() for flag in found} | ANYWHERE
    others = set(re.findall(r"(?:llama-cli|pytest|git|ruff|pip|python -m) [^`\n]*", text_of(page)))
    elsewhere = {flag for line in others for flag in re.findall(r"--[a-z][\w-]*", line)}
    said = {flag for code in re.findall(r"`(--[a-z][^`\n]*)`", text_of(page)) for flag in re.findall(r"--[\w-]+", code)}
    assert sorted(said - known - elsewhere) == []


@pytest.mark.parametrize("page", TWINS, ids=name_of)
def test_both_languages_have_the_same_commands_and_links(page: Path):
    both = page, page.with_name(f"{page.stem}.ja.md")
    one, other = (re.sub(r"\.ja\.(md|png|svg)|--lang \w+", r".\1", text_of(each)) for each in both)
    assert fenced_commands(one) == fenced_commands(other)
    own = {page.name}
    links = [{link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)} - own for text in (one, other)]
    assert links[0] == links[1]


def fenced_commands(text: str) -> list[list[str]]:
    """The quoted commands in blocks of code."""
    return quoted_commands("\n".join(re.findall(r"(?ms)^```.*?^```", text)))
