"""`wsurgery fetch`."""

import re
from typing import Annotated, Any

from wsurgery.commands._networks import believed
from wsurgery.errors import printable
from wsurgery.plugin import Argument, Option, Result, UsageError, edit

_ON_HUB = re.compile(r"(?:hf-hub:|hf_hub:|hf://)?(.+/.+)")


@edit()
def fetch(
    name: Annotated[
        str, Argument(metavar="NAME", help="timm's name (resnet50.a1_in1k), or a model of the hub: org/name.")
    ],
    *,
    revision: Annotated[
        str | None, Option(metavar="REV", help="A branch, a tag or a commit on the hub. Default: main.")
    ] = None,
    offline: Annotated[
        bool, Option("--offline", help="Take what was downloaded before; also with HF_HUB_OFFLINE=1.")
    ] = False,
) -> Result:
    """Fetch pretrained weights as clean safetensors: timm's names, the architecture and its image settings recorded.

    NAME is one that timm knows, or a model of the Hugging Face hub: org/name, hf-hub:org/name or hf://org/name, each also
    with @REV. Its model.safetensors is taken, else its pytorch_model.bin, whole or in shards; names are changed as by
    convert, and no code in it is run. Downloads go through the hub's own cache (HF_HOME) and log-in (`hf auth login`).
    The history records the commit: fetched again with it, the bytes are the same.

    Example: wsurgery fetch resnet50.a1_in1k -o resnet50.safetensors
    """
    from dataclasses import replace
    from functools import partial

    from wsurgery.anatomy.architecture import (
        choose_architecture,
        describe_architecture,
        pretrained_settings,
        read_config,
    )
    from wsurgery.checkpoint.hub import download
    from wsurgery.checkpoint.provenance import describe_file
    from wsurgery.foreign.conversion import converting
    from wsurgery.foreign.state_dict import open_state_dict
    from wsurgery.foreign.timm_names import to_timm
    from wsurgery.progress import wants_progress

    name, _, pinned = name.partition("@")
    if pinned and revision not in (None, pinned):
        raise UsageError(f"{printable(name)}@{printable(pinned)} and --revision {printable(revision or '')}: say one")
    revision = pinned or revision
    progress = wants_progress()
    if on_hub := _ON_HUB.fullmatch(name):
        known, repo = None, on_hub[1]
    else:
        from wsurgery.models.pretrained import download_url, find_pretrained, require_fit

        known = find_pretrained(name)
        repo = known.repo
    known_as = known.name if known else repo
    if known and not repo:
        if revision:
            raise UsageError(
                f"{known.name} is at {known.url}, not on the hub: it has no revisions, leave out --revision"
            )
        path = download_url(known.url, offline=offline, progress=progress)
        given = {**describe_file(path), "url": known.url}
    else:
        found = download(repo, revision, offline=offline, progress=progress)
        path, given = found.path, found.describe()
        pinned = found.commit
    config = read_config(path) if repo else {}
    with converting(
        partial(open_state_dict, path),
        lambda state: to_timm({key: tensor.shape for key, tensor in state.tensors.items()}, config),
    ) as converted:
        state, names = converted.state, converted.names
        architecture = choose_architecture(names.shapes, recorded=state.history.architecture, config=config, arch=None)
        doubts: list[str] = []
        if known is None and architecture is not None and architecture != state.history.architecture:
            architecture = believed(architecture, names.shapes, "config.json", doubts, builds=False)
        settings: dict[str, Any] = pretrained_settings(read_config(path, "preprocessor_config.json")) if repo else {}
        if architecture is None and known:
            architecture, settings = describe_architecture(known.architecture, names.shapes), known.settings
        elif architecture is None and names.architecture:
            architecture = describe_architecture(names.architecture[0], names.shapes, names.architecture[1])
            architecture = believed(architecture, names.shapes, "its names and sizes", doubts, builds=False)
        if architecture and settings:
            architecture = {"pretrained_cfg": settings, **architecture}
        if known and architecture:
            require_fit(names.shapes, architecture)
        log = list(state.history.log)
        result = converted.result(
            architecture,
            history=replace(state.history, log=()),
            inputs=[{**given, "log": log} if log else given],
            name=known_as.rpartition("/")[2],
            recorded={"name": known_as, "revision": pinned or None, "offline": None},
        )
        called = [f"{printable(name)} is {known_as}"] if known and name != known_as else []
        return replace(result, says=[*called, *result.says, *doubts])
