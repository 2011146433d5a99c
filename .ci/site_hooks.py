"""Let the guides, whose links are those of the repository, become pages of the site (see mkdocs.yml)."""

import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from hatch_build import long_description  # noqa: E402

_PLACE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tsugiki"]
_FIRST_PAGES = {"index.md": "README.md", "index.ja.md": "README.ja.md"}


def on_config(config: Any) -> Any:
    """Take the addresses of the repository and of the site from pyproject.toml."""
    config.repo_url, config.site_url = _PLACE["address"] or None, _PLACE["site"] or None
    return config


def on_page_read_source(page: Any, config: Any) -> str | None:
    """Take the README as the first page, without its badges, which a browser would load from elsewhere."""
    if page.file.src_uri not in _FIRST_PAGES:
        return None
    text = (ROOT / _FIRST_PAGES[page.file.src_uri]).read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(\[!\[|\[(日本語|English)\]\(README|<!-- ).*\n", "", text)
    return re.sub(r"\]\((?!https?:|#)", "](../", text).replace("](../docs/", "](")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Remove links to the other language, which the site has at the top, and make links to the source absolute."""
    markdown = re.sub(r"(?m)^\[(日本語|English)\]\([\w.-]+\.md\)( · )?", "", markdown, count=1)
    markdown = re.sub(r"\]\(([^)\s:]+)\.ja\.(md|png|svg)", r"](\1.\2", markdown)
    if page.file.src_uri in _FIRST_PAGES:
        page.meta["hide"] = ["navigation", "toc"]
    folder = posixpath.dirname(page.file.src_uri)

    def outside(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, link[3]))
        if "://" in link[3] or link[3].startswith("#") or target.startswith("docs/"):
            return link[0]
        if target.startswith("README"):
            return f"[{link[2]}](index.md)"
        return long_description(f"{link[1]}[{link[2]}]({target})", _PLACE["address"].rstrip("/"), _PLACE["files"])

    return re.sub(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", outside, markdown)


_JAPANESE = r"[\u3000-\u30ff\u4e00-\u9fff\uff01-\uff60]"


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Join lines between Japanese characters, where browsers would show a space. Blocks of code stay as they are."""
    parts = re.split(r"(?s)(<pre.*?</pre>)", html)
    between = rf"(?<={_JAPANESE})((?:</\w+>)*)\n(?=(?:<\w[^>]*>)*{_JAPANESE})"
    parts[::2] = [re.sub(between, r"\1", part) for part in parts[::2]]
    return "".join(parts)
