"""What a backbone is read from, by content: digests of its files, or the revision of a hub model.

>>> sorted(contents_of_backbone("bindkit/scenes-mae"))
['config.json', 'model.safetensors', 'preprocessor_config.json']
>>> sorted(contents_of_backbone("random-init:bindkit/scenes-mae")), contents_of_backbone("random-init:vit")
(['config.json', 'preprocessor_config.json'], {})
"""

from __future__ import annotations

import re
from pathlib import Path

from bindkit.backbones.random_init import parse_random_init
from bindkit.backbones.shipped import directory_of
from bindkit.files import RememberedDigests

_SETTINGS = re.compile(r"(config|preprocessor_config|processor_config)\.json")
_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?")


def contents_of_backbone(name: str, digests: RememberedDigests | None = None) -> dict[str, str]:
    """Name of each file that `load_backbone` reads -> its SHA-256 in hex; of a hub model ``{"revision": commit}``.

    An untrained twin reads no weights. Nothing is told of an architecture that comes with bindkit and of a hub model
    that is not on this machine: neither has files here.
    """
    known = RememberedDigests() if digests is None else digests
    untrained = parse_random_init(name)
    if untrained is not None and untrained.is_embedded:
        return {}
    source = name if untrained is None else untrained.source
    directory = Path(directory_of(source))
    if not directory.is_dir():
        revision = _revision_here(source)
        return {"revision": revision} if revision else {}
    read = [
        file
        for file in sorted(directory.iterdir())
        if _SETTINGS.fullmatch(file.name) or (untrained is None and _WEIGHTS.fullmatch(file.name))
    ]
    found = {file.name: known.of(file) for file in read}
    known.keep()
    return found


def _revision_here(name: str) -> str | None:
    """The commit of a hub model that lies in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that a hub takes
        return None
    # HOME/models--NAME/snapshots/COMMIT/config.json
    return Path(config).parent.name if isinstance(config, str) else None
