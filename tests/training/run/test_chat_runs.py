"""Runs that learn conversations: their chat template is saved with the adapter and used by everything that follows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

import tsugiki
from tests.data.chat_templates import SHAPES, tokenizer_of
from tests.errors import refused
from tests.files import write_rows
from tests.runs import interrupt, run_config, short_texts
from tests.tiny import byte_tokenizer, save_tiny, tiny_model
from tsugiki.adapters import saved_chat_template, with_chat_template
from tsugiki.data import DEFAULT_TEMPLATE, Completion, Conversation, Document, Message, Window, encode_records
from tsugiki.generation import prompt_tokens
from tsugiki.io import ProgressDisplay
from tsugiki.training import Merge, RunConfig, held_out_answers, merge_into_folder, read_data, read_record, train

TURNS = (Message("system", "be kind"), Message("user", "hi"), Message("assistant", "yes, hi"))


def chat_file(folder: Path, count: int = 6) -> str:
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}{n}"}] for n in range(count)]
    return write_rows(folder / "chat.jsonl", [{"messages": row} for row in rows])


def config_of(folder: Path, template: str | None, data: str, **changes: Any) -> RunConfig:
    """The settings of a run of a base that has this chat template."""
    base = save_tiny(folder / "base", template=template, n_positions=256)
    return run_config(folder, model=base, data=data, **{"block_size": 128, "prompts": ["1?"], **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on conversations, of a base without a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    config = config_of(folder, None, chat_file(folder), chat_template="default")
    return config, train(config)


@pytest.mark.parametrize("shape", [*SHAPES, "default"])
def test_a_prompt_is_what_came_before_the_answer_in_training(shape: str):
    tokenizer, turns = tokenizer_of(SHAPES["chatml" if shape == "default" else shape]), TURNS
    if shape == "default":
        tokenizer.chat_template = DEFAULT_TEMPLATE
    elif "system" not in SHAPES[shape].roles:
        turns = TURNS[1:]
    record = encode_records(tokenizer, [Conversation(turns, "")], "last")[0]
    prompt = prompt_tokens(tiny_model(), tokenizer, turns[:-1])
    assert record.ids[: len(prompt.ids)] == prompt.ids
    assert "yes, hi" in tokenizer.decode(record.ids[len(prompt.ids) :])
    learned = [token for token, counts in zip(record.ids, record.loss_mask, strict=True) if counts]
    assert learned[-1] in prompt.ends
    assert record.loss_mask.index(True) >= len(prompt.ids)


def test_a_run_on_conversations_answers_and_leaves_its_template_in_every_folder(trained: Any):
    config, record = trained
    assert record.data.learns_conversations
    assert {sample.prompt for sample in record.samples} == {"1?"}
    assert all(sample.text.startswith("\n") for sample in record.samples)
    folders = [Path(config.out), *(Path(config.out) / "checkpoints").iterdir()]
    assert len(folders) > 1
    assert {saved_chat_template(folder) for folder in folders} == {DEFAULT_TEMPLATE}


def test_plain_text_leaves_no_template(tmp_path: Path):
    (tmp_path / "words.txt").write_text("庭師\n")  # because of which there is a tokenizer in the folder
    train(config_of(tmp_path, DEFAULT_TEMPLATE, short_texts(tmp_path), max_steps=1, add_tokens=f"{tmp_path}/words.txt"))
    assert saved_chat_template(tmp_path / "run") is None


def test_held_out_questions_are_answered_before_and_after(trained: Any):
    config, record = trained
    assert [entry.step for entry in record.answers] == [0, record.kept_step]
    asked = [[(one.question, one.expected) for one in entry.answers] for entry in record.answers]
    assert asked[0] == asked[1] != []
    assert all(expected == 2 * question.removesuffix("?") for question, expected in asked[0])
    for entry in record.answers:
        assert entry.correct == sum(one.answer.strip() == one.expected for one in entry.answers)
        assert entry.counted
    assert read_record(Path(config.out)).answers == record.answers


def test_a_resumed_run_gives_the_same_answers(trained: Any, tmp_path: Path):
    config, record = trained
    again = config.model_copy(update={"out": str(tmp_path / "again")})
    interrupt(train, again, 3)
    assert train(again, resume=True).answers == record.answers


def answers_to(records: list[Any]) -> Any:
    """Answers of a tiny model to held-out records."""
    windows = [Window(record, number) for number, record in enumerate(records)]
    data = SimpleNamespace(windows=windows, answers=None)
    base = SimpleNamespace(model=tiny_model(vocab_size=257, n_positions=512), tokenizer=byte_tokenizer(), data=data)
    return held_out_answers(SimpleNamespace(sample_tokens=4), base, 0)


def test_short_answers_are_counted_and_long_ones_are_only_shown():
    def asked(count: int, answer: str) -> list[Any]:
        return [Completion(f"{number}?", answer, f"{number}") for number in range(count)]

    many = answers_to(asked(40, "yes"))
    assert (many.counted, many.questions) == (True, 16)
    sources = [one.source for one in many.answers]
    assert [one.source for one in answers_to(asked(40, "yes")[::-1]).answers] == sources, "whatever the order"
    assert sources != [f"{number}" for number in range(16)]
    few = answers_to(asked(40, "a long answer"))
    assert (few.counted, few.questions) == (False, 3)
    assert answers_to([*asked(2, "yes"), Document("a text", "")]) is None
    assert answers_to(asked(2, "x" * 600)) is None, "longer than the context"


def test_a_given_template_replaces_that_of_the_tokenizer(tmp_path: Path):
    own = tmp_path / "own.jinja"
    own.write_text(DEFAULT_TEMPLATE.replace("###", "@@"))
    train(config_of(tmp_path, DEFAULT_TEMPLATE, chat_file(tmp_path), chat_template=str(own), max_steps=1))
    assert (saved_chat_template(tmp_path / "run") or "").count("@@") == 2


def test_a_merged_model_has_the_template(trained: Any, tmp_path: Path):
    config, _ = trained
    merge_into_folder(Merge(config.model, [Path(config.out)]), tmp_path / "merged", ProgressDisplay())
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == DEFAULT_TEMPLATE


# Prompts with completions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, "none"])
def pairs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """A run on questions and answers, of a base with a chat template, which the settings may leave out."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"question": f"{n * 7919}?", "answer": f"{n}{n}"} for n in range(6)]
    data = write_rows(folder / "pairs.jsonl", rows)
    config = config_of(folder, DEFAULT_TEMPLATE, data, chat_template=request.param)
    return config, train(config)


def figures(config: RunConfig, **changes: Any) -> list[tuple[int, float]]:
    """Tokens and loss on the data of a run, of its base and of its adapter."""
    targets = {"model": config.model, "adapter": config.out, **changes}
    return [(one.tokens, one.loss) for one in tsugiki.evaluate(config.data, **targets).values()]


def test_the_base_is_measured_on_conversations_with_the_template_of_the_adapter(trained: Any):
    config, _ = trained
    base, adapted = figures(config)
    assert figures(config, chat_template="default") == [base, adapted]
    assert base[0] == adapted[0]


def test_the_base_is_measured_on_pairs_as_the_adapter_learned_them(pairs: Any):
    config, _ = pairs
    assert figures(config)[:1] == figures(config, adapter=None, chat_template=config.chat_template)


def test_pairs_are_learned_in_the_chat_template_and_their_adapter_has_it(pairs: Any):
    config, record = pairs
    template = None if config.chat_template == "none" else DEFAULT_TEMPLATE
    assert saved_chat_template(Path(config.out)) == template
    assert record.data.learns_conversations == (template is not None)
    tokenizer = byte_tokenizer(template)
    split = read_data(config, tokenizer, ProgressDisplay())
    learned = tokenizer.decode(split.store.ids[: split.store.offsets[1]])
    turns = "### user\n0?\n\n### assistant\n00<|endoftext|>"
    assert learned.strip() == f"<|endoftext|>{turns if template else '0?00<|endoftext|>'}"
    assert any("question → answer" in note for note in split.notes)
    assert any("--chat-template" in note for note in split.notes) == (template is not None)


def test_prompts_of_an_adapter_are_as_in_its_training(pairs: Any, monkeypatch: pytest.MonkeyPatch):
    config, _ = pairs
    asked: list[Any] = []
    monkeypatch.setattr("tsugiki.generation.generate.generate_text", lambda *given: asked.append(given[2]) or "")
    tsugiki.generate("1?", adapter=config.out)
    assert asked == ["1?" if config.chat_template == "none" else [Message("user", "1?")]]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"a" * 1_000_001, None])
def test_a_file_that_is_no_template_is_one_line(content: bytes | None, tmp_path: Path):
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(content) if content is not None else path.mkdir()
    with refused("chat.template"):
        with_chat_template(byte_tokenizer(), tmp_path)
