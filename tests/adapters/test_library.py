"""A folder of adapters: what is in it, and that nothing is lost, overwritten or half there."""

from pathlib import Path

import pytest

from tests.adapters.folders import edit_config, write
from tests.errors import assert_refused
from tests.files import contents
from tests.tiny import byte_tokenizer, save_grafted, shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, TsugikiError, graft, save_adapter, trainable_parameters
from tsugiki.adapters import (
    WeightedAdapter,
    adapter_folder,
    check_name,
    combine,
    copy_into_library,
    library_folder,
    member,
    read_adapter_info,
    read_library,
    read_lora_weights,
    rename_adapter,
)
from tsugiki.io import remove_folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for seed, name in enumerate(("soseki", "漱石", "b")):
        write(tmp_path / "library" / name, seed)
    return tmp_path / "library"


def names(library: Path) -> list[str]:
    return [entry.name for entry in read_library(library)]


def test_hidden_folders_and_loose_files_are_no_adapters(library: Path):
    (library / ".x.part").mkdir()
    (library / "notes.txt").write_text("")
    assert names(library) == ["b", "soseki", "漱石"]


def test_broken_folders_are_listed_with_the_reason(library: Path):
    (library / "empty").mkdir()
    (library / "gone").symlink_to(library / "nowhere")
    weights = write(library / "cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    edit_config(write(library / "newer"), use_bdlora={"nblocks": 2})
    found = {entry.name: entry.broken for entry in read_library(library) if entry.broken}
    assert list(found) == ["cut", "empty", "gone", "newer"]
    assert "adapter_model.safetensors is broken" in found["cut"]
    assert found["empty"] == "no adapter: it has no adapter_config.json"
    assert "nowhere" in found["gone"]
    assert "use_bdlora={'nblocks': 2} is not supported: merge" in found["newer"]
    assert not any(str(library / name) in said for name, said in found.items() if name != "gone")


def test_what_is_added_is_the_adapter_and_its_record_alone(library: Path, tmp_path: Path):
    run = write(tmp_path / "run", 7)
    (run / "run.json").write_text("{}")
    (run / "report.html").write_text("page")
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    before = contents(run)
    folder = copy_into_library(run, library)
    assert folder == library / "run"
    assert contents(folder) == {name: before[name] for name in before if name not in ("report.html",)}
    assert contents(run) == before
    assert copy_into_library(run, tmp_path / "new" / "library", "芥川").is_dir()


def test_what_is_broken_is_not_added(library: Path, tmp_path: Path):
    weights = write(tmp_path / "cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    for source, said in ((weights.parent, weights.name), (weights, weights.name), (tmp_path, "it has no adapter_co")):
        assert_refused(said, copy_into_library, source, library, "new")
    assert sorted(path.name for path in library.iterdir()) == ["b", "soseki", "漱石"]


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../b", "a\\b", "-rf", ".x", "a\nb", "a\x1b[2J", "a ", "x" * 101, "雨" * 99, "a.", "c:"]
)
def test_names_that_cannot_be_are_no_paths_either(name: str, library: Path):
    for attempt in (
        lambda: check_name(name),
        lambda: rename_adapter("b", name, library),
        lambda: copy_into_library(library / "b", library, name),
        lambda: member(name, library),
    ):
        with pytest.raises(TsugikiError):
            attempt()
    assert names(library) == ["b", "soseki", "漱石"]


def test_a_link_is_removed_and_what_it_points_to_stays(library: Path, tmp_path: Path):
    elsewhere = write(tmp_path / "elsewhere", 5)
    (library / "link").symlink_to(elsewhere)
    before = contents(elsewhere)
    assert "link" in names(library)
    remove_folder(rename_adapter("link", "renamed", library))
    assert names(library) == ["b", "soseki", "漱石"]
    assert contents(elsewhere) == before


def test_an_adapter_is_a_path_or_a_name(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(library))
    assert library_folder() == library
    assert adapter_folder("soseki") == library / "soseki"
    assert adapter_folder(str(library / "b")) == library / "b"
    assert_refused("'soseky'.*'soseki'", adapter_folder, "soseky")
    assert_refused("adapter_config.json", adapter_folder, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "b", 8)
    assert adapter_folder("b") == Path("b"), "a folder here comes first"


def test_experts_are_targets_and_only_merging_takes_them(tmp_path: Path):
    model = tiny_of("qwen3_moe")
    graft(model, LoraConfig(r=3, target_modules=["q_proj"], target_parameters=["gate_up_proj", "mlp.gate.weight"]))
    shake(model)
    save_adapter(model, tmp_path)
    info = read_adapter_info(tmp_path)
    assert (info.method, info.ranks, info.targets) == ("lora", (3,), ("gate", "q_proj", "gate_up_proj"))
    assert info.parameters == sum(p.numel() for p in trainable_parameters(model).values())
    lora = read_lora_weights(tmp_path)
    assert len(lora.layers) == 4  # a router has one matrix
    assert_refused("experts.*experts.lora_A", combine, [WeightedAdapter("a", lora, 2.0)])


def test_the_tokenizer_of_new_words_is_copied(tmp_path: Path):
    save_grafted(tmp_path / "adapter", tiny_model(), LoraConfig(trainable_token_indices=[5]))
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    copied = copy_into_library(tmp_path / "adapter", tmp_path / "library")
    assert (copied / "tokenizer.json").is_file()
