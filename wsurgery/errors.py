"""The errors that a user can cause. Each is one line: what is wrong, where, and what to do."""


class WsurgeryError(Exception):
    """Bad data: a broken file, a shape that does not fit. Exit status 1."""

    exit_status = 1


class UsageError(WsurgeryError):
    """A command that cannot mean anything: an unknown block, a missing argument. Exit status 2."""

    exit_status = 2


def printable(text: str, limit: int = 200) -> str:
    """Escape control characters and cut `text` at `limit` characters, so a hostile name cannot drive a terminal."""
    escaped = text
    if not text.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"
