"""Mutated files of every kind that Tsugiki reads are read, or refused in one line, within limits of time and memory.

A case writes the valid files of one kind with changes in one or two of them: bytes, values of JSON, or the header of
safetensors and GGUF.
"""

import csv
import functools
import importlib.util
import io
import json
import random
import struct
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.data.chat_templates import SHAPES, tokenizer_of
from tests.data.read.aozora.test_text import FOOTER, LEGEND
from tests.files import json_of
from tests.report.pages import record
from tests.robustness.mutations import MAX_SIZE, VALUES, json_bytes, mutate_bytes, mutate_value
from tests.tiny import byte_tokenizer, save_grafted, tiny_model
from tsugiki import LoraConfig, TsugikiError, load_adapter
from tsugiki.adapters import (
    combine,
    copy_into_library,
    load_weighted_adapters,
    read_adapter_files,
    read_library,
    read_lora_weights,
    truncated,
    write_lora_weights,
)
from tsugiki.base import (
    converted_folder,
    gguf_fingerprint,
    load_meta_model,
    load_model,
    load_tokenizer,
    named_fingerprint,
    read_model_header,
)
from tsugiki.cli import print_summary
from tsugiki.data import (
    Conversation,
    Message,
    content_key,
    near_duplicates,
    open_store,
    parse_held_out,
    plain_text,
    read_records,
    read_template,
    render,
    split_records,
)
from tsugiki.data.read.answers import PromptRow, read_prompts
from tsugiki.hub.publication import publication
from tsugiki.io import METADATA_FILE
from tsugiki.io.cache import kept, kept_of_folders
from tsugiki.lora import active_names, remove_adapter
from tsugiki.methods import METHODS
from tsugiki.preference.rewards import parse_rule, reward_of, scores_of
from tsugiki.preference.sampling import Answer, PromptAnswers, count_answers, read_answers, write_answers, write_pairs
from tsugiki.report import inspect_adapter, write_report
from tsugiki.training import (
    SweepConfig,
    finished,
    load_config,
    load_settings,
    read_record,
)

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

Files = Mapping[str, bytes]

SETTINGS: Sequence[Any] = (
    *(*VALUES, 3, 16, 257, 10**6, 10**9, 10**18, 1e-5, "gelu", "float16", "llama", "gemma3_text", "<|endoftext|>"),
    *("LORA", "IA3", "all-linear", "lora_only", "pissa", "c_attn", ["c_attn"], r".*", "(a+)+b", "[[a", {"c_attn": 4}),
    *({"(a|a)+b": 10**9}, {"rope_type": "dynamic", "factor": 0}, {"AutoConfig": "own.Config"}, "../model.safetensors"),
)
HEADERS: Sequence[Any] = (*VALUES, "F32", "BF16", "F8_E4M3", "I64", "Q4_K", [0], [0, 2**40], [1 << 62] * 2, [1] * 99)
GGUF_NUMBERS: Sequence[bytes] = (
    *(struct.pack("<I", number) for number in (0, 1, 8, 9, 12, 30, 99, 60_000, 2**32 - 1)),
    *(struct.pack("<Q", number) for number in (0, 1, 100, 10**6, 2**32, 2**62, 2**63, 2**64 - 1)),
    *(struct.pack("<IIQ", 9, kind, 2**40) for kind in (0, 6, 8, 9)),  # a list that is longer than the file
)
"""Types, lengths, dimensions and offsets."""


@dataclass(frozen=True)
class Input:
    """Files that are read together."""

    make: Callable[[str], Files]
    """Return the valid files of a kind."""
    kinds: Sequence[str]
    read: Callable[[Path], object]
    """Read the files in a folder."""
    is_slow: bool = False
    """If a page or a conversion takes some tenths of a second, there are fewer cases."""


def mutated(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".gguf"):
        length = rng.choice((40, 200, 2_000, len(content)))  # the header is at the beginning
        return mutate_bytes(rng, content[:length], GGUF_NUMBERS) + content[length:]
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    if name.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")
        header = json_bytes(mutate_value(rng, json.loads(content[8 : 8 + length]), HEADERS))
        return (len(header).to_bytes(8, "little") + header + content[8 + length :])[:MAX_SIZE]
    if name.endswith((".json", ".yaml")):
        return json_bytes(mutate_value(rng, json.loads(content), SETTINGS))
    if name.endswith(".jsonl"):
        rows = mutate_value(rng, list(map(json.loads, content.splitlines())))
        return b"\n".join(map(json_bytes, rows if isinstance(rows, list) else [rows]))
    return mutate_bytes(rng, content)


def written(folder: Path, files: Files) -> Files:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def files_in(folder: str) -> Files:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def base_files(kind: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(kind, vocab_size=257).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return files_in(folder)


def read_base(folder: Path) -> None:
    named_fingerprint(str(folder))
    load_meta_model(str(folder))
    load_model(str(folder), "int8")
    load_tokenizer(str(folder))("枝を 3本\n<|endoftext|>").input_ids  # noqa: B018


@functools.cache
def gguf_files(kind: str) -> Files:
    from tests.base.gguf.files import tiny_base, write_gguf, write_vocabulary

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        write_vocabulary(path) if kind == "vocabulary" else write_gguf(path, tiny_base(kind))
        return files_in(folder)


def read_gguf_header(folder: Path) -> None:
    read_model_header(folder / "a.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        gguf_fingerprint(folder / "a.gguf")


def convert_gguf(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        load_tokenizer(str(converted_folder(folder / "a.gguf")))("枝を 3本\n<|endoftext|>").input_ids  # noqa: B018


small_model = functools.cache(tiny_model)


ADAPTERS = {
    **{name: METHODS[name].configure({"r": 2}) for name in ("lora", "dora")},
    **{name: METHODS[name].configure({}) for name in ("ia3", "houlsby", "bitfit", "prefix-tuning")},
    "many settings": LoraConfig(
        **{"r": 2, "target_modules": ["c_attn", "wte"], "rank_pattern": {"h.1.attn.c_attn": 1}, "bias": "lora_only"},
        **{"alpha_pattern": {"wte": 3}, "modules_to_save": ["ln_f"], "layers_to_transform": [0, 1]},
    ),
}


@functools.cache
def adapter_files(kind: str) -> Files:
    """An adapter without digests, which would find every change."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_grafted(Path(folder), small_model(), ADAPTERS[kind])
        remove_adapter(small_model(), "default")
        fields = json_of(Path(folder) / METADATA_FILE)
        del fields["digests"]
        return {**files_in(folder), METADATA_FILE: json_bytes(fields)}


def read_adapter(folder: Path) -> None:
    """List the problems of an adapter, and load it; if that is refused, the model is as it was."""
    read_adapter_files(folder)
    model = small_model()
    before = dict(model.named_parameters(remove_duplicate=False))
    try:
        load_adapter(model, folder, allow_base_mismatch=True)
    except TsugikiError:
        assert not active_names(model)
        after = dict(model.named_parameters(remove_duplicate=False))
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)
        raise
    remove_adapter(model, "default")


def read_adapters(folder: Path) -> None:
    """List an adapter in a library, change it, and write the result."""
    with tempfile.TemporaryDirectory() as library:
        copy_into_library(folder, Path(library), "a")
        inspect_adapter(read_library(Path(library))[0].folder)
        lora = read_lora_weights(folder)
        combine(load_weighted_adapters([folder, folder], [1.0, 0.5]))
        write_lora_weights(truncated(lora, 1)[0], Path(library) / "b", None)
        read_lora_weights(Path(library) / "b")


RECORD = json_bytes(record(config={"out": "run"}).to_json())


def read_run(folder: Path) -> None:
    written(folder, {name: content for name, content in adapter_files("lora").items() if name != "run.json"})
    run = read_record(folder)
    publication(folder, "user/name", None)
    finished(run)
    print_summary(run, folder / "report.html")


COMMON = {"data": "text.txt", "out": "out", "model": "embedded"}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "rank_pattern": {"h.0": 2}, "use_dora": True}
FILES_OF_SETTINGS: dict[str, dict[str, Any]] = {
    "train": {**COMMON, "epochs": 2, "lr_scheduler_type": "cosine", "held_out": "author=A", "lora": LORA},
    "methods": {**COMMON, "settings": {"max_steps": 2}, "methods": {"lora": {"lora": {"r": 2}}, "ia3": {}}},
    "sweep": {**COMMON, "settings": {"max_steps": 2}, "grid": {"r": [1, 2], "target_modules": [["c_attn"], "c_fc"]}},
}


def settings_files(kind: str) -> Files:
    return {f"{kind}.yaml": json_bytes(FILES_OF_SETTINGS[kind])}


def read_settings(folder: Path) -> None:
    (path,) = folder.iterdir()
    if path.stem in ("methods", "sweep"):
        load_settings(SweepConfig, path, {}).runs()
    else:
        load_config(path, {}).to_record()


TURNS = [{"role": "user", "content": "庭の梅は？"}, {"role": "assistant", "content": "咲いた。", "weight": 1}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "string"}}}}}
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": "京"}'}}]}
RESULT = {"role": "tool", "content": "雨", "tool_call_id": "1"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "庭の梅が咲いた。", "author": "A"}, {"text": "まだ寒い。\n春は遠い。", "author": "B"}],
    "pairs": [{"prompt": "問 ", "completion": "答え"}, {"prompt": "二 ", "completion": "に"}],
    "messages": [
        {"messages": [{"role": "system", "content": "丁寧に。"}, *TURNS]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [TURNS[0], CALL, RESULT, TURNS[1]], "tools": [TOOL]},
        {"messages": [TURNS[0], CALL], "tools": json.dumps([TOOL])},
    ],
    "conversations": [
        {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]} for a, b in ("12", "34")
    ],
}
WORK = f"""坂《さか》の上
山田｜一《はじめ》

{LEGEND}
　坂を※［＃「口＋世」、第3水準1-14-88］と上る。〔cafe'〕だん／＼と。
{FOOTER}"""
TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = (
    "{{ tools }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.tool_calls }}<|endoftext|>{% endfor %}"
)


def data_files(kind: str) -> Files:
    if kind == "work":
        return {"a.txt": WORK.encode("shift_jis"), "b.txt": "吾輩は猫である。\n".encode("euc_jp")}
    if kind == "csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(row.values()) for row in ROWS["pairs"]])
        return {"a.csv": b"prompt,completion\n" + text.getvalue().encode("cp932")}
    return {"a.jsonl": b"\n".join(map(json_bytes, ROWS[kind]))}


def read_data(folder: Path) -> None:
    """Read files in the ways that a run does."""
    plain_text("".join(path.read_text("shift_jis", "replace") for path in folder.glob("*.txt")))
    content_key(folder)
    records = list(read_records(folder))
    store = open_store(records, "key", TOKENIZER, "all", folder / "cache")
    split_records(store.index, parse_held_out(0.5), 0, near_duplicates(store.index.signatures))


def read_chat_template(folder: Path) -> None:
    """Find the answers of a conversation."""
    tokenizer = tokenizer_of(SHAPES["chatml"])
    tokenizer.chat_template = (folder / "template.jinja").read_text("utf-8", "replace")
    turns = (Message("user", "庭の梅は？"), Message("assistant", "咲いた。"))
    found = render(read_template(tokenizer, "talk.jsonl:1"), Conversation(turns, "talk.jsonl:1"), "all")
    assert all(0 <= start < stop <= len(found.text) for start, stop in found.spans)


@functools.cache
def answer_files(kind: str) -> Files:
    """The answers of a round, without their digest, which would find every change."""
    prompt = "春は？" if kind == "text" else [{"role": "user", "content": "春は？", "weight": 1}]
    texts = [("近い\u2028。", 1.0), ("遠い", 0.5), ("", None)]
    answers = [Answer(text, text == "", True, (score, "no number"), score) for text, score in texts]
    with tempfile.TemporaryDirectory() as folder:
        rows = [PromptAnswers(PromptRow(prompt, {"right": {"n": 1}}, f"p.jsonl:{n}"), answers) for n in (1, 2)]
        write_answers(Path(folder) / "1.answers.jsonl", rows)
        return files_in(folder)


def read_round(folder: Path) -> None:
    """Learn from the answers of a round as a run that goes on does."""
    answers = read_answers(folder / "1.answers.jsonl")
    count_answers(answers)
    write_pairs(folder / "1.pairs.jsonl", answers)
    assert all(one.row.text is not None for one in answers)


VALUE = {"loss": [1.5, None], "text": "春"}


def in_cache(cache: Path) -> tuple[Any, Any]:
    """Return a kept value, and the kept value of a folder; both are computed if they are not kept."""
    known = {"a": Path(__file__).parent}  # a value is kept only of a folder that has not just been changed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return kept("base", "key", lambda: VALUE), kept_of_folders("list", "key", known, lambda _folder: VALUE)["a"]


@functools.cache
def kept_files(kind: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        in_cache(Path(folder))
        (path,) = (Path(folder) / "tsugiki" / kind).glob("*.json")
        return {path.name: path.read_bytes()}


def read_kept(folder: Path) -> None:
    """A value that was changed is computed again; it is never another one."""
    paths = list(folder.iterdir())
    for kind in ("base", "list"):
        (folder / "cache" / "tsugiki" / kind).mkdir(parents=True)
        for path in paths:
            (folder / "cache" / "tsugiki" / kind / path.name).write_bytes(path.read_bytes())
    assert in_cache(folder / "cache") == (VALUE, VALUE)


SCHEMA = {
    **{"$defs": {"a": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}, "required": ["x"]}}},
    **{
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"enum": ["c", None]}, "d": {"format": "date"}},
    },
    **{"patternProperties": {"^e": {"pattern": "^f+$", "multipleOf": 0.5}}, "additionalProperties": False},
}
RIGHTS: Sequence[Any] = ("○", 12, {"a": {"x": 1}}, [1, "A"], "−5")
ANSWERS = ('{"a": {"x": 1}, "b": null, "d": "2026-01-01", "e": "f"}', "×", "12", "[1, 2]", '{"e": 1e400}', "")


def rule_files(kind: str) -> Files:
    rows = [{"prompt": "a", "right": right, "note": "b\u2028"} for right in RIGHTS]
    return {"s.json": json_bytes(SCHEMA), "p.jsonl": b"\n".join(map(json_bytes, rows))}


def read_rules(folder: Path) -> None:
    """Score answers to prompts; each score is a share, or the answer is left out."""
    rules = [parse_rule(text) for text in (f"schema:{folder / 's.json'}", "0.5*field:right", "regex:1")]
    answered = [(row, answer) for row in read_prompts(str(folder / "p.jsonl")) for answer in ANSWERS]
    for scores in scores_of(rules, answered, "1", 10.0, lambda _note: None):
        assert all(not isinstance(one, float) or 0 <= one <= 1 for one in scores)
        reward_of(rules, scores)


def vote_files(kind: str) -> Files:
    models = {"base": "m", "models": {"chosen": "a", "rejected": "b"}}
    turns = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    rows = [{"chosen": "春の朝、", "rejected": "春の\u2028夜", **models}, {"prompt": TURNS[:1], **turns, **models}]
    return {"votes.jsonl": b"\n".join(map(json_bytes, rows))}


def read_votes(folder: Path) -> None:
    """List votes, count them, and add one, which is then the last."""
    from tsugiki.serve.votes import FOLDER, VoteRequest, Votes, holds_few_votes

    votes = Votes(folder)
    votes.folder.mkdir()
    (folder / "votes.jsonl").rename(votes.file)
    holds_few_votes(votes.file)
    before = votes.listing()
    answers = [{"model": name, "text": name} for name in ("good", "bad")]
    added = votes.add(VoteRequest.model_validate({"prompt": "p ", "answers": answers, "best": 0}), "m")
    after = votes.listing()
    assert added["pairs"] == after["pairs"] == before["pairs"] + 1
    assert after["last"][0]["chosen"] == "p good"
    assert votes.folder.name == FOLDER


def read_queue(folder: Path) -> None:
    from tsugiki.serve.run_queue import RunQueue

    queue = RunQueue(folder / "queue.json")
    names = queue.names()
    queue.put("new")
    assert queue.names() == [*names, "new"]
    assert queue.remove("new")
    assert queue.names() == [name for name in names if name != "new"]


GGUF_KINDS = ("llama", "gpt2", "gemma3_text", "qwen2", "vocabulary")
INPUTS: dict[str, Input] = {
    "base models": Input(base_files, ["gpt2", "llama", "gemma3_text"], read_base),
    "GGUF headers": Input(gguf_files, GGUF_KINDS, read_gguf_header),
    "GGUF models": Input(gguf_files, GGUF_KINDS, convert_gguf, is_slow=True),
    "adapters": Input(adapter_files, list(ADAPTERS), read_adapter),
    "changes of adapters": Input(adapter_files, ["lora"], read_adapters),
    "records of runs": Input(lambda kind: {"run.json": RECORD}, [""], read_run),
    "pages of runs": Input(lambda kind: {"run.json": RECORD}, [""], write_report, is_slow=True),
    "settings": Input(settings_files, list(FILES_OF_SETTINGS), read_settings),
    "data": Input(data_files, [*ROWS, "work", "csv"], read_data),
    "answers of rounds": Input(answer_files, ["text", "messages"], read_round),
    "kept results": Input(kept_files, ["base", "list"], read_kept),
    "rules": Input(rule_files, [""], read_rules),
    "chat templates": Input(
        lambda kind: {"template.jinja": SHAPES[kind].template.encode()}, list(SHAPES), read_chat_template
    ),
}


if importlib.util.find_spec("starlette"):
    INPUTS |= {
        "votes": Input(vote_files, [""], read_votes),
        "queue": Input(lambda kind: {"queue.json": b'{"a": "en", "b": "ja", "c": "en"}'}, [""], read_queue),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_mutations(name: str, tmp_path: Path):
    kind_of = INPUTS[name]
    for kind in kind_of.kinds:  # before the harness forks, so that no case counts the time of making them
        kind_of.make(kind)

    def read(rng: random.Random, folder: Path) -> None:
        files = dict(kind_of.make(rng.choice(kind_of.kinds)))
        for file in rng.sample(list(files), min(len(files), rng.choice((1, 1, 2)))):
            files[file] = mutated(rng, file, files[file])
        written(folder, files)
        kind_of.read(folder)

    harness.check(name, read, harness.LONG // 10 if kind_of.is_slow else harness.LONG, tmp_path / "case")


@pytest.mark.parametrize("name", INPUTS)
def test_the_files_are_read_without_a_mutation(name: str, tmp_path: Path):
    """Otherwise, every mutation would be refused for the same reason."""
    for number, kind in enumerate(INPUTS[name].kinds):
        (tmp_path / str(number)).mkdir()
        written(tmp_path / str(number), INPUTS[name].make(kind))
        INPUTS[name].read(tmp_path / str(number))
