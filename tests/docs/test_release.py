"""The address of the repository and the version stand in one place, from which `.ci/release.py` writes the others."""

import json
import re
import shutil
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ADDRESS = "https://github.com/someone/tsugiki-lora"


def module_of(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def release() -> Any:
    return module_of("release")


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def copy(release: ModuleType, tmp_path: Path) -> Path:
    """The files of the repository that have the address or the version."""
    for path in (path for pattern in (*release.FILES, "CHANGELOG.md") for path in ROOT.glob(pattern)):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


def test_the_files_are_written(release: ModuleType, project: dict[str, Any]):
    assert release.written(ROOT, project["tool"]["tsugiki"]["address"], project["project"]["version"]) == {}


def test_an_address_and_a_version_are_written_everywhere(release: ModuleType, copy: Path):
    news = {path.relative_to(copy).as_posix(): text for path, text in release.written(copy, ADDRESS, "0.3.0").items()}
    notebooks = {f"examples/notebooks/{name}.ipynb" for name in ("first_adapter", "chapter_walk")}
    assert set(news) == {"README.md", "README.ja.md", "CITATION.cff", "examples/space/requirements.txt", *notebooks}
    for text in news.values():
        assert "OWNER" not in text
        assert "published:" not in text
    wheel = f"{ADDRESS}/releases/download/v0.3.0/tsugiki-0.3.0-py3-none-any.whl"
    assert all(wheel in news[name] for name in ("examples/space/requirements.txt", *notebooks))
    assert [json.loads(news[name])["nbformat"] for name in notebooks] == [4, 4]
    citation = yaml.safe_load(news["CITATION.cff"])
    assert (citation["version"], citation["repository-code"]) == ("0.3.0", ADDRESS)
    for name in ("README.md", "README.ja.md"):
        badges = [line for line in news[name].splitlines() if line.startswith("[![")]
        assert len(badges) == 1
        assert f"({ADDRESS}/actions/workflows/checks.yml)" in badges[0]
        assert "/github/someone/tsugiki-lora/blob/main/examples/notebooks/first_adapter.ipynb)" in badges[0]
        assert f"git clone {ADDRESS} tsugiki && cd tsugiki" in news[name]


def test_what_is_missing_for_a_release_is_listed(release: Any, project: dict[str, Any], copy: Path):
    def problems(tag: str, address: str, date: str) -> list[str]:
        project["tool"]["tsugiki"]["address"] = address
        (copy / "CHANGELOG.md").write_text(f"# Changelog\n\n## 0.2.0 ({date})\n", encoding="utf-8")
        return release.problems(copy, project, tag)

    project["project"]["version"] = "0.2.0"
    tag, address, date = problems("v0.3.0", "", "unreleased")
    assert ("v0.3.0" in tag, "address" in address, "CHANGELOG" in date) == (True, True, True)
    assert all(line.endswith("run python .ci/release.py") for line in problems("v0.2.0", ADDRESS, "2026-12-24"))
    for path, text in release.written(copy, ADDRESS, "0.2.0").items():
        path.write_text(text, encoding="utf-8")
    assert problems("v0.2.0", ADDRESS, "2026-12-24") == []


@pytest.mark.parametrize("address", ["", ADDRESS])
@pytest.mark.parametrize(("page", "readme"), [("index.md", "README.md"), ("index.ja.md", "README.ja.md")])
def test_the_first_page_of_the_site_is_the_readme_without_badges(
    page: str, readme: str, address: str, release: ModuleType, monkeypatch: pytest.MonkeyPatch, copy: Path
):
    hooks, text = module_of("site_hooks"), (copy / readme).read_text(encoding="utf-8")
    (copy / readme).write_text(release.with_facts(text, address, "0.2.0"), encoding="utf-8")
    monkeypatch.setattr(hooks, "ROOT", copy)
    shown = hooks.on_page_read_source(SimpleNamespace(file=SimpleNamespace(src_uri=page)), None)
    assert "badge" not in shown
    targets = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", shown)]
    assert len(targets) > 20
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []
    assert hooks.on_page_read_source(SimpleNamespace(file=SimpleNamespace(src_uri="data.md")), None) is None
