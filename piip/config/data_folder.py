"""`data: FOLDER`: what the folder holds takes the place of the data of a config, and its classes those of the head."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from piip.config.draft import COMMAND_LINE, Draft
from piip.data.find import FoundData, find_data
from piip.errors import ConfigError
from piip.heads.config import HeadConfig

_log = logging.getLogger(__name__)


def as_mapping(data: dict[str, Any]) -> None:
    """Makes `data: FOLDER` a mapping, `data: {folder: FOLDER}`, which can be merged with the data of the bases."""
    if isinstance(data.get("data"), str):
        data["data"] = {"folder": data["data"]}


def fill_from_folder(draft: Draft) -> None:
    """Sets data.train, data.val, model.head.num_classes and, where the data has no masks, model.head.masks.

    Values from the command line are kept. A warning says what was found. Raises ConfigError where the head is for
    another task than the data, and DataError where nothing is found.
    """
    data, head = draft.data.get("data"), draft.data.setdefault("model", {}).setdefault("head", {})
    if not isinstance(data, dict) or "folder" not in data or not isinstance(head, dict):
        return
    found = _find(_resolve(str(data.pop("folder")), draft))
    member: Any = HeadConfig.known().get(str(head.get("type", HeadConfig.default_type)))
    if member is not None and member.task != found.task:
        raise ConfigError(
            f"{found.folder} holds {found.format}, which are for {found.task}, but the head of this config is for "
            f"{member.task}; choose a config of {found.task} (see `piip models`)"
        )
    writer = f"the data in {found.folder}"
    head["num_classes"] = len(found.class_names)
    draft.attribute("model.head.num_classes", writer)
    chosen = draft.origin.get("model.head.masks") in (COMMAND_LINE, draft.file)
    if found.masks is False and member is not None and "masks" in member.model_fields and not chosen:
        head["masks"] = False
        draft.attribute("model.head.masks", writer)
        _say(f"{found.folder}: the head learns boxes alone (model.head.masks: false), since the data has no masks")
    unread: dict[str, Any] = {}
    if found.masks is not None and member is not None and "masks" not in member.model_construct(**head).needs:
        unread = {"masks": False}
    for split, config in (("train", found.train), ("val", found.val)):
        data[split] = config.given() | unread | _given(draft, data.get(split), f"data.{split}.")
        draft.attribute(f"data.{split}", writer)


def _resolve(given: str, draft: Draft) -> Path:
    """The folder, from where the command runs, or else from where the config lies."""
    beside = Path(draft.file).parent / given
    return beside if not os.path.isdir(given) and os.path.isdir(beside) else Path(given)


def _given(draft: Draft, node: Any, prefix: str) -> dict[str, Any]:
    """What the command line says of a part."""
    if not isinstance(node, dict):
        return {}
    return {key: value for key, value in node.items() if draft.origin.get(prefix + key) == COMMAND_LINE}


@cache
def _find(folder: Path) -> FoundData:
    found = find_data(folder)
    _say(str(found))
    return found


@cache
def _say(text: str) -> None:
    """Once, by one process, and as a warning, which is seen without a logger being set up."""
    if os.environ.get("RANK", "0") == "0":
        _log.warning("%s", text)
