"""`open_scenes`: from a URI to a scene set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bindkit.arguments import require_kind
from bindkit.errors import SceneSetError
from bindkit.scenes.ade20k import open_ade20k
from bindkit.scenes.folder import open_folder
from bindkit.scenes.scene import SceneSet
from bindkit.scenes.synthetic import open_synthetic

Opener = Callable[[str, Path | None], SceneSet]

# Scheme -> what opens the rest of the URI; a new format adds its line here.
OPENERS: dict[str, Opener] = {
    "synthetic": open_synthetic,
    "ade20k": open_ade20k,
    "folder": open_folder,
}
FORMS = {
    "synthetic": '"synthetic:n=400,seed=0"',
    "ade20k": '"ade20k:DIR" (the full release)',
    "folder": '"folder:DIR" (with images/ and instances/)',
}


def open_scenes(uri: str, index_dir: str | Path | None = None) -> SceneSet:
    """Open a scene set.

    >>> scenes = open_scenes("synthetic:n=2,seed=0")
    >>> scene = scenes[0]
    >>> scene.image.shape, int(scene.instances.max())
    ((112, 144, 3), 6)

    Parameters
    ----------
    uri : str
        ``"synthetic:n=400,seed=0"`` (options: `bindkit.scenes.synthetic.OPTIONS`), ``"ade20k:DIR"`` or
        ``"folder:DIR"``; of the latter two, options follow the directory, such as ``"folder:DIR,void=255"``
        (`bindkit.scenes.reading_options.OPTIONS`).
    index_dir : str or Path, optional
        Where a format may keep what it read out of a large index file; nothing is kept if not given.

    Returns
    -------
    SceneSet
        Scenes are read when asked for. Its `uri` has every default spelled out and directories in full.

    Raises
    ------
    SceneSetError
        For an unknown scheme, no directory, another data set, or one without a usable scene.
    InvalidParameterError
        For an unknown or malformed option.
    """
    require_kind(uri, str, f"a scene set is named by a URI such as {FORMS['synthetic']}", SceneSetError)
    scheme, colon, rest = uri.partition(":")
    if scheme not in OPENERS or (not colon and scheme != "synthetic"):
        forms = ", ".join(FORMS[name] for name in OPENERS)
        hint = ""
        if Path(uri).expanduser().is_dir():
            hint = f'; a directory needs its format in front: "ade20k:{uri}" or "folder:{uri}"'
        raise SceneSetError(f"{uri!r} names no scene set; write {forms}{hint}")
    if not rest.strip() and scheme != "synthetic":
        raise SceneSetError(f"{uri!r} names no directory; write {FORMS[scheme]}")
    return OPENERS[scheme](rest, None if index_dir is None else Path(index_dir))
