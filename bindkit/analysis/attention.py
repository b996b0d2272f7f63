"""Does attention follow binding? The next block's attention beside a probe's logits, over pairs of patches.

The paper asks whether a layer's IsSameObject signal guides where the next layer looks. Both fall with distance and both
rise with likeness, so each correlation stands beside those of distance and of cosine similarity alone, and is given
again at equal distance, and with cosine similarity partialled out besides.

What looks into attention, or edits a model (`bindkit.analysis.interventions`), needs whole windows; what judges needs
the rows of a cache: `JudgedWindows` joins the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

from bindkit.arguments import each_of, require_kind, whole_number
from bindkit.backbones import Backbone
from bindkit.backbones.attention import attention_maps, attention_weights
from bindkit.backbones.families import family_of_type
from bindkit.cache import ActivationCache, require_cache
from bindkit.cache.store import CachedLabels, SceneChoice, labels_of
from bindkit.cache.views import HeldCache
from bindkit.errors import BackboneError, EmptySplitError, InvalidParameterError, ProbeError, ProbeMismatchError
from bindkit.probes import Probe
from bindkit.probes.batches import JUDGED_FIRST, SplitPatches, roles_for, who_takes_part
from bindkit.probes.metrics import distance_strata, mean_interval
from bindkit.probes.protocols import Protocol, protocol_of_fit
from bindkit.scenes import open_scenes
from bindkit.scenes.geometry import label_patches
from bindkit.scenes.scene import SceneSet

_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class JudgedWindows:
    """Windows of some judged scenes of a cache; rows are those of the cache's labels of these scenes, in order."""

    backbone: Backbone
    cache: ActivationCache
    split: str
    labels: CachedLabels
    pixels: UInt8[Tensor, "window height width 3"]
    instances: Int[Tensor, "window patch"]
    """0: unlabelled."""
    scene: Int[Tensor, " window"]
    row_window: Int[Tensor, " row"]
    row_patch: Int[Tensor, " row"]
    protocol: Protocol

    @classmethod
    def of(
        cls, backbone: Backbone, cache: ActivationCache, probe: Probe, n_scenes: int, scenes: SceneSet | None = None
    ) -> JudgedWindows:
        """Of the first scenes that the probe is judged on (never one that it was trained on, but for want of others).

        Raises BackboneError for what is no model, ProbeMismatchError for another one than the cache's, EmptySplitError.
        """
        if not isinstance(backbone, Backbone):
            raise BackboneError(f"this looks into a model; give what bk.load_backbone gives, got {backbone!r:.80}")
        if backbone.weights_digest != cache.backbone["weights_digest"]:
            raise ProbeMismatchError(
                f"{backbone.name} has other weights ({backbone.weights_digest[:8]}) than the cache {cache.path} was "
                f"made with ({cache.backbone['weights_digest'][:8]}); give the backbone of this cache"
            )
        roles, most = roles_for(probe.fitted_on, cache), whole_number(n_scenes, "n_scenes", 1)
        for split in JUDGED_FIRST:
            chosen = labels_of(cache, roles[split])
            if chosen.n_scenes:
                break
        else:
            raise EmptySplitError(f"the cache {cache.path} has no scene with patches")
        labels = labels_of(cache, SceneChoice(split, chosen.scene_ids[:most]))
        opened = open_scenes(cache.manifest.identity.scenes_uri) if scenes is None else scenes
        place = {name: position for position, name in enumerate(opened.ids)}
        pixels, instances, scene, row_window, n_windows = [], [], [], [], 0
        for number, name in enumerate(labels.scene_ids):
            shown = opened[place[name]]
            found = label_patches(shown, backbone.geometry)
            resized = backbone.preprocessing.resize(shown.image, found.plan.resized)
            pixels += [resized[at.top : at.top + at.side, at.left : at.left + at.side] for at in found.plan.windows]
            instances.append(found.instances.reshape(found.plan.n_windows, -1))
            scene += [number] * found.plan.n_windows
            rows = slice(*labels.scene_offsets[number : number + 2])
            row_window.append(labels.window[rows].astype(np.int64) + n_windows)
            n_windows += found.plan.n_windows
        return cls(
            backbone,
            cache,
            split,
            labels,
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.concatenate(instances)),
            torch.tensor(scene),
            torch.from_numpy(np.concatenate(row_window)),
            torch.from_numpy(labels.patch.astype(np.int64)),
            protocol_of_fit(probe.fitted_on),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def parts(self) -> Iterator[Int[Tensor, " window"]]:
        """Numbers of the windows that go through the model together."""
        return iter(torch.arange(len(self)).split(_WINDOWS_AT_ONCE))

    def passed(
        self,
        layers: Sequence[int],
        layer: int | None = None,
        change: Callable[[Tensor, Tensor], Tensor | None] | None = None,
    ) -> dict[int, Float[Tensor, "row d_model"]]:
        """Activations of all rows at some layers; with `change`, after a layer's patches were changed.

        `change` is given the numbers of some windows, and their patches [window, patch, d_model].
        """
        found = {k: torch.empty(len(self.row_window), self.backbone.d_model) for k in layers}
        for part in self.parts():
            rows = torch.isin(self.row_window, part).nonzero()[:, 0]
            device = self.backbone.device
            picked = (self.row_window[rows] - part[0]).to(device), self.row_patch[rows].to(device)
            editing: AbstractContextManager[None] = nullcontext()
            if change is not None and layer is not None:
                editing = self.backbone.edited(layer, partial(change, part))
            with editing:
                kept = self.backbone.activations(self.pixels[part], list(layers), picked)
            for k in layers:
                found[k][rows] = kept[k].cpu()
        return found

    def judged(self, rows: dict[int, Float[Tensor, "row d_model"]], layer: int) -> SplitPatches:
        """The patches that are judged at a layer, with these activations."""
        held = HeldCache(self.cache, self.split, self.labels, rows)
        return SplitPatches(held, self.split, layer, self.protocol, torch.device("cpu"))


MEASURES = ("weight", "logit")
"""What the next block says of a pair: its attention weight, or query times key before the softmax."""

PAIRS = ("all", "same object", "different objects")
OF = ("affinity", "cosine similarity", "nearness")
"""What attention is set beside: the probe's logit, and two that know nothing of objects."""

FIGURES = ("pearson", "spearman", "at_distance", "partial")
_FEWEST = 10
"""Pairs below which a scene says nothing."""


def attention_follows_binding(
    backbone: Backbone,
    cache: ActivationCache,
    probes: Probe | Sequence[Probe],
    measure: str = "weight",
    n_scenes: int = 40,
    scenes: SceneSet | None = None,
) -> pd.DataFrame:
    """Correlate the attention that reads a layer with a probe's logits at that layer, head by head.

    ::

        table = bk.attention_follows_binding(backbone, cache, [bk.load_probe(one) for one in found])
        bk.figures.attention_figure(table)

    Over ordered pairs of different judged patches of one window, the first of which looks at the second; scene by
    scene, then the mean over scenes with a 95 % interval.

    Parameters
    ----------
    backbone : Backbone
        Any family; its own attention weights are asked, rotations and position biases included.
    cache : ActivationCache
        That the probes were fitted on; says which scenes and patches are judged.
    probes : Probe or sequence of Probe
        One a layer; not of the last layer.
    measure : str
        ``"weight"``: after the softmax, prefix tokens left out. ``"logit"``: query times key over the root of the
        head's width; not for families that turn or bias these by position.
    n_scenes : int
        At most so many of the judged scenes.
    scenes : SceneSet, optional
        Default: opened by the cache's URI.

    Returns
    -------
    pandas.DataFrame
        One row for each layer, ``head`` ("mean", "0", "1", ...), ``pairs`` (of `PAIRS`) and ``of`` (of `OF`), with
        ``pearson``, ``spearman``, ``at_distance`` (Spearman's, ranks centred within strata of equal patch distance),
        ``partial`` (the same with cosine similarity partialled out, empty for that itself), each with ``_low`` and
        ``_high``; ``n_scenes`` and ``n_pairs``.

    Raises
    ------
    LayerError, ProbeMismatchError, ProbeError
        For a probe of the last layer, of another backbone, or a family that does not serve.
    BackboneError, ContractError, InvalidParameterError
        For what is no model, one that does not say its weights, an unknown measure or no probe.
    """
    asked = each_of(probes, Probe, "probes are what fit.probe or bk.load_probe(directory) gives, one or several")
    require_kind(backbone, Backbone, "a backbone is what bk.load_backbone(name) gives")
    require_cache(cache)
    if not asked or measure not in MEASURES:
        raise InvalidParameterError(f"give at least one probe, and a measure of {', '.join(MEASURES)}; got {measure!r}")
    if measure == "logit" and (adds := family_of_type(backbone.family).adds):
        raise ProbeError(
            f"{backbone.name} ({backbone.family}) adds {adds} to its queries and keys or their products, so that their "
            'projections alone are not what it attends by; take measure="weight"'
        )
    tables = []
    for probe in asked:
        windows = JudgedWindows.of(backbone, cache, probe, n_scenes, scenes)
        layer = probe.layer_for(cache.backbone)
        rows = [row for pairs in _by_scene(windows, probe, layer, measure) for row in _correlations(pairs)]
        described = {"backbone": backbone.name, "layer": layer, "probe": probe.fitted_on.get("probe")}
        tables += [described | {"measure": measure} | row for row in _over_scenes(pd.DataFrame(rows))]
    return pd.DataFrame(tables)


@dataclass(frozen=True)
class _ScenePairs:
    """Ordered pairs of patches of one scene, each of one window."""

    scene: int
    attention: Float[np.ndarray, "head pair"]
    beside: dict[str, np.ndarray]
    same: Bool[np.ndarray, " pair"]
    stratum: Int[np.ndarray, " pair"]


def _by_scene(windows: JudgedWindows, probe: Probe, layer: int, measure: str) -> Iterator[_ScenePairs]:
    backbone, rules, labels = windows.backbone, windows.protocol, windows.labels
    counted = who_takes_part(labels, rules)
    maps = attention_maps(backbone, layer) if measure == "logit" else None
    for scene in range(labels.n_scenes):
        parts: list[_ScenePairs] = []
        for window in (windows.scene == scene).nonzero()[:, 0].tolist():
            rows = ((windows.row_window.numpy() == window) & counted).nonzero()[0]
            if len(rows) < 2:
                continue
            found, weights = attention_weights(backbone, windows.pixels[window : window + 1], layer)
            patches, whole = windows.row_patch[rows], found[0].cpu()
            x = whole[patches]
            attention = (weights[0].cpu() if maps is None else maps.products(whole))[:, patches][:, :, patches]
            # In float64, so that the two orders of a pair tie, whatever they were added up by.
            unit, corners = normalize(x.double(), dim=1), labels.corners[rows]
            with torch.inference_mode():
                said = probe(x).float().numpy()
            first, second = np.nonzero(~np.eye(len(rows), dtype=bool))
            beside = {
                "affinity": said[first, second],
                "cosine similarity": (unit @ unit.T).float().numpy()[first, second],
                "nearness": -np.linalg.norm(corners[first] - corners[second], axis=1),
            }
            same = labels.instances[rows][first] == labels.instances[rows][second]
            strata = distance_strata(corners[first], corners[second], labels.patch_size)
            parts.append(_ScenePairs(scene, attention.numpy()[:, first, second], beside, same, strata))
        if parts:
            yield _ScenePairs(
                scene,
                np.concatenate([part.attention for part in parts], axis=1),
                {name: np.concatenate([part.beside[name] for part in parts]) for name in OF},
                np.concatenate([part.same for part in parts]),
                np.concatenate([part.stratum for part in parts]),
            )


def _correlations(of_scene: _ScenePairs) -> Iterator[dict[str, Any]]:
    """For every kind of pairs, head and thing that attention is set beside."""
    same, by_head = of_scene.same, {"mean": of_scene.attention.mean(0)}
    by_head |= {str(head): values for head, values in enumerate(of_scene.attention)}
    for pairs, chosen in zip(PAIRS, (np.ones_like(same), same, ~same), strict=True):
        if chosen.sum() < _FEWEST:
            continue
        groups = np.unique(of_scene.stratum[chosen], return_inverse=True)[1]
        raw = {name: values[chosen].astype(np.float64) for name, values in of_scene.beside.items()}
        ranks = {name: rankdata(values) for name, values in raw.items()}
        level = {name: _centred(values, groups) for name, values in ranks.items()}
        like = level["cosine similarity"]
        for head, attention in by_head.items():
            own = attention[chosen].astype(np.float64)
            own_ranks = rankdata(own)
            own_level = _centred(own_ranks, groups)
            for of in OF:
                partial = _correlation(_without(own_level, like), _without(level[of], like))
                yield {
                    **{"scene": of_scene.scene, "head": head, "pairs": pairs, "of": of, "n_pairs": len(own)},
                    "pearson": _correlation(own, raw[of]),
                    "spearman": _correlation(own_ranks, ranks[of]),
                    "at_distance": _correlation(own_level, level[of]),
                    "partial": np.nan if of == "cosine similarity" else partial,
                }


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Less the mean of the group."""
    means = np.bincount(groups, weights=values) / np.bincount(groups)
    return values - means[groups]


def _without(values: np.ndarray, control: np.ndarray) -> np.ndarray:
    """What a line through the control does not explain; both are centred."""
    square = control @ control
    return values - control * (values @ control / square if square > 0 else 0.0)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; NaN where one of them does not vary."""
    x, y = first - first.mean(), second - second.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 1e-12 * len(x) else float("nan")


def _over_scenes(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Means over scenes and their intervals."""
    for (pairs, head, of), own in rows.groupby(["pairs", "head", "of"], sort=False):
        row: dict[str, Any] = {"head": head, "pairs": pairs, "of": of}
        for name in FIGURES:
            values = own[name].dropna().to_numpy()
            row[name] = float(values.mean()) if len(values) else np.nan
            row[f"{name}_low"], row[f"{name}_high"] = mean_interval(values)
        yield row | {"n_scenes": own["scene"].nunique(), "n_pairs": int(own["n_pairs"].sum())}
