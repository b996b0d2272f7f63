"""Draws, outlines and textures of synthetic scenes: whole numbers that are the same everywhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.scenes.looks import GROUND_TEXTURES, OBJECT_TEXTURES, SHAPES, TURNS, UNIT, Draws, cosine, polygon, sine


def test_draws_are_pcg64s_raw_words_scaled_down():
    words = np.random.PCG64(np.random.SeedSequence([3, 4])).random_raw(6)
    draws = Draws(3, 4)
    assert [draws.below(1000) for _ in range(5)] == [int(word) * 1000 // 2**64 for word in words[:5]]
    assert draws.octets(3).tolist() == list(int(words[5]).to_bytes(8, "little")[:3])


@given(st.integers(0, 2**63), st.integers(1, 50))
def test_draws_stay_in_range_and_shuffling_keeps_every_item(seed: int, n: int):
    draws = Draws(seed)
    assert all(0 <= draws.below(n) < n for _ in range(20))
    assert all(-n <= draws.between(-n, n) <= n for _ in range(20))
    assert sorted(draws.shuffled(range(n))) == list(range(n))
    assert not draws.chance(0)
    assert draws.chance(1)


def test_draws_cover_their_range_evenly():
    draws = Draws(0)
    counts = np.bincount([draws.below(5) for _ in range(5000)])
    assert counts.min() > 900
    assert counts.max() < 1100


@pytest.mark.parametrize("turn", range(-TURNS, 2 * TURNS))
def test_turn_tables_are_rounded_cosines_and_sines(turn: int):
    angle = math.radians(15 * turn)
    assert abs(cosine(turn) - UNIT * math.cos(angle)) <= 0.5
    assert abs(sine(turn) - UNIT * math.sin(angle)) <= 0.5


def test_polygon_agrees_with_point_by_point_crossing_numbers():
    vertices = [(0, -90), (30, -20), (95, -10), (40, 35), (60, 90), (-10, 50), (-80, 70), (-20, 10), (-90, -30)]

    def inside(x: int, y: int) -> bool:
        odd = False
        for (x0, y0), (x1, y1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
            if (y0 > y) != (y1 > y):
                odd ^= x < x0 + (x1 - x0) * (y - y0) / (y1 - y0)
        return odd

    steps = np.arange(-100, 101, 7)
    found = polygon(*vertices)(steps[None, :], steps[:, None])
    wanted = [[inside(int(x), int(y)) for x in steps] for y in steps]
    assert found.tolist() == wanted


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shapes_stay_within_their_radius_and_cover_about_a_discs_area(shape):
    outline = shape.draw_outline(Draws(1))
    steps = np.arange(-1200, 1201, 8)
    x, y = steps[None, :], steps[:, None]
    inside = outline(x, y)
    assert inside.any()
    assert (x**2 + y**2)[inside].max() <= 1030**2
    area = inside.sum() * 64 * (shape.extent / 100) ** 2
    assert 0.75 < area / (math.pi * 1024**2) < 1.1


@pytest.mark.parametrize("texture", [*OBJECT_TEXTURES, *GROUND_TEXTURES], ids=lambda texture: texture.__name__)
def test_textures_mix_within_0_and_255_and_show_a_pattern(texture):
    steps = np.arange(-40, 40, dtype=np.int64) * 64
    shares = texture(steps[None, :], steps[:, None], 256, 12345)
    assert shares.shape == (80, 80)
    assert shares.dtype == np.int64
    assert 0 <= shares.min() < shares.max() <= 255
    assert shares.std() > 20
