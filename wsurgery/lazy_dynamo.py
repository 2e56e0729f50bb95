"""torch's compiler front end, imported when something is to be compiled.

torchvision, which timm imports, imports `torch._dynamo` for one function's decorator, and torch does when it first draws numbers
on its device `meta` or makes an optimizer, only to mark functions that a compiler has to leave alone: two seconds of CPU, of
which nothing is left in a process that compiles nothing. So a stand-in marks them. It makes way for the real one as soon as
anything else of it is asked for, be it by `--compile` or by somebody's own network.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"
_UTILS = "torch._dynamo.utils"
_CONFIG = "torch._dynamo.config"


class _StandIn(ModuleType):
    """A module that is imported when a name of it is asked for that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` and others look at every module there is
            raise AttributeError(name)
        _FINDER.make_way()
        return getattr(import_module(self.__name__), name)


class _Settings(_StandIn):
    """`torch._dynamo.config`: what is set is kept for the real one."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("__"):
            _FINDER.settings[name] = value
        super().__setattr__(name, value)


class _Finder(Loader):
    """Finds the stand-ins, and what else there is of `torch._dynamo` by importing that."""

    def __init__(self) -> None:
        self.marked: list[FunctionType] = []
        self.settings: dict[str, object] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in (_DYNAMO, _UTILS):
            return ModuleSpec(name, self, is_package=name == _DYNAMO)
        if not name.startswith(_DYNAMO + "."):
            return None
        self.make_way()
        import_module(name)
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules.get(spec.name) or _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if not isinstance(module, _StandIn):
            return
        if module.__name__ == _DYNAMO:
            vars(module).update(disable=self.disable, graph_break=_graph_break, config=_Settings(_CONFIG))
        else:
            vars(module).update(is_compile_supported=_is_compile_supported)

    def disable(self, fn: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Mark a function as `torch._dynamo.disable` does: what it leaves alone when it compiles has this mark."""
        if not isinstance(fn, FunctionType):
            self.make_way()
            return import_module(_DYNAMO).disable(fn, *args, **kwargs)
        fn._torchdynamo_disable = True  # type: ignore[attr-defined]
        self.marked.append(fn)
        return fn

    def make_way(self) -> None:
        """Import the real one in place of the stand-ins, once."""
        if self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        for name in (_UTILS, _DYNAMO):
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
        for function in self.marked:  # torch asks once for each and keeps what it got
            vars(function).pop("__dynamo_disable", None)
        config = import_module(_CONFIG)
        for name, value in self.settings.items():
            setattr(config, name, value)


_FINDER = _Finder()


def _graph_break(*args: object, **kwargs: object) -> None:
    """Nothing is being compiled: there is no graph to break."""


def _is_compile_supported(device_type: str) -> bool:
    _FINDER.make_way()
    supported: bool = import_module(_UTILS).is_compile_supported(device_type)
    return supported


def put_off() -> None:
    """Let this process import `torch._dynamo` only when it is needed, if it has not yet."""
    if _DYNAMO not in sys.modules and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


@contextmanager
def without_dtensor() -> Iterator[None]:
    """Keep out `torch.distributed.tensor`, half a second of CPU, where it is looked for and can be done without."""
    name = "torch.distributed.tensor"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
