"""Which patches are drawn, and scenes read ahead of the model."""

from __future__ import annotations

import hashlib
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cache_fakes import ExactBackbone, ExactScenes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import bindkit as bk
from bindkit.cache.sizing import draw_patches, draw_scene
from bindkit.files import ahead

counts = st.integers(1, 9)


@given(
    counts, st.integers(1, 40), st.one_of(st.just("all"), st.integers(1, 400)), st.text(max_size=8), st.integers(0, 99)
)
def test_the_draw_is_even_over_windows_without_repetition_and_sorted(
    n_windows: int, per_window: int, wanted: int | str, scene_id: str, seed: int
) -> None:
    rows = draw_patches(scene_id, n_windows, per_window, wanted, seed)
    total = n_windows * per_window
    assert len(rows) == (total if wanted == "all" else min(int(wanted), total))
    assert (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < total
    taken = np.bincount(rows // per_window, minlength=n_windows)
    assert taken.max() - taken.min() <= 1
    np.testing.assert_array_equal(rows, draw_patches(scene_id, n_windows, per_window, wanted, seed))


def test_every_patch_and_every_window_has_the_same_chance() -> None:
    drawn = np.zeros(12)
    for seed in range(3000):
        drawn[draw_patches("scene", 3, 4, 4, seed)] += 1
    # 4 of 12 patches: 1000 expected each, standard deviation below 26.
    assert abs(drawn - 1000).max() < 130


def test_scenes_and_seeds_give_other_draws() -> None:
    draws = {tuple(draw_patches(name, 2, 200, 20, seed)) for name in ("a", "b", "c") for seed in range(3)}
    assert len(draws) == 9


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert draw_patches("ADE_train_00000001", 3, 16, 7, 5).tolist() == [3, 10, 24, 26, 30, 39, 44]


def test_the_draw_is_what_a_slow_plain_computation_gives() -> None:
    """Windows with the smallest random words hold one patch more; in a window, the patches with the smallest words."""
    words = (
        np.random.PCG64(int.from_bytes(hashlib.sha256(b"5:a scene").digest(), "big")).random_raw(3 + 3 * 16).tolist()
    )
    lucky = sorted(range(3), key=lambda window: words[window])[: 20 % 3]
    expected = []
    for window in range(3):
        keys = words[3 + 16 * window : 3 + 16 * (window + 1)]
        first = sorted(range(16), key=lambda patch: keys[patch])[: 20 // 3 + (window in lucky)]
        expected += sorted(16 * window + patch for patch in first)
    assert draw_patches("a scene", 3, 16, 20, 5).tolist() == expected


def test_a_drawn_scene_has_only_the_windows_that_hold_a_drawn_patch() -> None:
    scenes = ExactScenes()
    drawn = draw_scene(scenes, 2, ExactBackbone(), patches_per_scene=2, seed=0)
    assert drawn.labels is not None and len(drawn.windows) == len(drawn.patches) == 2
    lefts = [window.left for window in drawn.labels.plan.windows]
    for pixels, window, patches in zip(drawn.windows, drawn.labels.window, drawn.patches, strict=True):
        left = lefts[window]
        np.testing.assert_array_equal(pixels.numpy(), scenes.image(2)[:, left : left + 16])
        assert len(patches) == 1
    np.testing.assert_array_equal(np.concatenate(drawn.patches), drawn.labels.patch)


def test_a_broken_scene_comes_back_with_its_reason() -> None:
    drawn = draw_scene(ExactScenes(broken=[1]), 1, ExactBackbone(), 5, 0)
    assert (drawn.labels, drawn.reason) == (None, "scene scene-1: truncated file")


def test_the_digest_sees_pixels_and_size() -> None:
    def digest_of(scenes: ExactScenes, position: int) -> bytes:
        return draw_scene(scenes, position, ExactBackbone(), 5, 0).digest

    digests = {digest_of(ExactScenes(), position) for position in range(7)}
    assert len(digests) == 7 and all(len(digest) == 32 for digest in digests)
    assert digest_of(ExactScenes(), 0) == digest_of(ExactScenes(), 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_keeps_the_order(workers: int) -> None:
    def slow(k: int) -> int:
        time.sleep(0.002 * (k % 3))
        return k * k

    assert list(ahead(slow, range(20), workers)) == [k * k for k in range(20)]
    assert list(ahead(slow, [], workers)) == []


def test_ahead_is_bounded() -> None:
    started: list[int] = []
    results = ahead(lambda k: started.append(k) or k, range(100), 2)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 5
    results.close()


def test_ahead_passes_errors_on_and_ends_its_threads() -> None:
    def fails(k: int) -> int:
        if k == 3:
            raise RuntimeError("three")
        return k

    results = ahead(fails, range(10), 2)
    with pytest.raises(RuntimeError, match="three"):
        list(results)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(t.name.startswith("bindkit-scenes") for t in threading.enumerate()):
        time.sleep(0.01)
    assert not any(t.name.startswith("bindkit-scenes") for t in threading.enumerate())


@pytest.mark.parametrize("uri", ["synthetic:n=5,seed=3", "folder:{}"])
def test_processes_give_what_threads_give(tmp_path: Path, uri: str) -> None:
    """Real scene sets, sent to other processes; the geometry and resizing of a real backbone."""
    for name, mode, top in (("images", "RGB", 256), ("instances", "L", 4)):
        (tmp_path / name).mkdir()
        for k in range(5):
            shape = (40, 50, 3) if mode == "RGB" else (40, 50)
            pixels = np.random.default_rng(k).integers(0, top, shape).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    backbone = bk.load_backbone("random-init:vit", window=32, short_side=32)
    look = SimpleNamespace(geometry=backbone.geometry, preprocessing=backbone.preprocessing)
    read = partial(draw_scene, bk.open_scenes(uri.format(tmp_path)), source=look, patches_per_scene=9, seed=0)
    for one, other in zip(ahead(read, range(5), 2), ahead(read, range(5), 2, processes=True), strict=True):
        assert (one.id, one.digest, one.reason, one.remarks) == (other.id, other.digest, other.reason, other.remarks)
        np.testing.assert_array_equal(one.windows, other.windows)
        np.testing.assert_array_equal(np.concatenate(one.patches), np.concatenate(other.patches))
        assert (one.labels.instances == other.labels.instances).all() and one.labels.plan == other.labels.plan


def test_an_error_in_a_process_passes_and_ends_them() -> None:
    results = ahead(partial(divmod, 1), [1, 0, 1], 1, processes=True)
    assert next(results) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        list(results)
