"""`eval` says which of its texts the adapter has learned, and near-duplicates count as one in its intervals."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_seen_texts import text
from tests.runs import run_config
from tsugiki.adapters import Combination, combine, load_weighted_adapters, write_combined
from tsugiki.io import ProgressDisplay
from tsugiki.lowbit import Nf4Linear
from tsugiki.report import evaluation_table
from tsugiki.training import (
    Merge,
    TargetLoader,
    dtype_of,
    evaluate_targets,
    evaluation_targets,
    loaded_targets,
    loss_interval,
    merge_into_folder,
    train,
)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(text(number, 200))
    config = run_config(tmp_path, data=str(folder), max_steps=1, save_steps=1, held_out=0.2)
    return config, train(config)


def evaluated(config: Any, data: Any) -> Any:
    targets = evaluation_targets([config.model], [config.out])
    return list(evaluate_targets(loaded_targets(targets), data, "all", None, ProgressDisplay()))


def test_learned_text_is_marked_and_held_out_text_is_not(run: Any, tmp_path: Path):
    config, record = run
    (tmp_path / "new.txt").write_text(text(77, 200))
    base, adapted = evaluated(config, [*config.data, str(tmp_path / "new.txt")])
    assert (base.learned, base.nearly_learned) == (0, 0)
    assert adapted.learned == record.data.train.documents == 5
    assert adapted.nearly_learned == 0
    (_, rows), notes = evaluation_table(["base", "adapted"], [base, adapted])
    assert "*" not in "".join(rows[0])
    assert [cell.partition("\n")[0].endswith(" *") for cell in rows[1]] == [False, True, True, True, False, False]
    assert any("learned 5 of 7 documents" in note for note in notes)
    assert evaluated(config, str(tmp_path / "new.txt"))[1].learned == 0


def learned_texts(model: str, adapter: Path | str | None, data: Any) -> int:
    targets = evaluation_targets([model], [] if adapter is None else [str(adapter)])
    return list(evaluate_targets(loaded_targets(targets), data, "all", None, ProgressDisplay()))[-1].learned


def test_what_is_made_from_an_adapter_has_learned_its_texts(run: Any, tmp_path: Path):
    config, _ = run
    folder = Path(config.out)
    parts, combination = load_weighted_adapters([folder], [0.5]), Combination("cat")
    write_combined(combine(parts, combination), tmp_path / "half", [folder], [0.5], combination)
    assert learned_texts(config.model, tmp_path / "half", config.data) == 5
    merge_into_folder(Merge(config.model, [folder], verify=False), tmp_path / "merged", ProgressDisplay())
    assert learned_texts(str(tmp_path / "merged"), None, config.data) == 5
    more = tmp_path / "more"
    more.mkdir()
    for number in (77, 78):  # one of them is held out
        (more / f"{number}.txt").write_text(text(number, 200))
    texts = (*config.data, str(more))
    short = {"data": str(more), "max_steps": 1, "held_out": 0.2}
    train(run_config(tmp_path, "continued", start_from=config.out, **short))
    assert learned_texts(config.model, tmp_path / "continued", texts) == 6
    train(run_config(tmp_path, "whole", model=str(tmp_path / "merged"), method="full", **short))
    assert learned_texts(str(tmp_path / "whole"), None, texts) == 6


def test_copies_of_a_document_make_no_interval(run: Any, tmp_path: Path):
    config, _ = run
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


def test_an_adapter_of_a_quantised_base_is_evaluated_on_such_a_base(run: Any, tmp_path: Path):
    config, _ = run
    quantised = run_config(
        tmp_path, data=list(config.data), out=str(tmp_path / "few-bits"), max_steps=1, base_dtype="nf4", held_out=0.2
    )
    record = train(quantised)
    plain, targets = (evaluation_targets([config.model], [one.out]) for one in (config, quantised))
    assert (dtype_of(plain), dtype_of(targets), dtype_of(targets[:1])) == ("fp32", "nf4", "fp32")
    for dtype, expected in ((None, True), ("bf16", False)):
        models = [model for _, model, _ in loaded_targets(targets, dtype=dtype)]
        assert all(any(isinstance(layer, Nf4Linear) for layer in model.modules()) is expected for model in models)
    base, adapted = evaluated(quantised, list(config.data))
    assert base.loss != adapted.loss
    assert record.resolved_settings["base_dtype"] == "nf4"
    assert not any(isinstance(layer, Nf4Linear) for layer in TargetLoader(False, False).use(targets[0])[0].modules())
