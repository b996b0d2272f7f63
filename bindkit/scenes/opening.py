"""`open_scenes`: from a URI to a scene set; and synthetic sets varied one option at a time, all else as in a base set.

>>> sets = scene_variations("synthetic:n=60,seed=0,objects=4", {"twins": [0, 0.5], "surface": ["flat"]})
>>> [(entry.option, entry.value, entry.is_base) for entry in sets]
[('twins', '0', False), ('twins', '0.5', True), ('surface', 'flat', False)]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindkit.arguments import require_kind
from bindkit.errors import InvalidParameterError, SceneSetError
from bindkit.scenes.formats.ade20k import open_ade20k
from bindkit.scenes.formats.coco import CocoScenes
from bindkit.scenes.formats.own import open_folder, open_huggingface
from bindkit.scenes.formats.published import Ade20kInstanceScenes, CityscapesScenes, DavisScenes, VocScenes
from bindkit.scenes.scene import SceneSet
from bindkit.scenes.synthetic import SyntheticOptions, SyntheticScenes, open_synthetic


@dataclass(frozen=True)
class Format:
    """How scenes of a scheme are opened, from the rest of the URI and `index_dir`; what to write, and what is read."""

    open: Callable[[str, Path | None], SceneSet]
    form: str
    help: str = ""
    needs_directory: bool = True

    def __str__(self) -> str:
        return f"{self.form} ({self.help})" if self.help else self.form


FORMATS = {
    "synthetic": Format(
        open_synthetic, '"synthetic:n=400,seed=0"', "the same scenes on every machine", needs_directory=False
    ),
    "ade20k": Format(open_ade20k, '"ade20k:DIR"', "the full release"),
    "ade20k-instances": Format(
        Ade20kInstanceScenes.open, '"ade20k-instances:DIR"', "images/ and annotations_instance/ of the benchmark"
    ),
    "coco": Format(CocoScenes.open, '"coco:DIR"', "annotations/instances_*2017.json and pictures; needs bindkit[coco]"),
    "voc": Format(VocScenes.open, '"voc:DIR"', "VOCdevkit with its object and class masks"),
    "cityscapes": Format(CityscapesScenes.open, '"cityscapes:DIR"', "leftImg8bit/ and gtFine/"),
    "davis": Format(DavisScenes.open, '"davis:DIR"', "DAVIS 2017; frames of a video stay together"),
    "hf": Format(open_huggingface, '"hf:NAME_OR_DIR"', "columns image and mask of a dataset; needs bindkit[hf]"),
    "folder": Format(open_folder, '"folder:DIR"', "images/ and instances/ of your own"),
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
        A format and what it opens:

        FORMATS

        Options of synthetic scenes are in `bindkit.scenes.synthetic.OPTIONS`; of all others they follow the directory,
        as in ``"folder:DIR,void=255"`` (`bindkit.scenes.reading.OPTIONS`, and those of a format where it is defined).
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
            hint = f'; a directory needs its format in front, as in "ade20k:{uri}" or "folder:{uri}"'
        forms = "".join(f"\n  {known}" for known in FORMATS.values())
        raise SceneSetError(f"{uri!r} names no scene set{hint}; write one of{forms}")
    if found.needs_directory and not rest.strip():
        raise SceneSetError(f"{uri!r} names no directory; write {found}")
    return found.open(rest, None if index_dir is None else Path(index_dir))


# None under `python -OO`.
open_scenes.__doc__ = (open_scenes.__doc__ or "").replace(
    "FORMATS", "\n        ".join(f"- ``{known.form}``: {known.help}" for known in FORMATS.values())
)


@dataclass(frozen=True)
class Variation:
    """A scene set that differs from the base in one option; its `uri` spells every option out."""

    option: str
    value: str
    uri: str
    is_base: bool
    """Whether the value is the base's own."""


def read_variations(text: str) -> dict[str, list[str]]:
    """Options and their values from one line: ``"twins=0 0.5 0.9; surface=flat camouflage"``."""
    options: dict[str, list[str]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        option, equals, values = (piece.strip() for piece in part.partition("="))
        if not option or not equals or not values or option in options:
            fault = "is given twice" if option in options else "is not understood"
            raise InvalidParameterError(
                f"{part!r} {fault}; write OPTION=VALUE VALUE ... with semicolons between options, for example "
                '"twins=0 0.5 0.9; surface=flat camouflage"'
            )
        options[option] = values.split()
    return options


def scene_variations(base: str, options: Mapping[str, Sequence[Any]] | str) -> list[Variation]:
    """Every option of a ``synthetic:`` set varied by itself, all else as in the base.

    `options` gives each its values, from easy to hard; or is one line as `read_variations` takes it. A value that is
    given twice counts once. Raises InvalidParameterError, also for scenes that are not synthetic.
    """
    scenes = open_scenes(base)
    if not isinstance(scenes, SyntheticScenes):
        raise InvalidParameterError(f'only synthetic scenes are varied, got {base!r}; write "synthetic:n=...,seed=..."')
    require_kind(options, (str, Mapping), "options are a mapping such as {'twins': [0, 0.5]}")
    values_of = read_variations(options) if isinstance(options, str) else options
    empty = [option for option, values in values_of.items() if isinstance(values, str) or not len(values)]
    if empty or not values_of:
        raise InvalidParameterError(
            f"give every option a list of values, for example {{'twins': [0, 0.5, 0.9]}}, got {dict(values_of)!r}"
        )
    told = dict(part.split("=", 1) for part in scenes.uri.removeprefix("synthetic:").split(","))
    found: list[Variation] = []
    for option, values in values_of.items():
        for value in dict.fromkeys(str(value).strip() for value in values):
            text = ",".join(f"{name}={given}" for name, given in {**told, option: value}.items())
            uri = SyntheticOptions.parse(text).uri
            found.append(Variation(option, value, uri, uri == scenes.uri))
    return found
