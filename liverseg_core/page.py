"""What every page is: whole in itself, no request to anywhere, in light and dark, on phones and paper."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

INLINE, DATA = "'unsafe-inline'", "data:"
POLICY = f"default-src 'none'; style-src {INLINE}; script-src {INLINE}; img-src {DATA}; media-src {DATA}"


def html_page(title: str, body: Iterable[str], *assets: Path) -> str:
    """A page as HTML.

    Args:
        title: In the browser's tab; escaped here.
        body: What it shows, escaped already.
        assets: Style sheets and scripts besides those of every page.
    """
    ours = Path(__file__)
    files = (ours.with_suffix(".css"), ours.with_suffix(".js"), *assets)
    style, script = (
        "".join(file.read_text("utf-8") for file in files if file.suffix == kind) for kind in (".css", ".js")
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body>",
            *body,
            f"<script>{script}</script></body></html>",
            "",
        ]
    )


def head(names: Iterable[str], numbers: Iterable[str]) -> str:
    """The head of a table that sorts by each of its columns, some of which hold numbers."""
    numeric = set(numbers)
    cells = (
        f'<th scope="col"{_class(name in numeric)}><button type="button">{escape(name)}</button></th>'
        for name in names
    )
    return f'<table class="sortable cards"><thead><tr>{"".join(cells)}</tr></thead>'


def cell(name: str, key: str, shown: str, number: bool) -> str:
    """A cell below such a head.

    Args:
        name: Of its column, which a phone shows beside it.
        key: What it is sorted by; empty comes last.
        shown: HTML, escaped already.
        number: Whether the key is one.
    """
    return f'<td{_class(number)} data-name="{escape(name)}" data-key="{escape(key)}">{shown}</td>'


def data_url(content: bytes, kind: str) -> str:
    """A file inside the page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _class(number: bool) -> str:
    return ' class="number"' if number else ""
