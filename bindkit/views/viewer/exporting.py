"""`export_viewer`: from backbones, probes and images to one page of template, style, script and data.

Of an image a page holds, besides affinities, a small picture, and its objects where masks exist: a `Subject`.

The page asks nothing of a network: a content security policy forbids it, and also forbids every script but the one that
is named by its digest, so that no text of a user can ever run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bindkit import __version__
from bindkit.affinities.scoring import ImageGrid, Picture, image_activations, image_pixels, layer_of, pair_logits
from bindkit.arguments import control_title, read_path, require_kind
from bindkit.backbones.sources import ActivationSource
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.files import progress, write_bytes
from bindkit.probes import Probe, load_probe
from bindkit.scenes import Scene
from bindkit.scenes.geometry import object_classes, resize_mask
from bindkit.scenes.scene import SceneSet
from bindkit.views.viewer.packing import ALPHABET, STEP, pack, to_text
from bindkit.views.viewer.probe_choice import Probes, best_shown, find_probes, is_synthetic

logger = logging.getLogger(__name__)

MOST_PATCHES = 6_000
"""Patches of the largest image on a page: 18 million pairs a layer."""

LARGE_MEGABYTES = 60
"""Pages beyond this are written all the same, with a warning."""

_START = ("image", "backbone", "layer", "patch", "threshold", "opacity", "colours")
_SHOWN_METRICS = ("auroc", "twins_auroc", "accuracy", "n_scenes")
_SCRIPTS = ("unpacking.js", "colours.js", "loops.js", "drawing.js", "beside.js", "saving.js", "page.js")

_LONGEST_PICTURE, _LONGEST_MASK = 800, 480
"""Pixels that the longer side of a picture, and of the mask whose outlines are drawn, has at most."""
_SMALL = 320
"""Pictures up to so many pixels are stored without loss."""


def export_viewer(
    path: str | Path,
    backbone: ActivationSource | str | Mapping[Any, Probes],
    probes: Probes | None = None,
    images: SceneSet | Iterable[Picture] = (),
    *,
    class_names: Mapping[int, str] | None = None,
    title: str = "Which patches belong together?",
    start: Mapping[str, str | float] | None = None,
) -> Path:
    """Write one self-contained page: a click at a patch shows its affinity to every other patch.

    The page opens from disk in any current browser, needs no server and asks nothing of a network. Affinities on it are
    within 0.01 of `bindkit.affinity`.

    Parameters
    ----------
    path : str or Path
        Of the page; an existing one is replaced.
    backbone : Backbone, name, or mapping
        The model that the probes were fitted on; or several models, each with its probes. Named models are loaded one
        after the other.
    probes : Probe, path, or sequence of these
        One a layer. A directory with several (a workspace's ``probes``) gives those of the backbone, see
        `bindkit.views.viewer.find_probes`. Left out if `backbone` is a mapping.
    images : scene set, or iterable of scenes, paths, PIL images and arrays
        With scenes the page also shows their objects.
    class_names : mapping, optional
        Class id -> name, for scenes; a scene set brings its own.
    title : str
        Of the page.
    start : mapping, optional
        What it opens with where its address does not say: any of ``image`` (from 1), ``backbone`` (name), ``layer``,
        ``patch`` (``"row,column"``), ``threshold``, ``opacity``, ``colours``. By default the first backbone's best
        layer and a telling patch of the first image.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    InvalidParameterError
        No image, no backbone, two probes of one layer, or an unknown key of `start`.
    ProbeError, ProbeMismatchError, LayerError
        Probes that cannot be read, or are of another backbone.
    BrokenSceneError, GeometryError
        An image that cannot be read or is too long.

    Examples
    --------
    ::

        bk.export_viewer("viewer.html", backbone, "workspace/probes", scenes_or_photos)
        bk.export_viewer("viewer.html", {"facebook/dinov2-small": "probes", "random-init:vit": "probes"}, images=photos)
    """
    place = read_path(path, "the page")
    if place.is_dir():
        raise InvalidParameterError(f"{place} is a directory; give the page's file name, such as {place}/viewer.html")
    require_kind(backbone, str | ActivationSource | Mapping, "a backbone is what bk.load_backbone gives, or a name")
    shown = backbone if isinstance(backbone, Mapping) else {backbone: probes}
    if isinstance(backbone, Mapping) and probes is not None:
        raise InvalidParameterError("several backbones bring their probes with them: leave out probes=")
    if not shown or any(fitted is None for fitted in shown.values()):
        raise InvalidParameterError("say which backbone to show, and its probes")
    start = dict(start or {})
    if unknown := start.keys() - set(_START):
        raise InvalidParameterError(f"start says {', '.join(sorted(unknown))}; a page opens with {', '.join(_START)}")
    check_list(images)
    class_names = getattr(images, "class_names", {}) if class_names is None else class_names
    subjects = [subject_of(image, number, class_names) for number, image in enumerate(images, start=1)]
    if not subjects:
        raise InvalidParameterError("a page needs at least one image")
    payloads: dict[str, str] = {}
    backbones = [_shown(n, source, fitted, subjects, payloads) for n, (source, fitted) in enumerate(shown.items())]
    described = [subject.describe() for subject in subjects]
    data = {"version": __version__, "images": described, "backbones": backbones, "start": start}
    content = page_of(title, data, payloads).encode()
    place.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(place, content)
    size, n_maps = len(content) / 1e6, len(payloads)
    logger.info("%s: %.1f MB for %d maps (image x backbone x layer)", place, size, n_maps)
    if size > LARGE_MEGABYTES:
        logger.warning("%s is large (%.0f MB) and slow to open; show fewer images or layers", place, size)
    return place


def _shown(
    number: int, given: ActivationSource | str, probes: Probes, subjects: Sequence[Subject], payloads: dict[str, str]
) -> dict[str, Any]:
    """What the page says of one backbone; its packed maps are added to the payloads, by element id."""
    if isinstance(given, str):
        from bindkit.backbones import load_backbone

        given = load_backbone(given)
    source: ActivationSource = given
    about = source.describe()
    by_layer, best, chosen_on = _by_layer(source, probes)
    layers, grids, packs = [], [], []
    for layer, probe in by_layer.items():
        fitted = probe.fitted_on
        metrics = fitted.get("metrics") or {}
        known = {name: metrics[name] for name in _SHOWN_METRICS if metrics.get(name) is not None}
        origin = {"protocol": fitted.get("protocol"), "split": fitted.get("split"), "synthetic": is_synthetic(probe)}
        layers.append({"layer": layer, "probe": probe.kind, **origin, "metrics": known})
    with progress(len(subjects) * len(by_layer), f"viewer: {source.name}", "map") as bar:
        for image, subject in enumerate(subjects):
            grid, activations = image_activations(source, subject.pixels, list(by_layer), MOST_PATCHES)
            grids.append({"rows": grid.rows, "cols": grid.cols, "labels": subject.labels(grid)})
            row = []
            for position, (layer, probe) in enumerate(by_layer.items()):
                packed = pack(pair_logits(probe, activations.pop(layer)))
                payloads[f"pack-{number}-{image}-{position}"] = f"{to_text(packed.factors)} {to_text(packed.residuals)}"
                sizes = [len(packed.factors), len(packed.residuals)]
                row.append({"rank": packed.rank, "symmetric": packed.symmetric, "bytes": sizes})
                bar.update(1)
            packs.append(row)
    return {
        "name": control_title(source.name),
        "objective": about.get("objective") or "unknown",
        "depth": source.n_layers,
        "best": best,
        "chosen_on": chosen_on,
        "layers": layers,
        "grids": grids,
        "packs": packs,
    }


def _by_layer(backbone: ActivationSource, probes: Probes) -> tuple[dict[int, Probe], int, str | None]:
    """Layer -> its probe, layers ascending; which of them is the best, by which scenes (None: none are known).

    Raises InvalidParameterError for two probes of one layer.
    """
    found: list[Probe | Path] = []
    for entry in [probes] if isinstance(probes, Probe | str | Path) else list(probes or ()):
        if isinstance(entry, Probe):
            found.append(entry)
        elif (Path(entry) / "probe.json").exists():
            found.append(Path(entry))
        else:
            found += find_probes(entry, backbone.name, weights_digest=backbone.describe().get("weights_digest"))
    if not found:
        raise ProbeError(f"no probe is given for {backbone.name}")
    by_layer: dict[int, tuple[Probe, Probe | Path]] = {}
    for place in found:
        probe = place if isinstance(place, Probe) else load_probe(place)
        layer = layer_of(probe, backbone)
        if layer in by_layer:
            raise InvalidParameterError(
                f"two probes of layer {layer} of {backbone.name} are given ({by_layer[layer][0].kind} and "
                f"{probe.kind}); the page shows one a layer, so give one of them"
            )
        by_layer[layer] = probe, place
    layers = sorted(by_layer)
    best, chosen_on = best_shown([by_layer[layer][1] for layer in layers])
    return {layer: by_layer[layer][0] for layer in layers}, best, chosen_on


def page_of(title: str, data: Mapping[str, Any], payloads: Mapping[str, str]) -> str:
    """Write the page: any text as its title, data as JSON holds them, and element id -> text of packed bytes."""

    def part(name: str) -> str:
        return (files("bindkit.views.viewer") / name).read_text(encoding="utf-8")

    def digest(content: str) -> str:
        return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

    constants = f"const STEP = {STEP!r}, ALPHABET = {json.dumps(ALPHABET)};\n"
    script = '"use strict";\n(() => {\n' + constants + "\n".join(map(part, _SCRIPTS)) + "\n})();\n"
    style = part("page.css")
    # JSON that neither ends a script element nor breaks a line of one.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src '{digest(style)}'; script-src '{digest(script)}'",
        "title": html.escape(title),
        "style": style,
        "data": text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "payloads": "\n".join(
            f'<script type="text/plain" id="{name}">{packed}</script>' for name, packed in payloads.items()
        ),
        "script": script,
    }
    # In one pass, so that no text of a user is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], part("page.html"))


@dataclass(frozen=True)
class Subject:
    """One image: its name (text, whatever it holds), uint8 [height, width, 3], its masks if any, class id -> name."""

    name: str
    pixels: np.ndarray
    scene: Scene | None
    class_names: Mapping[int, str]

    def objects(self) -> list[dict[str, Any]]:
        """Labelled objects: instance id, name of the class, and which of the list are its twins."""
        if self.scene is None:
            return []
        classes = object_classes(self.scene)
        return [
            {
                "id": instance,
                "name": self.class_names.get(label, f"class {label}") if label else "unnamed object",
                "twins": [
                    k for k, other in enumerate(classes) if classes[other] == label and other != instance and label
                ],
            }
            for instance, label in classes.items()
        ]

    def positions(self, instances: np.ndarray) -> np.ndarray:
        """Position in `objects` of instance ids, -1 of 0."""
        assert self.scene is not None
        return np.searchsorted(np.union1d([0], self.scene.instances), instances) - 1

    def labels(self, grid: ImageGrid) -> list[int]:
        """Position in `objects` of the object that fills most of each patch; -1 where none does."""
        return [] if self.scene is None else self.positions(grid.majority(self.scene.instances)).tolist()

    def describe(self) -> dict[str, Any]:
        """Everything but affinities, as JSON can hold it."""
        height, width = self.pixels.shape[:2]
        mask = None
        if self.scene is not None:
            small = outlined_mask(self.scene.instances)
            # Positions + 1, so that 0 is none.
            content = zlib.compress((self.positions(small) + 1).astype("<u2").tobytes(), 9)
            mask = {"rows": small.shape[0], "cols": small.shape[1], "bytes": len(content), "text": to_text(content)}
        return {
            "name": self.name,
            "height": height,
            "width": width,
            "picture": picture(self.pixels),
            "objects": self.objects(),
            "mask": mask,
        }


def outlined_mask(mask: np.ndarray) -> np.ndarray:
    """A mask with as many pixels as its outlines are drawn from."""
    shrink = max(1.0, max(mask.shape) / _LONGEST_MASK)
    return resize_mask(mask, (max(1, round(mask.shape[0] / shrink)), max(1, round(mask.shape[1] / shrink))))


def check_list(images: Any) -> None:
    """Refuse one image where a list of them belongs. Raises InvalidParameterError."""
    if isinstance(images, str | Path | Scene) or hasattr(images, "shape") or hasattr(images, "getexif"):
        raise InvalidParameterError("images is a list, also where it is one image: images=[...]")


def subject_name(image: Picture, number: int) -> str:
    """A scene's id, a file's name, or the image's number in the list."""
    if isinstance(image, Scene):
        return image.id
    return Path(image).name if isinstance(image, str | Path) else f"image {number}"


def subject_of(image: Picture, number: int, class_names: Mapping[int, str]) -> Subject:
    """Read whatever counts as an image; `number` names it if nothing else does. Raises as `bindkit.affinity`."""
    # A scene without any label is just an image.
    labelled = image if isinstance(image, Scene) and image.instances.any() else None
    return Subject(subject_name(image, number), image_pixels(image), labelled, class_names)


def picture(pixels: np.ndarray) -> str:
    """A picture as a data URL: WebP, small ones without loss."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_PICTURE, _LONGEST_PICTURE), Image.Resampling.LANCZOS)
    lossless = max(image.size) <= _SMALL
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=lossless, quality=90 if lossless else 82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
