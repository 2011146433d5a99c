"""Write into other files what pyproject.toml says: the address of the repository and the version.

python .ci/release.py                 writes them
python .ci/release.py --check v0.2.0  exits with 1 if something is missing for a release with this tag

A line with "published: " is for a published repository, and comes out of its comment as soon as there is an address.
"""

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/"
PLACEHOLDER = "OWNER/tsugiki"
FILES = ("README.md", "README.ja.md", "CITATION.cff", "examples/notebooks/*.ipynb", "examples/space/*")


def with_facts(text: str, address: str, version: str) -> str:
    """Return a file's text with the address, if there is one, and the version."""
    text = re.sub(
        r"/releases/download/v[^/]+/tsugiki-[^-]+-", f"/releases/download/v{version}/tsugiki-{version}-", text
    )
    text = re.sub(r"(?m)^version: .*$", f"version: {version}", text)
    if address:
        text = re.sub(r"(?m)^<!-- published: (.*) -->$|^# published: (.*)$", r"\1\2", text)
        text = text.replace(PLACEHOLDER, address.removeprefix(GITHUB).rstrip("/"))
    return text


def written(root: Path, address: str, version: str) -> dict[Path, str]:
    """Return file -> new text, for the files that change."""
    paths = [path for pattern in FILES for path in sorted(root.glob(pattern)) if path.is_file()]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    news = {path: with_facts(text, address, version) for path, text in texts.items()}
    return {path: text for path, text in news.items() if text != texts[path]}


def problems(root: Path, project: dict[str, Any], tag: str) -> list[str]:
    """Return what is missing for a release with a tag."""
    address, version = project["tool"]["tsugiki"]["address"], project["project"]["version"]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(r"(?m)^## (.*)$", changes)
    found = [f"{path.relative_to(root)} differs: run python .ci/release.py" for path in written(root, address, version)]
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and the version in pyproject.toml is {version}")
    if not address.startswith(GITHUB):
        found.append("pyproject.toml has no address on GitHub at [tool.tsugiki]")
    if not section or not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", section[1]):
        found.append(f"the first section of CHANGELOG.md is not '{version} (YEAR-MONTH-DAY)'")
    return found


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", metavar="TAG")
    tag = parser.parse_args().check
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if tag is not None:
        found = problems(ROOT, project, tag)
        print("\n".join(found) or f"{tag} can be released")
        raise SystemExit(bool(found))
    address, version = project["tool"]["tsugiki"]["address"], project["project"]["version"]
    for path, text in written(ROOT, address, version).items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
