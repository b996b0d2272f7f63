"""Small pages for the viewer's tests, and what is in them read without a browser."""

import json
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

import bindkit as bk
from bindkit.affinities.scoring import image_activations
from bindkit.probes import make_probe
from bindkit.views.viewer.packing import ALPHABET, STEP, Packed

BIG = 1369
"""Patches of an image of 518 x 518 pixels at 14 a patch."""

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


def to_bytes(text, length):
    """Read back `length` bytes of what `to_text` wrote."""
    table = np.zeros(128, np.int64)
    table[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(85)
    digits = table[np.frombuffer(text.encode(), np.uint8)].reshape(-1, 5)
    return (digits * 85 ** np.arange(4, -1, -1)).sum(axis=1).astype(">u4").tobytes()[:length]


def scores_of(packed):
    """Affinities of all pairs as float64 [n, n], by the arithmetic of the page."""
    n, rank = packed.n, packed.rank
    body = np.frombuffer(zlib.decompress(packed.factors), np.uint8)
    weights = body[: 4 * rank].view("<f4").astype(np.float64)
    low, high = body[4 * rank :].reshape(2, rank, n)
    factors = (low.astype(np.int16) | (high.astype(np.int16) << 8)).astype(np.float64)
    pairs = np.tril_indices(n) if packed.symmetric else tuple(np.indices((n, n)).reshape(2, -1))
    n_pairs = len(pairs[0])
    body = np.frombuffer(zlib.decompress(packed.residuals), np.uint8)
    held = body[: (n_pairs + 1) // 2]
    halves = np.stack([held & 15, held >> 4], axis=1).ravel()[:n_pairs].astype(np.int16)
    values = np.where(halves >= 8, halves - 16, halves)
    values[halves == 8] = body[len(held) :].view(np.int8)
    residuals = np.zeros((n, n))
    residuals[pairs] = values
    if packed.symmetric:
        residuals[pairs[::-1]] = values
    return np.clip(1 / (1 + np.exp(-(factors.T * weights) @ factors)) + STEP * residuals, 0, 1)


def photo(height, width, seed=0):
    """A picture of smooth blobs."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def like_a_fitted_probe(n=BIG, seed=0):
    """Logits of a quadratic probe on activations of width 1,024 whose variances fall as 1 / k.

    The probe tells eight objects by 60 directions and still carries the random form that it started from, as fitted
    ones do: a probe fitted for 150 steps on such activations has the same spectrum (leading eigenvalues near 1,800,
    36 at the 50th, 8 at the 100th, 4.5 at the 200th, 1.9 at the 400th).
    """
    d = 1024
    spread = torch.arange(1, d + 1) ** -0.5
    labels = torch.randint(0, 8, (n,), generator=seeded(seed))
    codes = torch.randn(8, d, generator=seeded(seed + 1)) * spread * (torch.arange(d) < 60)
    parts = 1.2 * codes[labels] + 0.8 * spread * torch.randn(n, d, generator=seeded(seed + 2))
    turned = parts @ torch.linalg.qr(torch.randn(d, d, generator=seeded(seed + 3))).Q.T
    x = turned / turned.square().mean(0).sqrt()
    scale = float((x.square().sum() / parts.square().sum()).sqrt())
    read = scale * parts[:, :60] * (torch.arange(1, 61) ** 0.4)
    with torch.inference_mode():
        return read @ read.T * 0.0013 + make_probe("quadratic", d, seed)(x) - 1.5


def full_rank(n=BIG, scale=1.0):
    with torch.inference_mode():
        return scale * make_probe("quadratic", 1024, 1)(torch.randn(n, 1024, generator=seeded(3)))
