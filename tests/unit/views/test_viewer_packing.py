"""Packed affinities: within the tolerance whatever the logits, small where logits are as probes give them."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from viewer_pages import BIG, full_rank, like_a_fitted_probe, scores_of, seeded, to_bytes

from bindkit.views.viewer.packing import ALPHABET, STEP, TOLERANCE, Packed, pack, to_text


def symmetric(n, seed=0):
    form = torch.randn(n, n, generator=seeded(seed))
    return form + form.T


def linear(n=BIG):
    part = 2 * torch.randn(n, generator=seeded(4))
    return part[:, None] + part[None] - 1


CASES = {
    "one patch": lambda: torch.zeros(1, 1),
    "two patches": lambda: torch.tensor([[3.0, -3.0], [-3.0, 3.0]]),
    "equal logits": lambda: torch.full((30, 30), 0.7),
    "all zero": lambda: torch.zeros(30, 30),
    "noise": lambda: symmetric(61),
    "steep noise": lambda: 30 * symmetric(60),
    "negative definite": lambda: -(symmetric(50) @ symmetric(50)) / 20,
    "not symmetric": lambda: torch.randn(40, 40, generator=seeded(5)),
    "infinite": lambda: torch.where(symmetric(20) > 0, torch.inf, -torch.inf),
    "huge": lambda: 1e30 * symmetric(20),
    "linear probe": lambda: linear(300),
    "more patches than the largest rank": lambda: symmetric(420, 3),
}


def wanted(logits):
    return logits.double().sigmoid().numpy()


@pytest.mark.parametrize("name", CASES)
def test_every_affinity_is_within_the_tolerance(name):
    logits = CASES[name]()
    packed = pack(logits)
    assert packed.n == len(logits)
    assert np.abs(scores_of(packed) - wanted(logits)).max() < TOLERANCE


@given(st.integers(1, 24), st.integers(0, 10_000), st.floats(0.01, 50), st.booleans())
def test_any_logits_at_all(n, seed, scale, both_orders_alike):
    logits = scale * (symmetric(n, seed) if both_orders_alike else torch.randn(n, n, generator=seeded(seed)))
    assert np.abs(scores_of(pack(logits)) - wanted(logits)).max() < TOLERANCE


@pytest.mark.parametrize("name", ["noise", "not symmetric", "linear probe", "two patches"])
def test_the_format_is_what_the_module_says(name):
    """Decoded pair by pair with nothing but the format's description."""
    packed = pack(CASES[name]())
    n, rank = packed.n, packed.rank
    body, halves = zlib.decompress(packed.factors), zlib.decompress(packed.residuals)
    assert len(body) == 4 * rank + 2 * rank * n
    weights = np.frombuffer(body[: 4 * rank], "<f4")

    def factor(k, patch):
        at = 4 * rank + k * n + patch
        return int.from_bytes(bytes([body[at], body[at + rank * n]]), "little", signed=True)

    pairs = [(i, j) for i in range(n) for j in range(i + 1 if packed.symmetric else n)]
    large = iter(np.frombuffer(halves[(len(pairs) + 1) // 2 :], np.int8))
    scores = scores_of(packed)
    for position, (i, j) in enumerate(pairs):
        half = halves[position // 2] >> (4 if position % 2 else 0) & 15
        residual = int(next(large)) if half == 8 else half - 16 if half > 8 else half
        if position % 37 == 0 or half == 8:
            logit = sum(float(weights[k]) * factor(k, i) * factor(k, j) for k in range(rank))
            value = min(1.0, max(0.0, 1 / (1 + np.exp(-logit)) + STEP * residual))
            assert scores[i, j] == pytest.approx(value, abs=1e-9)
    assert next(large, None) is None


def test_packing_the_same_gives_the_same():
    assert pack(symmetric(50)) == pack(symmetric(50))


def test_five_images_at_nine_layers_of_a_fitted_probe_stay_below_15_megabytes():
    """1,369 patches; what a page adds to this are five pictures (half a megabyte) and its code."""
    logits = like_a_fitted_probe()
    assert 2 < logits.std() < 4  # a fitted one had 2.2
    packed = pack(logits)
    assert np.abs(scores_of(packed) - wanted(logits)).max() < TOLERANCE
    assert packed.symmetric
    assert packed.rank > 20
    assert 45 * on_page(packed) < 14.4e6


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_full_rank_probe_takes_more_room_and_keeps_the_bound(scale):
    logits = full_rank(scale=scale)
    packed = pack(logits)
    assert np.abs(scores_of(packed) - wanted(logits)).max() < TOLERANCE
    assert 45 * on_page(packed) < 36e6


def test_a_linear_probe_takes_next_to_nothing():
    packed = pack(linear())
    assert packed.rank == 2
    assert len(packed.factors) + len(packed.residuals) < 10_000


def on_page(packed: Packed):
    return len(to_text(packed.factors)) + len(to_text(packed.residuals))


@given(st.binary(max_size=300))
def test_bytes_come_back_from_text(content):
    text = to_text(content)
    assert to_bytes(text, len(content)) == content
    assert len(text) == -(-len(content) // 4) * 5
    assert set(text) <= set(ALPHABET)


def test_the_alphabet_means_nothing_to_html_or_javascript():
    assert len(set(ALPHABET)) == 85
    assert not set(ALPHABET) & set("<>&'\"\\` \n")
