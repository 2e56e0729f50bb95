"""What the author of an edit imports: `edit`, which declares it, and the types by which its signature says what it takes.

An edit is one function. Its first parameter says of which kind it is:

- `x: Array`: it changes one tensor after another. Floating-point tensors of the selected part come to it; batch norm's
  running statistics only if `--only` or `--role` chose them. `elementwise=True` cuts tensors in chunks, which are computed in
  float32 (float64 for float64), on all cores, rounded once, and finite values that became infinite are reported.
  `resamples=True` is for edits that draw a tensor anew from itself: batch norm follows `--bn`.
- `checkpoint: Checkpoint` (or several, or `list[Checkpoint]`): it says for each tensor of the result where it comes from.
- neither: it is a source, as `init` and `convert`.

Further parameters are told by their types: `RandomStream` (it draws, and has `--seed`), `Tensor` (what the tensor is), `Map`
(a `map` over chunks), `Selection` (the selectors); every other one is an option, or with `Argument` a positional argument.
"""

from typer import Argument, Option

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.operations.declaration import Array, BatchNorm, Edit, InputFile, Map, Piped, edit
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.tensor import Tensor
from wsurgery.operations.tensor_edit import Result, TensorEdit, copies

__all__ = [
    "Argument", "Array", "BatchNorm", "Checkpoint", "Edit", "History", "InputFile", "Map", "Option", "Piped", "RandomStream",
    "Result", "Selection", "Tensor", "TensorEdit", "TensorInfo", "UsageError", "WsurgeryError", "copies", "edit",
]  # fmt: skip
