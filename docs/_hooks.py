"""What MkDocs does not do by itself: pages beside docs/ that pages link to, and a look that no page asks another host.

A link that leads out of docs/ takes along what it points to: recipes, their pictures, SECURITY.md, a source file. README.md is
the site's first page, so that it is written once.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
UNLINKED = re.compile(r"(?<!!)\[([^\]]+)\]\(\)")
CODE = re.compile(r"`[^`\n]*`")
ELSEWHERE = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def target(page: str, link: str) -> str:
    """The file of this repository that a link on one of its pages means, if there or not; "" for a folder without a page."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
        return path if (ROOT / path).is_file() else ""
    return path


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def in_repository(uri: str) -> str:
    """The other way round."""
    return "README.md" if uri == "index.md" else f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def on_files(files: Any, config: Any) -> Any:
    """Add what the pages link to outside of docs/, and what those pages link to."""
    pages = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = {*pages[1:]}
    while pages:
        page = pages.pop()
        if page not in seen and not page.startswith("docs/"):
            files.append(File.generated(config, in_site(page), abs_src_path=str(ROOT / page)))
        seen.add(page)
        if page.endswith(".md"):
            links = {target(page, link) for link in LINK.findall((ROOT / page).read_text())}
            pages += {link for link in links - seen - {""} if (ROOT / link).is_file()} - set(pages)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to where their targets lie in the site; one to a folder without a page becomes its words."""
    here = in_repository(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        to = target(here, found[1])
        return to and posixpath.relpath(in_site(to), posixpath.dirname(page.file.src_uri) or ".")

    markdown = CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)  # in a table GitHub wants it escaped
    return UNLINKED.sub(r"\1", LINK.sub(moved, markdown))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that would load anything from another host."""
    for tag in ELSEWHERE.findall(output):
        if 'rel="canonical"' not in tag:
            raise PluginError(f"{page.file.src_uri} asks another host: {tag}")
    return output
