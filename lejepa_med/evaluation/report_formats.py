"""Tables as HTML, Markdown and LaTeX: the same entries three times."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lejepa_med.evaluation.report_names import DASH, DOWN, MINUS, UP
from lejepa_med.evaluation.report_tables import Entry, Table

_TEX = {ord(sign): f"\\{sign}" for sign in "&%_#${}"} | {ord("\\"): "\\textbackslash{}", ord("²"): "$^2$"}
_TEX |= {ord("~"): "\\textasciitilde{}", ord("^"): "\\textasciicircum{}"}
_TEX |= {ord(MINUS): "$-$", ord(DASH): "--", ord("○"): "$\\circ$", ord(UP): "$\\uparrow$", ord(DOWN): "$\\downarrow$"}
_TEX |= {ord("▲"): "$\\blacktriangle$", ord("▼"): "$\\blacktriangledown$"}


def as_html(table: Table, caption: str) -> str:
    """A table that scrolls sideways on a small screen, its first column standing still."""
    head = "".join(f"<th scope=col>{html.escape(name)}" for name in table.columns)
    body = []
    for name, entries in table.rows:
        if isinstance(entries, str):
            cells = f"<td class=absent colspan={len(table.columns)}>{html.escape(entries)}"
        else:
            cells = "".join(
                f'<td class="{entry.style}">{entry.value}<span class=ci>{entry.interval}</span>' for entry in entries
            )
        body.append(f"<tr><th scope=row>{html.escape(name)}{cells}")
    note = f"<p class=note>{html.escape(table.note)}</p>"
    return (
        f"<div class=wide><table class=scores><caption>{html.escape(caption)}</caption><thead><tr><th scope=col>"
        f"{html.escape(table.corner)}{head}</thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def as_markdown(all_tables: Sequence[Table], remark: str | None = None) -> str:
    """The remark, and every table as a pipe table under its title."""
    lines = [remark, ""] if remark else []
    for table in all_tables:
        lines += [f"## {table.title}", "", f"| {table.corner} | {' | '.join(table.columns)} |"]
        lines.append(f"|---|{'---|' * len(table.columns)}")
        for name, entries in table.rows:
            cells = _flat(entries, len(table.columns))
            lines.append(f"| {name.replace('|', '/')} | {' | '.join(cells)} |")
        lines += ["", table.note, ""]
    return "\n".join(lines)


def as_latex(all_tables: Sequence[Table]) -> str:
    """Every table with booktabs rules, ready to `\\input`."""
    lines = ["% needs \\usepackage{booktabs,amssymb}"]
    for table in all_tables:
        lines += ["\\begin{table}", "\\centering", f"\\caption{{{_tex(table.title + '. ' + table.note)}}}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}", "\\toprule"]
        lines.append(" & ".join(_tex(name) for name in (table.corner, *table.columns)) + " \\\\")
        lines.append("\\midrule")
        for name, entries in table.rows:
            if isinstance(entries, str):
                cells = [f"\\multicolumn{{{len(table.columns)}}}{{l}}{{{_tex(entries)}}}"]
            else:
                cells = [_tex(cell) for cell in _flat(entries, len(table.columns))]
            lines.append(" & ".join([_tex(name), *cells]) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(lines)


def _flat(entries: tuple[Entry, ...] | str, columns: int) -> list[str]:
    if isinstance(entries, str):
        return [entries] + [""] * (columns - 1)
    return [f"{entry.value} {entry.interval}".strip() for entry in entries]


def _tex(text: str) -> str:
    return text.translate(_TEX)
