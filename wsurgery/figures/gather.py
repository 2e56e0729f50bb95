"""Many recipes' results, as Markdown files with their pictures, on one page."""

import base64
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from wsurgery.errors import WsurgeryError, printable

_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}


def results_html(files: Sequence[Path]) -> str:
    """Return the files' contents as HTML, one after the other, with their headings a level lower and pictures inside.

    HTML in the files is shown as text.

    Raises:
        WsurgeryError: a file cannot be read, or a picture in it is not a PNG or SVG file in its folder.
    """
    return "\n".join(map(_one, files))


def _one(file: Path) -> str:
    where = printable(str(file))
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WsurgeryError(f"{where} is not there: make it, or leave it out") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WsurgeryError(f"{where} cannot be read as Markdown: {error}") from None
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + 1, 6)}"
        for child in token.children or ():
            if child.type == "image":
                _take_in(child, file)
    html: str = parser.renderer.render(tokens, parser.options, {})
    return html.replace("<table>", "<div class='scroll'><table>").replace("</table>", "</table></div>")


def _take_in(image: Token, file: Path) -> None:
    name = str(image.attrs["src"])
    path = file.parent / name
    kind = _PICTURES.get(path.suffix)
    if kind is None or "/" in name or not path.is_file():
        raise WsurgeryError(f"{printable(str(file))} shows {printable(name)}, which is no .png or .svg file beside it")
    image.attrs["src"] = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    image.attrs["style"] = "display: block; max-width: 100%; background: #fff"
