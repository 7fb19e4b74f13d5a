"""Whether a built site fetches nothing from a network: python docs/check_offline.py SITE. Links to read are fine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["'](?P<src>(?:https?:)?//[^"']+)"""
    r"""|<link\b[^>]*\bhref=["'](?P<href>(?:https?:)?//[^"']+)"""
    r"""|url\(["']?(?P<url>(?:https?:)?//[^"')]+)|@import\s+["'](?P<imported>(?:https?:)?//[^"']+)"""
)


def fetched(text: str) -> list[str]:
    """Addresses that a browser would ask for when it shows this HTML or CSS."""
    return [next(group for group in match.groups() if group) for match in _FETCHED.finditer(text)]


def main(site: Path) -> int:
    """Prints what is fetched, file by file; the exit code says whether there is any."""
    files = sorted([*site.rglob("*.html"), *site.rglob("*.css")])
    if not files:
        print(f"{site}: no pages; run `make docs` first", file=sys.stderr)
        return 2
    found = [f"{f.relative_to(site)}: {address}" for f in files for address in fetched(f.read_text(encoding="utf-8"))]
    print("\n".join(found) if found else f"{len(files)} files fetch nothing from a network")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
