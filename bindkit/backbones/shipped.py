"""Backbones that come with bindkit: tiny ViTs pretrained on synthetic scenes, addressed like models of a hub.

>>> shipped_names()[0]
'bindkit/scenes-clip'
>>> directory_of("facebook/dinov2-small") == "facebook/dinov2-small"
True
"""

from __future__ import annotations

import json
from pathlib import Path

from bindkit.errors import BackboneError

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


def depth_of(name: str) -> int:
    """How many layers a shipped backbone has, read from its config: nothing is loaded.

    >>> depth_of("bindkit/scenes-mae")
    6

    Raises
    ------
    BackboneError
        For a name that is not shipped.
    """
    config = json.loads((Path(directory_of(name)) / "config.json").read_text(encoding="utf-8"))
    return int(config.get("vision_config", config)["num_hidden_layers"])
