"""Checkpoints on the Hugging Face hub, downloaded whole through its own cache.

The cache also says what a commit does not have, so that a download and its cache give the same files.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsurgery.checkpoint.digest import FilesDigest, file_sha256
from wsurgery.checkpoint.pickles import BIN, BIN_INDEX
from wsurgery.checkpoint.shards import INDEX, MAX_INDEX, WHOLE, parse_index
from wsurgery.errors import UsageError, WsurgeryError, printable
