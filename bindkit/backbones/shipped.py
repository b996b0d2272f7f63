"""Backbones that come with bindkit: tiny ViTs pretrained on synthetic scenes, addressed like models of a hub.

>>> shipped_names()[0]
'bindkit/scenes-clip'
>>> directory_of("facebook/dinov2-small") == "facebook/dinov2-small"
True
"""

from __future__ import annotations

from pathlib import Path

from bindkit.errors import BackboneError
from bindkit.files import parse_json

PREFIX = "bindkit/"
ASSETS = Path(__file__).parent.parent / "assets"
"""Holds one Hugging Face directory for each, with its model card."""


def shipped_names() -> tuple[str, ...]:
    """Names of all backbones that come with this bindkit."""
    return tuple(sorted(PREFIX + path.parent.name for path in ASSETS.glob("*/config.json")))


def directory_of(name: str) -> str:
    """The directory behind a shipped name; any other name as it is.

    Raises
    ------
    BackboneError
        For a name that begins with ``bindkit/`` and is not shipped; lists those that are. A directory of that name
        from where one stands passes.
    """
    if not name.startswith(PREFIX) or Path(name).is_dir():
        return name
    if name not in shipped_names():
        raise BackboneError(
            f"bindkit comes with no backbone {name!r}; it has {', '.join(shipped_names()) or 'none (install it again)'}"
        )
    return str(ASSETS / name.removeprefix(PREFIX))


def depth_and_patch(name: str) -> tuple[int | None, int | None]:
    """Number of layers and side of a patch in pixels, read from a config on this machine: nothing is loaded.

    >>> depth_and_patch("bindkit/scenes-mae"), depth_and_patch("facebook/dinov2-small")
    ((6, 8), (None, None))

    None where there is no config here, or it does not say.

    Raises
    ------
    BackboneError
        For a name that begins with ``bindkit/`` and is not shipped.
    """
    file = Path(directory_of(name)).expanduser() / "config.json"
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
        vision = config.get("vision_config") or config
        found = [vision.get(key) for key in ("num_hidden_layers", "patch_size")]
    except (OSError, ValueError, AttributeError):
        return None, None
    depth, patch = (number if type(number) is int and number > 0 else None for number in found)
    return depth, patch
