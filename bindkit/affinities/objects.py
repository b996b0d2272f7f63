"""Objects of one image from its affinities, without a label: patches grouped, and held to a scene's true instances.

::

    found = bk.find_objects(bk.affinity(backbone, probe, scene))
    bk.judge_objects(found.mask(), scene)["fg_ari"]
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import kmeans2
from scipy.linalg import eigh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist, squareform
from scipy.special import logit
from torch import Tensor

from bindkit.affinities.scoring import Affinity, ImageGrid, image_activations, layer_of, pair_logits, read_probe
from bindkit.arguments import each_of, read_seed, require_kind, whole_number
from bindkit.backbones.sources import ActivationSource, require_source
from bindkit.errors import InvalidParameterError
from bindkit.files import progress
from bindkit.probes import Probe
from bindkit.probes.metrics import mean_interval
from bindkit.probes.protocols import Fit
from bindkit.scenes import Scene
from bindkit.scenes.scene import SceneSet, require_scenes

FIGURES = {"ari": False, "fg_ari": False, "mean_best_overlap": True, "n_found": False}
"""Figures of `objects_table` that have an interval, and whether it lies within 0..1: a Rand index may be below 0."""

_KEYS = ("backbone", "layer", "of", "method")
_COLUMNS = ("backbone", "layer", "scene", "of", "method", "ari", "fg_ari", "mean_best_overlap", "n_found", "n_true")

_SURE = 1e-6
"""Affinities count as this far from 0 and 1 at least, so that their logits are finite."""
_LEAST_GAIN = 1e-9
"""Sums of float64 logits that differ by less may do so by rounding alone: no move is made for it."""
_ROUNDS = 100
_EIGENVALUES, _STARTS = 16, 10
_REACH = 4.0
"""Patches over which the affinity that knows distance alone falls to 1/e."""


@dataclass(frozen=True)
class Objects:
    """Patches of one image grouped into objects.

    ``labels`` int32 [n_patches]: 1 is the largest object, 2 the next, ...; of two as large, the one whose first patch
    comes first. ``grid`` says where the patches lie, ``method`` what grouped them.
    """

    labels: np.ndarray
    grid: ImageGrid
    method: str

    @property
    def n(self) -> int:
        """How many objects."""
        return int(self.labels.max())

    def mask(self) -> np.ndarray:
        """Object of every pixel of the original image as int32 [height, width]: that of ``grid.patch_at``."""
        row_of, col_of = (
            np.arange(length) * cells // length
            for cells, length in zip((self.grid.rows, self.grid.cols), self.grid.original, strict=True)
        )
        return self.labels.reshape(self.grid.rows, self.grid.cols)[row_of[:, None], col_of]


def find_objects(
    affinity: Affinity,
    method: str = "correlation",
    n_objects: int | None = None,
    threshold: float = 0.5,
    seed: int = 0,
) -> Objects:
    """Group the patches of an image into objects by their affinities alone.

    ::

        found = bk.find_objects(bk.affinity(backbone, probe, "photo.jpg"))
        found.n, found.mask()

    - ``"correlation"``: correlation clustering. A pair weighs its affinity's logit less the threshold's, and the sum of
      weights within objects is raised: average linkage, cut where two clusters' mean weight is 0, then single patches
      move to the object, or to a new one, that raises it most, until none does (at most 100 rounds).
    - ``"spectral"``: k-means on the first eigenvectors of the normalised Laplacian (Ng, Jordan & Weiss 2001). Their
      number is `n_objects`, else where the largest gap of the first 16 eigenvalues lies, and at least 2: the first gap
      says how firmly all hangs together, not whether it is one.
    - ``"components"``: the baseline: neighbours in the grid (left, right, above, below) with an affinity above the
      threshold are of one object. Only this one knows where patches lie.

    Parameters
    ----------
    affinity : Affinity
        What `bindkit.affinity` gave; where it is not symmetric, the mean of both directions counts.
    method : str
        "correlation", "spectral" or "components".
    n_objects : int, optional
        For "spectral" alone; the others find the number themselves.
    threshold : float
        Affinity, between 0 and 1, from which on two patches are rather of one object. "spectral" has none.
    seed : int
        Of the starts of k-means; the other methods draw nothing.

    Returns
    -------
    Objects
        ``found.labels`` int32 [n_patches] from 1 on, ``found.n``, ``found.mask()`` int32 [height, width].

    Raises
    ------
    InvalidParameterError
        For another method, a threshold outside 0..1, or a number of objects that is none or that the method takes not.
    """
    require_kind(affinity, Affinity, "an affinity is what bk.affinity(backbone, probe, image) gives")
    _require_method(method)
    grid = affinity.grid
    if n_objects is not None:
        if method != "spectral":
            raise InvalidParameterError(
                f'"{method}" finds the number of objects itself; leave out n_objects={n_objects!r:.80}, or take '
                'method="spectral"'
            )
        n_objects = whole_number(n_objects, "n_objects", least=1)
        if n_objects > grid.n_patches:
            raise InvalidParameterError(
                f"n_objects is at most the number of patches, {grid.n_patches}; got {n_objects}"
            )
    if not (isinstance(threshold, float | np.floating) and 0 < threshold < 1):
        raise InvalidParameterError(f"threshold is an affinity between 0 and 1, such as 0.5; got {threshold!r:.80}")
    scores = affinity.scores.astype(np.float64)
    scores = (scores + scores.T) / 2
    np.fill_diagonal(scores, 0)
    labels = _METHODS[method](scores, grid, n_objects, float(threshold), read_seed(seed))
    _, first, number, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int32)
    rank[np.lexsort((first, -sizes))] = np.arange(1, len(sizes) + 1)
    return Objects(rank[number], grid, method)


def judge_objects(labels_mask: np.ndarray, scene: Scene) -> dict[str, float]:
    """Hold a grouping of pixels (``found.mask()``, int [height, width]) to the true instances of a scene.

    ::

        bk.judge_objects(bk.find_objects(bk.affinity(backbone, probe, scene)).mask(), scene)

    Pixels of equal number, 0 too, are one segment; in ``scene.instances`` 0 is unlabelled ground.

    Returns
    -------
    dict
        - ``ari``: adjusted Rand index over all pixels, the ground as one more object; 1 is the truth, 0 what chance
          gives, less is worse than chance.
        - ``fg_ari``: the same over labelled pixels alone; NaN without one. Where a single object is labelled it is 1 if
          one segment holds it all and else 0, as scikit-learn has it.
        - ``mean_best_overlap``: mean over true instances of the greatest intersection over union with any segment, over
          the whole image; 0..1, NaN without an instance.
        - ``n_found``, ``n_true``: segments and true instances.

    Raises
    ------
    InvalidParameterError
        For something that is no scene, or no mask of whole numbers of its size.
    """
    ids, shared = contingency(labels_mask, scene)
    labelled = shared[ids > 0]
    overlap = labelled / (labelled.sum(axis=1, keepdims=True) + shared.sum(axis=0) - labelled)
    return {
        "ari": _adjusted_rand(shared),
        "fg_ari": _adjusted_rand(labelled),
        "mean_best_overlap": float(overlap.max(axis=1).mean()) if len(labelled) else float("nan"),
        "n_found": shared.shape[1],
        "n_true": len(labelled),
    }


def segment_scenes(
    backbone: ActivationSource,
    probe: Probe | Fit | str | Path,
    scenes: SceneSet,
    methods: str | Sequence[str] = ("correlation", "spectral", "components"),
    layer: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Find the objects of every scene and judge them, beside two controls that no probe was fitted for.

    ::

        rows = bk.segment_scenes(backbone, fit, bk.open_scenes("synthetic:n=24,seed=3"))
        rows.groupby(["of", "method"])["fg_ari"].mean()

    Column ``of`` says what was grouped: the probe's "affinity"; the "raw features", ``(1 + cosine) / 2`` of the
    activations that the probe reads; and "position", ``exp(-distance / 4)`` in patches, which knows nothing of the
    picture. Both controls take as threshold the mean over that image's pairs, so that no label is used; the probe's
    affinity takes 0.5. Scenes that cannot be read are left out with a warning.

    Parameters
    ----------
    backbone, probe, layer
        As `bindkit.affinity` takes them.
    scenes : SceneSet
        With instances.
    methods, seed
        As `find_objects` takes them; one method or several.

    Returns
    -------
    pandas.DataFrame
        One row a scene, ``of`` and method: ``backbone``, ``layer``, ``scene``, ``of``, ``method`` and the figures of
        `judge_objects`.

    Raises
    ------
    InvalidParameterError, SceneSetError
        For another method or none; something that is no scene set.
    ProbeError, ProbeMismatchError, BackboneError, LayerError, NonFiniteActivationsError, GeometryError
        As `bindkit.affinity`.
    """
    probe, backbone, seed = read_probe(probe), require_source(backbone), read_seed(seed)
    require_scenes(scenes)
    wanted = each_of(methods, str, f"methods are among {', '.join(_METHODS)}")
    for method in wanted:
        _require_method(method)
    if not wanted:
        raise InvalidParameterError(f"name at least one method, of {', '.join(_METHODS)}")
    layer = layer_of(probe, backbone, layer)
    rows: list[dict[str, Any]] = []
    with progress(len(scenes), "segmenting", "scenes") as bar:
        for scene in scenes:
            grid, activations = image_activations(backbone, scene.image, [layer])
            scores = pair_logits(probe, activations[layer]).sigmoid().numpy()
            compared = {"affinity": (scores, 0.5), **_controls(grid, activations[layer])}
            for of, (scores, threshold) in compared.items():
                said = {"backbone": backbone.name, "layer": layer, "scene": scene.id, "of": of}
                for method in wanted:
                    found = find_objects(Affinity(scores, grid, layer), method, threshold=threshold, seed=seed)
                    rows.append({**said, "method": method, **judge_objects(found.mask(), scene)})
            bar.update(1)
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def objects_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over scenes of what `segment_scenes` gave, one row a backbone, layer, ``of`` and method.

    ``ari``, ``fg_ari``, ``mean_best_overlap`` and ``n_found`` each with the bounds ``_low`` and ``_high`` of a 95 %
    interval over scenes (NaN below 8 scenes); ``n_true`` and ``n_scenes``. A figure that a scene does not have (no
    labelled pixel) is left out of its mean. Raises InvalidParameterError for another table.
    """
    require_kind(rows, pd.DataFrame, "rows are the table that bk.segment_scenes gives")
    if missing := [name for name in _COLUMNS if name not in rows]:
        raise InvalidParameterError(f"the table lacks the columns {', '.join(missing)}; give one of bk.segment_scenes")
    table = []
    for keys, group in rows.groupby(list(_KEYS), sort=False):
        row = dict(zip(_KEYS, keys, strict=True))
        for name, within_unit in FIGURES.items():
            values = group[name].dropna().to_numpy(dtype=np.float64)
            row[name] = values.mean() if len(values) else np.nan
            row[f"{name}_low"], row[f"{name}_high"] = mean_interval(values, within_unit)
        table.append({**row, "n_true": group["n_true"].mean(), "n_scenes": group["scene"].nunique()})
    bounded = [column for name in FIGURES for column in (name, f"{name}_low", f"{name}_high")]
    return pd.DataFrame(table, columns=[*_KEYS, *bounded, "n_true", "n_scenes"])


def contingency(labels_mask: Any, scene: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a scene's instances, 0 where it shows, and the pixels ``[instance, segment]`` that they share."""
    require_kind(scene, Scene, "a scene is what bk.open_scenes(uri)[0] gives")
    require_kind(labels_mask, np.ndarray, "labels_mask is an array such as found.mask()")
    if labels_mask.shape != scene.size or labels_mask.dtype.kind not in "iu":
        raise InvalidParameterError(
            f"labels_mask holds whole numbers of shape {list(scene.size)}, the scene's size in pixels; got "
            f"{labels_mask.dtype} {list(labels_mask.shape)}"
        )
    ids, instance = np.unique(scene.instances, return_inverse=True)
    segments, segment = np.unique(labels_mask, return_inverse=True)
    size = len(ids), len(segments)
    pairs = instance.ravel() * size[1] + segment.ravel()
    return ids, np.bincount(pairs, minlength=size[0] * size[1]).reshape(size)


def _adjusted_rand(shared: Int[np.ndarray, "instance segment"]) -> float:
    """Hubert & Arabie (1985) from the counts of pairs, as scikit-learn computes it; NaN where nothing is counted."""
    if not shared.sum():
        return float("nan")
    both, true, found, every = (
        int((n * (n - 1) // 2).sum()) for n in (shared, shared.sum(axis=1), shared.sum(axis=0), shared.sum())
    )
    only_true, only_found, neither = true - both, found - both, every - true - found + both
    if only_true == only_found == 0:
        return 1.0  # also where both say "one object"
    agreed = 2 * (both * neither - only_true * only_found)  # Python's numbers: of a photograph they exceed 64 bits
    return agreed / (true * (only_true + neither) + found * (only_found + neither))


def _require_method(given: Any) -> None:
    if not isinstance(given, str) or given not in _METHODS:
        raise InvalidParameterError(f"unknown method {given!r:.80}; choose one of {', '.join(_METHODS)}")


def _correlated(
    scores: Float[np.ndarray, "n n"], grid: ImageGrid, n_objects: int | None, threshold: float, seed: int
) -> Int[np.ndarray, " n"]:
    if grid.n_patches == 1:
        return np.zeros(1, dtype=np.int64)  # there is no pair to link
    weights = logit(scores.clip(_SURE, 1 - _SURE)) - logit(threshold)
    np.fill_diagonal(weights, 0)
    pairs = squareform(weights, checks=False)
    tree = linkage(pairs.max() - pairs, method="average")
    return moved(weights, fcluster(tree, pairs.max(), criterion="distance") - 1)


def moved(weights: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Move single patches while that raises the sum of weights (symmetric, diagonal 0) within clusters, from 0 on."""
    for _ in range(_ROUNDS):
        labels = np.unique(labels, return_inverse=True)[1]
        # What each patch has with each cluster; the last is empty, for a patch that is better off alone.
        sums = np.stack([weights[labels == k].sum(axis=0) for k in range(labels.max() + 1)] + [np.zeros(len(labels))])
        gains = sums.max(axis=0) - sums[labels, np.arange(len(labels))]
        if not (gains > _LEAST_GAIN).any():
            break
        for patch in np.flatnonzero(gains > _LEAST_GAIN):
            best, own = int(sums[:, patch].argmax()), labels[patch]
            if sums[best, patch] - sums[own, patch] <= _LEAST_GAIN:
                continue  # another's move has changed what it would gain
            sums[own] -= weights[patch]
            sums[best] += weights[patch]
            labels[patch] = best
            if best == len(sums) - 1:
                sums = np.append(sums, np.zeros((1, len(labels))), axis=0)
    return labels


def _spectral(
    scores: Float[np.ndarray, "n n"], grid: ImageGrid, n_objects: int | None, threshold: float, seed: int
) -> Int[np.ndarray, " n"]:
    degrees = scores.sum(axis=0).clip(min=_SURE) ** -0.5
    laplacian = np.eye(len(scores)) - degrees[:, None] * scores * degrees
    last = min(len(scores), max(_EIGENVALUES, n_objects or 0)) - 1
    values, vectors = eigh(laplacian, subset_by_index=[0, last])
    if n_objects is None:
        n_objects = int(np.diff(values)[1:].argmax()) + 2 if len(values) > 2 else len(values)
    rows = vectors[:, :n_objects]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=_SURE)
    best, least = np.zeros(len(rows), dtype=np.int64), np.inf
    generator = np.random.default_rng(seed)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # of a start with an empty cluster; another start is better
        for _ in range(_STARTS):
            centres, labels = kmeans2(rows, n_objects, iter=50, minit="++", seed=generator)
            if (spread := ((rows - centres[labels]) ** 2).sum()) < least:
                best, least = labels, spread
    return best


def _components(
    scores: Float[np.ndarray, "n n"], grid: ImageGrid, n_objects: int | None, threshold: float, seed: int
) -> Int[np.ndarray, " n"]:
    patches = np.arange(grid.n_patches).reshape(grid.rows, grid.cols)
    one = np.concatenate([patches[:, :-1].ravel(), patches[:-1].ravel()])  # each with its right, then its lower one
    other = np.concatenate([patches[:, 1:].ravel(), patches[1:].ravel()])
    linked = scores[one, other] > threshold
    links = coo_matrix((linked[linked], (one[linked], other[linked])), shape=scores.shape)
    return connected_components(links, directed=False)[1]


_METHODS = {"correlation": _correlated, "spectral": _spectral, "components": _components}
"""What groups symmetric scores with a zero diagonal: name -> function."""


def _controls(
    grid: ImageGrid, activations: Float[Tensor, "n d_model"]
) -> dict[str, tuple[Float[np.ndarray, "n n"], float]]:
    """Scores that no probe was fitted for, and as threshold their mean over pairs, held off 0 and 1."""
    rows = activations.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=_SURE)
    places = np.stack(np.divmod(np.arange(grid.n_patches), grid.cols), axis=1)
    scores = {"raw features": (1 + rows @ rows.T) / 2, "position": np.exp(-cdist(places, places) / _REACH)}
    n_pairs = max(len(rows) * (len(rows) - 1), 1)
    means = {of: (found.sum() - np.trace(found)) / n_pairs for of, found in scores.items()}
    return {of: (found, float(np.clip(means[of], _SURE, 1 - _SURE))) for of, found in scores.items()}
