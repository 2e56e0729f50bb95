"""The safetensors format as a stream: header, reader, writer, provenance."""

from wsurgery.checkpoint.header import Header, TensorInfo
from wsurgery.checkpoint.opening import open_checkpoint, stdin_is_piped
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.checkpoint.writer import AtomicFile, open_output

__all__ = ["AtomicFile", "Checkpoint", "Header", "TensorInfo", "open_checkpoint", "open_output", "stdin_is_piped"]
