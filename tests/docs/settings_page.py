"""Write the guide to settings and the schema for editors: `python -m tests.docs.settings_page`.

Both are made from the fields of `RunConfig`, so nothing in them is typed by hand.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from tsugiki.language import ENGLISH, JAPANESE, _, speaking
from tsugiki.training import RunConfig, settings_of
from tsugiki.training.settings.setting import DATA_KINDS, Setting

DOCS = Path(__file__).parents[2] / "docs"
_HEAD = {
    ENGLISH: """\
# Settings

[日本語](settings.ja.md)

In a YAML file the settings of a run have these names, and those of `lora` stand below `lora:`; a flag of
`tsugiki train` has hyphens instead of underscores (`--batch-size`, `--lora-alpha`).
[run.schema.json](run.schema.json) tells an editor about them. [Training](training.md) says
which of them to change, and why.
""",
    JAPANESE: """\
# 設定

[English](settings.md)

学習の設定です。YAML ファイルではこの名前を使い、`lora` の設定は `lora:` の下に書きます。`tsugiki train` の
フラグでは、アンダースコアの代わりにハイフンを使います（`--batch-size`、`--lora-alpha`）。エディターは
[run.schema.json](run.schema.json) を読んで入力を助けます。どの設定をなぜ変えるかは、[学習](training.ja.md)にあります。
""",
}
_WORDS = {
    "setting": "設定", "values (default: bold)": "値（既定値は太字）", "meaning": "意味",
    " (only for: {})": "（対象：{}）", ", ": "、", "texts": "文章", "questions": "質問と回答",
    "conversations": "会話", "pairs": "応答の組",
}  # fmt: skip
_SIGNS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}


def page(language: str) -> str:
    """Return the guide in a language."""
    with speaking(language):
        groups = dict.fromkeys(setting.group for setting in settings_of(RunConfig))
        parts = [_HEAD[language], *(_section(group, language) for group in groups)]
    return "\n".join(parts)


def schema() -> str:
    """Return the JSON schema of a file of settings; of each setting, also the kinds of data that it belongs to."""
    made = RunConfig.model_json_schema()
    made["$defs"]["LoraConfig"]["description"] = made["properties"]["lora"]["description"]
    for setting in settings_of(RunConfig):
        if len(setting.path) > 1:
            made["$defs"]["LoraConfig"]["properties"][setting.path[-1]]["description"] = setting.description
        if setting.about.data != DATA_KINDS:
            made["properties"][setting.path[0]]["x-data"] = list(setting.about.data)
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _section(group: str, language: str) -> str:
    word = _WORDS.__getitem__ if language == JAPANESE else str
    head = f"| {word('setting')} | {word('values (default: bold)')} | {word('meaning')} |"
    rows = [_row(setting, word) for setting in settings_of(RunConfig) if setting.group == group]
    return "\n".join([f"## {_(group)}", "", head, "| --- | --- | --- |", *rows, ""])


def _row(setting: Setting, word: Any) -> str:
    annotation = RunConfig.model_fields[setting.path[0]] if len(setting.path) == 1 else None
    names = [f"`{name}`" for kind in setting.types if get_origin(kind) is Literal for name in get_args(kind)]
    limits = [] if annotation is None else list(_limits(annotation.annotation, annotation.metadata))
    if not setting.is_required and setting.default not in (None, (), {}):
        default = f"`{_plain(setting.default)}`"
        names = [f"**{default}**", *(name for name in names if name != default)]
    meaning = _(setting.description.replace("[", r"\[")).replace(r"\[", "[")
    if setting.about.data != DATA_KINDS:
        meaning += word(" (only for: {})").format(word(", ").join(map(word, setting.about.data)))
    cells = [f"`{setting.path[-1]}`", ", ".join([*names, *dict.fromkeys(limits)]), meaning]
    return "| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in cells) + " |"


def _limits(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    """Yield the limits of a number, also of one among several types."""
    for mark in metadata:
        for name, sign in _SIGNS.items():
            if (limit := getattr(mark, name, None)) is not None:
                yield sign.format(f"{limit:,}")
        yield from _limits(None, getattr(mark, "metadata", []))
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from _limits(inner[0], list(inner[1:]))
    elif get_origin(annotation) is not Literal:
        for part in inner:
            yield from _limits(part, [])


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def files() -> dict[Path, str]:
    """Return file -> its content."""
    return {
        DOCS / "settings.md": page(ENGLISH),
        DOCS / "settings.ja.md": page(JAPANESE),
        DOCS / "run.schema.json": schema(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
