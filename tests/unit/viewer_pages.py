"""Small pages for the viewer's tests, and what is in them read without a browser."""

import json
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

import bindkit as bk
from bindkit.affinities import image_activations
from bindkit.probes import make_probe
from bindkit.views.viewer.packing import Packed
from bindkit.views.viewer.text_bytes import to_bytes

HOSTILE = "</script><b id=stolen>{{script}}<!--"


@dataclass(frozen=True)
class Page:
    """A page with what it was made from."""

    path: object
    backbones: list
    probes: dict
    images: list

    def affinity(self, backbone, image, layer):
        """What Python says, by the page's own numbering."""
        chosen = self.backbones[backbone]
        return bk.affinity(chosen, self.probes[chosen][layer], self.images[image])


def probes_of(backbone, layers, seed=0):
    """Probes whose affinities spread over the whole range."""
    _, activations = image_activations(backbone, photo(48, 64), list(layers))
    probes = []
    for layer in layers:
        probe = make_probe("quadratic", backbone.d_model, seed + layer).requires_grad_(False)
        logits = probe(activations[layer]) - probe.bias
        probe.weight *= 2.5 / logits.std()
        probe.bias.fill_(-2.5 * logits.mean() / logits.std())
        figures = {"auroc": 0.6 + layer / 20, "twins_auroc": 0.5 + layer / 50}
        probe.fitted_on = {"layer": layer, "protocol": "strict", "split": "test", "metrics": figures}
        probes.append(probe.eval())
    return probes


def read_page(path):
    """Description and packed affinities {(backbone, image, layer): Packed} of a page."""
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    packs = {}
    for names, content in re.findall(r'<script type="text/plain" id="pack-([\d-]+)">(.*?)</script>', text):
        backbone, image, layer = map(int, names.split("-"))
        about, grid = data["backbones"][backbone]["packs"][image][layer], data["backbones"][backbone]["grids"][image]
        parts = [to_bytes(part, size) for part, size in zip(content.split(" "), about["bytes"], strict=True)]
        n = grid["rows"] * grid["cols"]
        packs[backbone, image, layer] = Packed(n, about["rank"], about["symmetric"], *parts)
    return data, packs


def photo(height, width, seed=0):
    """A picture of smooth blobs."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
