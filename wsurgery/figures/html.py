"""What every page has in common: one look, one frame, and text that stays text."""

from html import escape
from importlib.resources import files
from string import Template

from wsurgery.errors import printable


def text(words: str, limit: int = 10_000) -> str:
    """Write text that others wrote as HTML, in attributes too: escaped, without control characters, cut at `limit`."""
    return escape(printable(words, limit))


def shared(name: str) -> str:
    """Return a style sheet or a template that lies beside this file."""
    return files("wsurgery.figures").joinpath(name).read_text(encoding="utf-8")


def html_page(title: str, body: str, *sheets: str) -> str:
    """Return a page with its styles inside.

    Args:
        title: of the page, text.
        body: HTML.
        sheets: names of style sheets that lie here, after `page.css`, which every page has.
    """
    style = "".join(map(shared, ("page.css", *sheets)))
    return Template(shared("page.html")).substitute(title=text(title), style=style, body=body)
