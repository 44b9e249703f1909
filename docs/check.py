"""Checks the built documentation: `python docs/check.py SITE`.

Every link and anchor leads somewhere, nothing is loaded from another host, and every public name
has its entry.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

_LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src"}
_LINKS = {"a": "href", "area": "href", "link": "href"}
_FETCHED = {"stylesheet", "preconnect", "preload", "icon", "modulepreload", "dns-prefetch"}


class Page(HTMLParser):
    """The anchors, links and loaded files of a page."""

    def __init__(self, text: str) -> None:
        """Reads the page."""
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what an element names."""
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if _LOADED.get(tag) in given:
            self.loaded.append(given[_LOADED[tag]])
        elif tag == "link" and _FETCHED & set(given.get("rel", "").split()):
            self.loaded.append(given.get("href", ""))
        elif _LINKS.get(tag) in given:
            self.links.append(given[_LINKS[tag]])


def problems(site: Path, names: list[str]) -> list[str]:
    """Returns what is wrong with a built site.

    Args:
        site: its folder.
        names: public names, each the id of an entry.
    """
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        if where.name == "404.html":  # its links are absolute: it stands in for any address
            continue
        for link in [*page.links, *page.loaded]:
            if urlsplit(link).scheme or link.startswith("//"):
                if link in page.loaded and not link.startswith("data:"):
                    found.append(f"{where}: loads {link}")
            elif wrong := _broken(path, link, pages):
                found.append(f"{where}: {link}: {wrong}")
    for path in site.rglob("*.css"):
        for url in re.findall(r"url\(\s*['\"]?(https?:[^)'\"]+)|@import", path.read_text()):
            found.append(f"{path.relative_to(site)}: loads {url}")
    entries = set().union(*(page.anchors for page in pages.values()))
    return found + [f"{name}: has no entry" for name in names if name not in entries]


def _broken(path: Path, link: str, pages: dict[Path, Page]) -> str | None:
    """Returns what is wrong with a relative link of a page, or None."""
    address, anchor = urldefrag(link)
    target = (path.parent / unquote(address)).resolve() if address else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return "there is no such file"
    if anchor and target in pages and unquote(anchor) not in pages[target].anchors:
        return "there is no such anchor"
    return None


def main() -> None:
    """Checks the site that the command line names; exits with 1 where something is wrong."""
    from generate import packages

    site = Path(sys.argv[1]).resolve()
    names = [f"raybust.{name}.{member}" for name, listed in packages().items() for member in listed]
    found = problems(site, names)
    for line in found:
        print(line)
    count = len(list(site.rglob("*.html")))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{count} pages, {len(names)} public names, {size / 1e6:.1f} MB: {len(found)} problems")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
