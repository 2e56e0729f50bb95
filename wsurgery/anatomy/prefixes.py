"""What wrappers put before every name."""

from collections.abc import Iterable

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "student.", "teacher.")


def common_prefix(names: Iterable[str]) -> str:
    """Return the wrappers' prefixes that all names share: `module.`, `_orig_mod.`, `model.`, `backbone.`, in any order."""
    names, prefix = list(names), ""
    while names:
        shared = next((p for p in _PREFIXES if all(n.startswith(prefix + p) and n != prefix + p for n in names)), None)
        if shared is None:
            break
        prefix += shared
    return prefix
