"""The demo's summary as one HTML page beside its pictures; no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: .5rem; width: 17rem; vertical-align: top; }
figure img { width: 100%; }
figcaption { font-size: .85rem; color: #444; }
"""


def page(
    title: str,
    sections: Sequence[tuple[str, str, Sequence[str], Sequence[Sequence[str]]]],
    pictures: Sequence[tuple[str, str]],
) -> str:
    """A page of tables (heading, a sentence, column names, rows) and pictures (file, caption)."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for heading, sentence, columns, rows in sections:
        parts += [
            f"<h2>{escape(heading)}</h2><p>{escape(sentence)}</p><table>",
            _row("th", columns),
        ]
        parts += [_row("td", row) for row in rows]
        parts.append("</table>")
    parts.append("<h2>Masks</h2><p>A layer of each pattern; query down, key across.</p>")
    for file, caption in pictures:
        parts.append(
            f'<figure><img src="{escape(file)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</body></html>", ""])


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
