"""`open_scenes`: from a URI to a scene set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bindkit.arguments import require_kind
from bindkit.errors import SceneSetError
from bindkit.scenes.formats.ade20k import open_ade20k
from bindkit.scenes.formats.folder import open_folder
from bindkit.scenes.scene import SceneSet
from bindkit.scenes.synthetic import open_synthetic


@dataclass(frozen=True)
class Format:
    """How scenes of a scheme are opened, from the rest of the URI and `index_dir`; and what to write."""

    open: Callable[[str, Path | None], SceneSet]
    form: str
    needs_directory: bool = True


FORMATS = {
    "synthetic": Format(open_synthetic, '"synthetic:n=400,seed=0"', needs_directory=False),
    "ade20k": Format(open_ade20k, '"ade20k:DIR" (the full release)'),
    "folder": Format(open_folder, '"folder:DIR" (with images/ and instances/)'),
}
"""Scheme -> format; a new one adds its row here."""


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
        (`bindkit.scenes.reading.OPTIONS`).
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
    require_kind(uri, str, f"a scene set is named by a URI such as {FORMATS['synthetic'].form}", SceneSetError)
    scheme, colon, rest = uri.partition(":")
    found = FORMATS.get(scheme)
    if found is None or (found.needs_directory and not colon):
        hint = ""
        if Path(uri).expanduser().is_dir():
            hint = f'; a directory needs its format in front: "ade20k:{uri}" or "folder:{uri}"'
        forms = ", ".join(known.form for known in FORMATS.values())
        raise SceneSetError(f"{uri!r} names no scene set; write {forms}{hint}")
    if found.needs_directory and not rest.strip():
        raise SceneSetError(f"{uri!r} names no directory; write {found.form}")
    return found.open(rest, None if index_dir is None else Path(index_dir))
