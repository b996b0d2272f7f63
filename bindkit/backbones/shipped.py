"""Backbones that come with bindkit: tiny ViTs pretrained on synthetic scenes, addressed like models of a hub.

>>> shipped_names()[0]
'bindkit/scenes-clip'
>>> directory_of("facebook/dinov2-small") == "facebook/dinov2-small"
True
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from bindkit.errors import BackboneError
from bindkit.files import parse_json

PREFIX = "bindkit/"
ASSETS = Path(__file__).parent / "assets"
"""Holds one Hugging Face directory for each, with its model card."""


def shipped_names() -> tuple[str, ...]:
    """Names of all backbones that come with this bindkit."""
    return tuple(sorted(PREFIX + path.parent.name for path in ASSETS.glob("*/config.json")))


def directory_of(name: str) -> str:
    """The directory behind a shipped name or one that begins with ``~``; any other name as it is.

    Raises
    ------
    BackboneError
        For a name that begins with ``bindkit/`` and is not shipped; lists those that are. A directory of that name
        from where one stands passes.
    """
    if name.startswith("~"):
        return str(Path(name).expanduser())
    if not name.startswith(PREFIX) or Path(name).is_dir():
        return name
    if name not in shipped_names():
        raise BackboneError(
            f"bindkit comes with no backbone {name!r}; it has {', '.join(shipped_names()) or 'none (install it again)'}"
        )
    return str(ASSETS / name.removeprefix(PREFIX))


def require_place(name: str) -> None:
    """Refuse what can be neither a directory nor a hub id, without asking the hub.

    Raises
    ------
    BackboneError
        For an empty name, a path without a directory, and what is not written as hub ids are.
    """
    if not name.strip():
        raise BackboneError("a backbone needs a name: a hub id, a local directory or random-init:NAME")
    if Path(name).is_dir():
        return
    if name.startswith((".", "~")) or Path(name).is_absolute():
        raise BackboneError(
            f"{name} is no directory; give a hub id or the directory that holds the model's config.json"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise BackboneError(f"{name!r} is no directory here and no hub id such as owner/model: {error}") from error


def depth_and_patch(name: str) -> tuple[int | None, int | None]:
    """Number of layers and side of a patch in pixels, read from a config on this machine: nothing is loaded.

    >>> depth_and_patch("bindkit/scenes-mae"), depth_and_patch("facebook/dinov2-small")
    ((6, 8), (None, None))

    None where there is no config here, or it does not say.

    Raises
    ------
    BackboneError
        For a name that begins with ``bindkit/`` and is not shipped, and for what can be no name of a backbone.
    """
    directory = directory_of(name)
    require_place(directory)
    file = Path(directory) / "config.json"
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
        vision = config.get("vision_config") or config
        found = [vision.get(key) for key in ("num_hidden_layers", "patch_size")]
    except (OSError, ValueError, AttributeError):
        return None, None
    depth, patch = (number if type(number) is int and number > 0 else None for number in found)
    return depth, patch
