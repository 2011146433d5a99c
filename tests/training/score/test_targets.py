"""Several models on the same text: near-duplicates count as one in the intervals, and a quantised base stays so."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import tsugiki
from tests.data.chat_templates import SHAPES
from tests.files import write_rows
from tests.runs import run_config, short_texts
from tests.tiny import save_tiny
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.io import ProgressDisplay
from tsugiki.lowbit import Nf4Linear
from tsugiki.report import evaluation_table
from tsugiki.training import (
    TargetLoader,
    dtype_of,
    dtype_of_training,
    evaluate_targets,
    evaluation_targets,
    loaded_targets,
    loss_interval,
    train,
)

LETTERS = "あいうえおかきくけこさしすせそ春夏秋冬山川草木人心時雨雪花"


def text(seed: int, length: int = 600) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """The settings of a run that is done."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(text(number, 200))
    settings = run_config(tmp_path, data=str(folder), max_steps=1)
    train(settings)
    return settings


def evaluated(config: Any, data: Any) -> Any:
    targets = evaluation_targets([config.model], [config.out])
    return list(evaluate_targets(loaded_targets(targets), data, "all", None, ProgressDisplay()))


def test_copies_of_a_document_make_no_interval(config: Any, tmp_path: Path):
    copies = tmp_path / "copies"
    copies.mkdir()
    for number in range(4):
        (copies / f"{number}.txt").write_text(text(5, 300)[number:])
    (base, _) = evaluated(config, str(copies))
    assert len(base.documents) == 4
    assert len(base.independent) == 1
    assert base.loss_interval is None
    notes = evaluation_table(["base"], [base])[1]
    assert any("too few for an interval" in note for note in notes)
    assert not any("In brackets" in note for note in notes)
    for number in (6, 7):
        (copies / f"other{number}.txt").write_text(text(number, 300))
    (base, _) = evaluated(config, str(copies))
    assert len(base.independent) == 3
    assert base.loss_interval == loss_interval(base.independent)
    assert base.loss_interval != loss_interval(base.documents)
    assert any("from only 3 documents" in note for note in evaluation_table(["base"], [base])[1])


def test_an_adapter_of_a_quantised_base_is_evaluated_on_such_a_base(config: Any, tmp_path: Path):
    quantised = config.model_copy(update={"out": str(tmp_path / "few-bits"), "base_dtype": "nf4"})
    train(quantised)
    plain, targets = (evaluation_targets([config.model], [one.out]) for one in (config, quantised))
    assert (dtype_of(plain), dtype_of(targets), dtype_of(targets[:1])) == ("fp32", "nf4", "fp32")
    assert (dtype_of_training(plain), dtype_of_training(targets)) == (preferred_compute_dtype(), "nf4")
    for dtype, expected in ((None, True), ("bf16", False)):
        models = [model for _, model, _ in loaded_targets(targets, dtype=dtype)]
        assert all(any(isinstance(layer, Nf4Linear) for layer in model.modules()) is expected for model in models)
    base, adapted = evaluated(quantised, list(config.data))
    assert base.loss != adapted.loss
    for adapter, named in ((quantised.out, 1), (config.out, 0), ((), 0)):
        results = tsugiki.evaluate(list(config.data), model=config.model, adapter=adapter)
        assert sum("in nf4" in note for note in results.table()[1]) == named
    assert not any(isinstance(layer, Nf4Linear) for layer in TargetLoader(False, False).use(targets[0])[0].modules())


@pytest.mark.parametrize("template", [SHAPES["chatml"].template, None])
def test_a_base_is_asked_in_the_same_way_whatever_adapter_stands_beside_it(tmp_path: Path, template: str | None):
    base = save_tiny(tmp_path / "base", template=template, n_positions=256)
    rows = [{"prompt": f"{number}?", "completion": str(number)} for number in range(6)]
    write_rows(tmp_path / "chat.jsonl", rows)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "9?", "expected": "9"}))
    short = {"model": base, "max_steps": 1, "prompts": []}
    plain = run_config(tmp_path, "plain", data=short_texts(tmp_path), **short)
    chat = run_config(
        tmp_path, "chat", data=str(tmp_path / "chat.jsonl"), block_size=128, chat_template="auto", **short
    )
    for config in (plain, chat):
        train(config)

    def asked(*adapters: str) -> tuple[Any, list[bool], list[str]]:
        results = tsugiki.evaluate(
            questions=str(tmp_path / "asked.jsonl"), model=base, adapter=adapters, max_new_tokens=8, dtype="fp32"
        )
        forms = [row[1] for row in results.table()[0].rows]
        return results[base], [one.as_conversation for one in results.values()], forms

    is_chat = template is not None
    alone, *_others = asked()
    for adapters in ([plain.out], [chat.out], [plain.out, chat.out], [chat.out, plain.out]):
        beside, conversations, forms = asked(*adapters)
        assert beside == alone
        assert conversations == [is_chat, *(adapter == chat.out for adapter in adapters)]
        assert forms == ["a conversation" if each else "plain text" for each in conversations]
