"""The libraries that not every command needs, and the extras of this package that bring them."""

import re

_DISTRIBUTIONS = {"PIL": "pillow", "markdown_it": "markdown-it-py"}  # where a module's name is another


def remedy(error: ModuleNotFoundError) -> str | None:
    """Say what to install where an import failed: `needs torch: pip install 'wsurgery[train]'`.

    Args:
        error: of the import.

    Returns:
        None if no extra of this package brings the module.
    """
    from importlib.metadata import requires

    module = error.name or ""
    library = _DISTRIBUTIONS.get(module, module).replace("_", "-")
    for requirement in requires("wsurgery") or ():  # torch>=2.4; extra == "train"
        match = re.match(r"""([\w.-]+).*;.*\bextra == ['"]([\w-]+)""", requirement)
        if match and match[1].replace("_", "-") == library:
            return f"needs {library}: pip install 'wsurgery[{match[2]}]'"
    return None
