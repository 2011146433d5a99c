"""Check the pages of a built site: links lead to a file and a heading in it, and nothing is loaded from elsewhere."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

RELATIONS = {"canonical", "alternate", "prev", "next"}
"""Kinds of `<link>` that a browser does not load."""


class Page(HTMLParser):
    """The links of a page, each with whether the browser loads it, and the places in the page that a link can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep `href`, `src` and `id`."""
        values = {name: value for name, value in attrs if value}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        loaded = tag != "a" and values.get("rel") not in RELATIONS
        self.links += [(values[name], loaded) for name in ("href", "src") if name in values]


def problem(link: str, loaded: bool, file: Path, root: Path, pages: dict[Path, Page]) -> str | None:
    """Return what is wrong with a link in a file, if anything."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return "is loaded from elsewhere" if loaded and parts.scheme != "data" else None
    path = unquote(parts.path)
    target = (root / path[1:] if path.startswith("/") else file.parent / path).resolve() if path else file
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "leads to no file"
    place = unquote(parts.fragment)
    missing = place and target in pages and not place.startswith("__") and place not in pages[target].places
    return "leads to no heading" if missing else None


def main() -> None:
    """Check the folder that the command names."""
    root = Path(sys.argv[1]).resolve()
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in root.rglob("*.html")}
    found = 0
    for file, page in pages.items():
        for link, loaded in page.links:
            if wrong := problem(link, loaded, file, root, pages):
                found += 1
                print(f"{file.relative_to(root)}: {link} {wrong}")
    print(f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links, {found} problems")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
