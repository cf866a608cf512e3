"""HTML for notebooks: escaped, without scripts, for light and dark.

The few colours come from variables, which follow the page's colour scheme, the reader's preference and the theme of
JupyterLab. Without the style sheet (some viewers drop it), tables and words are all that there is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["bar", "cell", "columns", "facts", "page", "size", "table"]

_STYLE = """<style>
.qcowkit{color-scheme:light dark;--q-line:#ccd3da;--q-soft:#5b6670;--q-head:#f3f5f7;font:13px/1.45 system-ui,sans-serif;
color:inherit;max-width:70em;margin:.3em 0}
@media (prefers-color-scheme:dark){.qcowkit{--q-line:#454d55;--q-soft:#a4afb9;--q-head:#272c31}}
[data-jp-theme-light="true"] .qcowkit{color-scheme:light;--q-line:#ccd3da;--q-soft:#5b6670;--q-head:#f3f5f7}
[data-jp-theme-light="false"] .qcowkit{color-scheme:dark;--q-line:#454d55;--q-soft:#a4afb9;--q-head:#272c31}
.qcowkit table{border-collapse:collapse;margin:.3em 0}
.qcowkit th,.qcowkit td{padding:.15em .7em;border:1px solid var(--q-line);text-align:left;background:none}
.qcowkit th{background:var(--q-head)}
.qcowkit td.n{text-align:right;font-variant-numeric:tabular-nums}
.qcowkit .note{color:var(--q-soft)}
.qcowkit .bar{display:flex;height:1.1em;border:1px solid var(--q-line);max-width:48em}
.qcowkit .bar span{min-width:1px}
.qcowkit .key i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em;vertical-align:-.05em}
</style>"""

#: Colours that are told apart on light and dark ground, also with the common kinds of colour blindness (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a800", "#8c8c8c")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: Columns and facts whose numbers are bytes.
_BYTES = ("bytes", "length", "size", "held", "holes", "unknown")


def size(number: int) -> str:
    """Bytes for a person: `1.5 GiB`."""
    power = min(max(abs(number).bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{number} B" if power == 0 else f"{number / (1 << 10 * power):.1f} {_UNITS[power]}"


def cell(name: str, value: Any) -> str:
    """A cell of a table: the value of a column of this name."""
    if value is None:
        return '<td class="note">-</td>'
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int):
        if name.endswith("offset") or name in ("start", "host", "recorded", "actual"):
            return f'<td class="n">{value:#x}</td>'
        if name.endswith("ppm"):
            return f'<td class="n">{value / 10_000:.1f} %</td>'
        if name.endswith(_BYTES):
            return f'<td class="n" title="{value:,} bytes">{size(value)}</td>'
        return f'<td class="n">{value:,}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def columns(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A table of these members of each row."""
    return table(names, [[cell(name, row.get(name)) for name in names] for row in rows])


def table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of finished cells."""
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values, one a line."""
    rows = ((f"<th>{html.escape(name.replace('_', ' '))}</th>", cell(name, value)) for name, value in pairs)
    return f"<table><tbody>{''.join(f'<tr>{head}{value}</tr>' for head, value in rows)}</tbody></table>"


def bar(parts: Sequence[tuple[str, int]]) -> str:
    """Sizes beside each other in proportion, with a key below; those of 0 are left out."""
    shown = [(name, number) for name, number in parts if number > 0]
    total = sum(number for _, number in shown) or 1
    spans, key = [], []
    for at, (name, number) in enumerate(shown):
        colour, words = COLOURS[at % len(COLOURS)], html.escape(f"{name.replace('_', ' ')}: {size(number)}")
        spans.append(f'<span style="background:{colour};flex:{number / total:.6f}" title="{words}"></span>')
        key.append(f'<span><i style="background:{colour}"></i>{words}</span>')
    return f'<div class="bar">{"".join(spans)}</div><div class="key note">{" ".join(key)}</div>'


def page(title: str, body: str, note: str = "") -> str:
    """What a notebook shows of a value; `title` and `note` are text, `body` is HTML."""
    below = f'<div class="note">{html.escape(note)}</div>' if note else ""
    return f'{_STYLE}<div class="qcowkit"><div><b>{html.escape(title)}</b></div>{body}{below}</div>'
