"""Takes away from wsurgery what the system named in $ELSEWHERE, darwin or win32, does not have.

Python runs this file as it starts if its folder is on PYTHONPATH, in processes that it starts in turn, too. wsurgery's
modules get the standard library without what only Linux has, and that name as `sys.platform`; nobody gets /proc. It is Linux
all the same: what is emulated of Windows is that it renames and removes no file that the process has open, renames over no
file but by `os.replace`, and, as on its memory cards, has no hard links.
"""

import builtins
import errno
import fcntl
import mmap
import os
import signal
import sys
import tempfile
import types
from importlib.machinery import SourceFileLoader

SYSTEM = os.environ["ELSEWHERE"]
STOP_AT = int(os.environ.get("STOP_AT", "0"))  # the process gets SIGTERM as it gives the N-th file its name

ONLY_LINUX = {
    os: "O_TMPFILE copy_file_range memfd_create posix_fadvise posix_fallocate sched_getaffinity sendfile splice",
    fcntl: "F_GETPIPE_SZ F_SETPIPE_SZ",
    mmap: "MADV_HUGEPAGE MAP_POPULATE",
}
NOT_WINDOWS = {
    os: "O_CLOEXEC fchmod fork getuid mkfifo pread pwrite readv sysconf wait4 writev",
    mmap: "MAP_ANONYMOUS MAP_PRIVATE MAP_SHARED",
    signal: "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGUSR1 SIGUSR2",
}


def without(module):
    """A copy of a module that has only what the other system's has."""
    lost = f"{ONLY_LINUX.get(module, '')} {NOT_WINDOWS.get(module, '') if SYSTEM == 'win32' else ''}".split()
    copy = types.ModuleType(module.__name__)
    vars(copy).update({name: value for name, value in vars(module).items() if name not in lost})
    return copy


renames = 0


def watch(event, arguments):
    """Refuse what is open, as the system would, and /proc."""
    global renames
    if event == "open" and str(arguments[0]).startswith("/proc/"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
    if event in ("os.rename", "os.remove") and SYSTEM == "win32" and is_open(os.path.realpath(arguments[0])):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), arguments[0])
    if event == "os.rename":
        renames += 1
        if renames == STOP_AT:
            os.kill(os.getpid(), signal.SIGTERM)


def is_open(path):
    """Whether this process has a file open."""
    return any(os.path.realpath(f"/proc/self/fd/{number}") == path for number in os.listdir("/proc/self/fd"))


def get_code(loader, name, known=SourceFileLoader.get_code):
    """Compile a module of wsurgery for the other system."""
    if name.partition(".")[0] != "wsurgery":
        return known(loader, name)
    source = loader.get_data(loader.path).replace(b"sys.platform", repr(SYSTEM).encode())
    return compile(source, loader.path, "exec", dont_inherit=True)


def import_(name, globals=None, locals=None, fromlist=(), level=0, known=builtins.__import__):
    """Give wsurgery the other system's modules. The libraries, which are Linux's, keep theirs."""
    if (globals or {}).get("__name__", "").startswith("wsurgery"):
        if SYSTEM == "win32" and name in ("fcntl", "resource"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return modules.get(name) or known(name, globals, locals, fromlist, level)
    return known(name, globals, locals, fromlist, level)


def rename(source, target, known=os.rename):
    """Replace no file."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
    known(source, target)


def link(source, target, **_):
    """Have no hard links."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)


if SYSTEM == "win32":
    os.rename, os.link = rename, link
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile
modules = {module.__name__: without(module) for module in (os, fcntl, mmap, signal)}
if SYSTEM == "win32":  # its locks, as far as wsurgery asks for them
    modules["msvcrt"] = types.ModuleType("msvcrt")
    modules["msvcrt"].LK_NBLCK = fcntl.LOCK_EX | fcntl.LOCK_NB
    modules["msvcrt"].locking = lambda file, how, length: fcntl.flock(file, how)
builtins.__import__ = import_
SourceFileLoader.get_code = get_code
sys.addaudithook(watch)
