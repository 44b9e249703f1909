"""A self-contained HTML page: text, tables and images, without external resources.

All text from outside is escaped here and images are data URIs. The page is readable in print and
on narrow screens.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { --ink: #1a1a1a; --soft: #5c5c5c; --line: #d9d9d9; --search: #eef4fa; --test: #fdf3e3; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 74rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, ul, dl { margin: .4rem 0; max-width: 46rem; }
.lead { color: var(--soft); font-size: 1.05rem; }
.why { border-left: 4px solid #d55e00; background: #fdf0e8; padding: .5rem .8rem; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
code, pre { font: .86em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f5f5f5; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid #8a8a8a; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td.text { min-width: 12rem; overflow-wrap: anywhere; }
.search { background: var(--search); } .test { background: var(--test); }
th.search, th.test { border-left: 2px solid #fff; }
tr.best td { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 0 2rem; }
figure { margin: .6rem 0 1.2rem; break-inside: avoid; max-width: 52rem; }
figure.whole { grid-column: 1 / -1; max-width: 100%; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { max-width: 46rem; margin-top: .3rem; }
details > summary { cursor: pointer; color: var(--soft); }
@media (max-width: 36rem) { body { font-size: 15px; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; } }
@media print { body { font-size: 10pt; max-width: none; padding: 0; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding: .12rem .3rem; } h2 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_PIXELS = 1.4
"""Image pixels per page pixel."""

Cell = tuple[str, str]
"""Unescaped text and CSS classes of a cell."""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a complete document.

    Args:
        title: title of the document.
        parts: HTML from the functions below.
    """
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Returns parts under a heading; "" if all are empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def text(content: str, kind: str = "") -> str:
    """Returns a paragraph; "" without content."""
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(content)}</p>" if content else ""


def heading(content: str) -> str:
    """Returns a heading inside a section."""
    return f"<h3>{escape(content)}</h3>"


def code(content: str) -> str:
    """Returns a code block; "" without content."""
    return f"<pre>{escape(content)}</pre>" if content else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Returns a description list of names and values, omitting empty values."""
    rows = [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs if v]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def table(heads: Sequence[Sequence[tuple[str, str, int]]], rows: Iterable[Sequence[Cell]]) -> str:
    """Returns a table; "" without rows.

    Args:
        heads: rows of headings: text, classes, number of columns spanned.
        rows: rows of cells; class "best" on a first cell marks the whole row.
    """
    top = "".join(
        "<tr>"
        + "".join(
            f'<th class="{kind}" colspan="{span}" scope="{"colgroup" if span > 1 else "col"}">'
            f"{escape(head)}</th>"
            for head, kind, span in line
        )
        + "</tr>"
        for line in heads
    )
    lines = []
    for row in rows:
        best = ' class="best"' if row and "best" in row[0][1].split() else ""
        cells = "".join(f'<td class="{kind}">{escape(cell)}</td>' for cell, kind in row)
        lines.append(f"<tr{best}>{cells}</tr>")
    if not lines:
        return ""
    return (
        f'<div class="wide"><table><thead>{top}</thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def picture(path: Path, title: str, caption: str, whole: bool = False) -> str:
    """Returns an embedded PNG with title and caption.

    Args:
        path: the PNG.
        title: title above it, also its alt text.
        caption: caption below it.
        whole: whether it takes the full width of the page.
    """
    content = path.read_bytes()
    data = base64.b64encode(content).decode()
    across = round(int.from_bytes(content[16:20]) / _PIXELS)
    return (
        f'<figure class="{"whole" if whole else "half"}"><h3>{escape(title)}</h3>'
        f'<img alt="{escape(title)}" width="{across}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def grid(*pictures: str) -> str:
    """Returns figures side by side where space permits; "" for none."""
    return f'<div class="figures">{"".join(pictures)}</div>' if pictures else ""


def folded(summary: str, *parts: str) -> str:
    """Returns parts that a click expands; "" if all are empty."""
    body = "\n".join(part for part in parts if part)
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>" if body else ""
