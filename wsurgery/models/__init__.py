"""Networks, and the way from a checkpoint to one: `wsurgery.models.load("file.safetensors")`.

Importing this module registers the paper's models with timm, so that `timm.create_model("cbr_tiny")` works.
"""

from wsurgery.extras import remedy

try:
    from wsurgery.models.cbr import CBR, cbr_large_t, cbr_large_w, cbr_small, cbr_tiny, cbr_tiny_narrow
    from wsurgery.models.load import as_checkpoint, create, load, load_into, models_for, save
    from wsurgery.models.slim import resnet50_slim
except ModuleNotFoundError as error:
    if said := remedy(error):
        error.msg = f"wsurgery.models {said}"
    raise

__all__ = [
    "CBR",
    "as_checkpoint",
    "cbr_large_t",
    "cbr_large_w",
    "cbr_small",
    "cbr_tiny",
    "cbr_tiny_narrow",
    "create",
    "load",
    "load_into",
    "models_for",
    "resnet50_slim",
    "save",
]
