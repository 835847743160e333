"""One self-contained HTML file: text, tables and pictures inside it, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triglyph.storage import atomic_file


@dataclass
class Picture:
    """A PNG with its caption, and its words for those who do not see it (the caption if left out)."""

    png: bytes
    caption: str
    alt: str = ""

    @property
    def source(self) -> str:
        """The picture as a data address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass
class Table:
    """Rows of text under a header; the first cell of a row names it, a line break in a cell is kept."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    emphasis: frozenset[int] = frozenset()
    """Numbers of rows to set off."""
    strong: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells to set off."""
    muted: frozenset[int] = frozenset()
    """Numbers of rows that claim nothing."""
    folded: str = ""
    """Shown only when this line is opened."""
    wrap: bool = False
    """Cells are sentences, and break."""


@dataclass
class Part:
    """A heading with what belongs under it, in order."""

    title: str
    text: str = ""
    content: list[Picture | Table] = field(default_factory=list)


def write_html(path: Path, *, title: str, lead: str, facts: Sequence[tuple[str, str]], parts: Sequence[Part]) -> Path:
    """Write a report.

    Parameters
    ----------
    path
        The HTML file.
    title, lead
        Heading and the sentence under it.
    facts
        Short (value, name) pairs shown large at the top.
    parts
        The body.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.tests["picture"] = lambda item: isinstance(item, Picture)
    text = environment.from_string(_PAGE).render(title=title, lead=lead, facts=facts, parts=parts)
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { --ink: #1f2328; --muted: #6a717b; --line: #e3e6ea; --accent: #0072b2; }
  body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
         max-width: 1080px; margin: 0 auto; padding: 3rem 1.5rem 5rem; background: #fff; }
  h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
  h2 { font-size: 1.25rem; margin: 3rem 0 .3rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
  p { max-width: 46rem; margin: .4rem 0 1rem; }
  .lead { color: var(--muted); font-size: 1.08rem; }
  .facts { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.8rem 0 0; }
  .facts div { min-width: 8rem; }
  .facts b { display: block; font-size: 1.7rem; font-weight: 650; color: var(--accent);
             font-variant-numeric: tabular-nums; }
  .facts span { color: var(--muted); font-size: .88rem; }
  figure { margin: 1.2rem 0 1.8rem; }
  img { max-width: 100%; height: auto; display: block; }
  figcaption, caption { color: var(--muted); font-size: .88rem; max-width: 52rem; margin-top: .5rem; text-align: left; }
  caption { caption-side: bottom; padding-top: .5rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
  th { text-align: left; font-weight: 600; border-bottom: 1.5px solid var(--ink); padding: .3rem .9rem .3rem 0; }
  thead th { vertical-align: bottom; }
  td, tbody th { border-bottom: 1px solid var(--line); padding: .28rem .9rem .28rem 0; white-space: pre;
                 vertical-align: top; font-weight: inherit; }
  table.wrap td, table.wrap th { white-space: normal; min-width: 3rem; max-width: 30rem; overflow-wrap: break-word; }
  tr.set-off, td.set-off { font-weight: 650; }
  tr.muted { color: var(--muted); }
  summary { cursor: pointer; color: var(--accent); font-size: .92rem; margin: .6rem 0; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<div class="facts">
{% for value, name in facts %}
  <div><b>{{ value }}</b><span>{{ name }}</span></div>
{% endfor %}
</div>
{% for part in parts %}
<h2>{{ part.title }}</h2>
{% if part.text %}
<p>{{ part.text }}</p>
{% endif %}
{% for item in part.content %}
{% if item is picture %}
<figure><img src="{{ item.source }}" alt="{{ item.alt or item.caption }}">
<figcaption>{{ item.caption }}</figcaption></figure>
{% else %}
{% if item.folded %}
<details><summary>{{ item.folded }}</summary>
{% endif %}
<div class="scroll"><table{% if item.wrap %} class="wrap"{% endif %}>
{% if item.caption %}
<caption>{{ item.caption }}</caption>
{% endif %}
<thead><tr>{% for cell in item.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in item.rows %}
{% set number = loop.index0 %}
<tr{% if number in item.emphasis %} class="set-off"{% elif number in item.muted %} class="muted"{% endif %}>
{% for cell in row %}
{% if loop.first %}
<th scope="row">{{ cell }}</th>
{% else %}
<td{% if (number, loop.index0) in item.strong %} class="set-off"{% endif %}>{{ cell }}</td>
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if item.folded %}
</details>
{% endif %}
{% endif %}
{% endfor %}
{% endfor %}
</body>
</html>
"""
