"""One self-contained HTML page: text, tables and embedded pictures, no script and nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

NBSP_PERCENT = "\N{NO-BREAK SPACE}%"
_STYLE = """
:root{--ink:#222;--soft:#5f5f5f;--rule:#d8d8d8;--ahead:#00548a;--behind:#a84a00}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem 1.25rem 5rem;max-width:64rem;color:var(--ink);background:#fff;
font:17px/1.55 Charter,"Bitstream Charter","Iowan Old Style",Georgia,"Liberation Serif","Times New Roman",serif}
h1{font-size:2rem;line-height:1.2;margin:0 0 .3rem;font-weight:600;letter-spacing:-.01em}
h2{font-size:1.35rem;margin:3.2rem 0 .8rem;padding-top:.9rem;border-top:1px solid var(--rule);font-weight:600}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem;font-weight:600}
p,ul{max-width:44rem;margin:.5rem 0;overflow-wrap:anywhere}li{margin:.25rem 0}
.lead{color:var(--soft);margin-bottom:1.6rem}
.absent-note{border-left:3px solid #e0b458;padding:.1rem 0 .1rem .9rem}
.note,figcaption,.legend,nav{
font:13.5px/1.45 system-ui,-apple-system,"Segoe UI","Liberation Sans",sans-serif;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1.2rem 0}a{color:var(--ahead)}
figure{margin:1rem 0}figcaption{max-width:44rem;margin-top:.5rem}
img{max-width:100%;height:auto;display:block}
.panels{display:grid;gap:.8rem 1.2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--least,17rem)),1fr))}
.panels img{width:100%}.panels>div{max-width:34rem}.panels img[width]{width:auto}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.4rem 0;color:var(--ink)}
.legend svg{vertical-align:-.1em;margin-right:.45em}.legend .off{color:var(--soft)}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font:14px/1.35 system-ui,-apple-system,"Segoe UI","Liberation Sans",sans-serif;
font-variant-numeric:tabular-nums}
th,td{padding:.38rem .8rem;text-align:left;vertical-align:top;font-weight:400;border-bottom:1px solid #ececec}
thead th{color:var(--soft);border-bottom:1px solid var(--ink);border-top:2px solid var(--ink);white-space:nowrap}
tbody tr:last-child>*{border-bottom:2px solid var(--ink)}
.scores th:first-child,.first th:first-child{position:sticky;left:0;background:#fff}
.first th:first-child{white-space:nowrap}
caption{text-align:left;font-weight:600;padding:.9rem .8rem .35rem}
.scores td,.scores thead th:not(:first-child),.n{text-align:right;white-space:nowrap}
.scores td.text{text-align:left;white-space:normal;min-width:6rem}
.scores td.absent{text-align:left;color:var(--soft);font-style:italic}
.ci{display:block;color:var(--soft);font-size:12px}
.best{font-weight:650}.best .ci{font-weight:400}.ahead{color:var(--ahead)}.behind{color:var(--behind)}
.cannot-tell{color:var(--soft)}
details{margin:.8rem 0}summary{cursor:pointer}summary,h4{font-size:1rem;font-weight:600}h4{margin:1.6rem 0 0}
pre{font:12.5px/1.45 ui-monospace,"Liberation Mono",monospace;background:#f7f7f5;padding:1rem;overflow-x:auto}
@media(max-width:40rem){body{font-size:16px;padding-top:1.4rem}h1{font-size:1.55rem}th,td{padding:.34rem .5rem}
.scores th:first-child,.first th:first-child{max-width:8.2rem;white-space:normal}}
@media print{body{font-size:10.5pt;max-width:none;padding:0}nav{display:none}.wide{overflow:visible}
table{font-size:8.5pt}
figure,table,tr{break-inside:avoid}h2,h3{break-after:avoid}pre{white-space:pre-wrap}.panels{--least:14rem}}
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document; `sections` are titles with their HTML."""
    links = "".join(f'<a href="#s{number}">{html.escape(name)}</a>' for number, (name, _) in enumerate(sections))
    body = "\n".join(
        f'<section id="s{number}"><h2>{html.escape(name)}</h2>\n{content}</section>'
        for number, (name, content) in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{html.escape(title)}</h1><p class=lead>{html.escape(lead)}</p><nav>{links}</nav>\n{body}</body></html>\n"
    )


def paragraph(text: str, style: str = "") -> str:
    """Text, escaped; words in backticks are code."""
    parts = html.escape(
        text.replace(" %", NBSP_PERCENT).replace("p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    ).split("`")
    marked = "".join(f"<code>{part}</code>" if odd % 2 else part for odd, part in enumerate(parts))
    return f'<p class="{style}">{marked}</p>' if style else f"<p>{marked}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list of texts, each as `paragraph` would set it."""
    return f"<ul>{''.join(f'<li>{paragraph(text)[3:-4]}' for text in texts)}</ul>"


def heading(text: str, level: int = 3) -> str:
    """Text of a heading inside a section, escaped."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def image(content: bytes, kind: str, alternative: str, width: int | None = None) -> str:
    """An embedded picture; `kind` is `png` or `svg+xml`, `width` in CSS pixels."""
    size = f" width={width}" if width is not None else ""
    data = base64.b64encode(content).decode()
    return f'<img{size} alt="{html.escape(alternative, quote=True)}" src="data:image/{kind};base64,{data}">'


def captioned(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption.replace(' %', NBSP_PERCENT))}</figcaption></figure>"


def panels(contents: Sequence[str], least: str = "17rem") -> str:
    """Pictures side by side where there is room for `least` each, below each other where not."""
    return f'<div class=panels style="--least:{least}">{"".join(f"<div>{content}</div>" for content in contents)}</div>'


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Names with their line: (name, SVG of the line, has numbers)."""
    items = "".join(
        f'<span class="{"" if there else "off"}">{line}{html.escape(name)}</span>' for name, line, there in entries
    )
    return f"<div class=legend>{items}</div>"


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of texts; columns in `numeric` are set right."""
    marks = ["class=n" if column in numeric else "" for column in range(len(head))]
    top = "".join(f"<th scope=col {mark}>{html.escape(name)}" for name, mark in zip(head, marks, strict=True))
    lines = []
    for row in rows:
        first, *rest = (html.escape(text) for text in row)
        cells = "".join(f"<td {mark}>{text}" for text, mark in zip(rest, marks[1:], strict=True))
        lines.append(f"<tr><th scope=row>{first}{cells}")
    return f"<div class=wide><table class=first><thead><tr>{top}</thead><tbody>{''.join(lines)}</tbody></table></div>"


def folded(title: str, text: str) -> str:
    """A text that opens on a click."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"


def unfolding(title: str, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"
