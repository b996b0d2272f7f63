"""Masks that were smoothed or saved as JPEG are refused, masks as they are drawn are not; borders of 255 are said."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from bindkit.errors import BrokenSceneError
from bindkit.scenes import check_scenes, open_scenes
from bindkit.scenes.decoding import read_channels
from bindkit.scenes.reading import border_value, require_hard

SIZE = (120, 150)
ROWS, COLS = np.mgrid[: SIZE[0], : SIZE[1]]
SAMPLE = Path(__file__).resolve().parents[4] / "shared" / "ade20k_sample"


def discs(rng, n: int, least: float, most: float) -> np.ndarray:
    """Ellipses, later ones in front."""
    mask = np.zeros(SIZE, dtype=int)
    for number in range(1, n + 1):
        row, col, turn = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]), rng.uniform(0, np.pi)
        along = (COLS - col) * np.cos(turn) + (ROWS - row) * np.sin(turn)
        across = (ROWS - row) * np.cos(turn) - (COLS - col) * np.sin(turn)
        mask[(along / rng.uniform(least, most)) ** 2 + (across / rng.uniform(least, most)) ** 2 < 1] = number
    return mask


def cells(rng, n: int) -> np.ndarray:
    """Every pixel belongs to the nearest of some points."""
    points = rng.uniform(0, 1, (n, 2)) * SIZE
    return cKDTree(points).query(np.stack([ROWS, COLS], -1).reshape(-1, 2))[1].reshape(SIZE) + 1


def lines(rng, n: int, width: float) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=int)
    for number in range(1, n + 1):
        turn = rng.uniform(0, np.pi)
        across = (ROWS - rng.uniform(0, SIZE[0])) * np.cos(turn) - (COLS - rng.uniform(0, SIZE[1])) * np.sin(turn)
        mask[abs(across) < width / 2] = number
    return mask


DRAWN = {
    "four objects": lambda rng: discs(rng, 4, 15, 40),
    "twenty objects": lambda rng: discs(rng, 20, 10, 30),
    "a crowd": lambda rng: discs(rng, 60, 3, 8),
    "a crowd of tiny objects": lambda rng: discs(rng, 200, 1.5, 4),
    "cells": lambda rng: cells(rng, 30),
    "many cells": lambda rng: cells(rng, 200),
    "lines of a pixel": lambda rng: lines(rng, 12, 1),
    "lines of three pixels": lambda rng: lines(rng, 12, 3),
}
GRAY_VALUES = {
    "spread": lambda rng, n: np.arange(n) * (255 // (n - 1)),
    "by chance": lambda rng, n: np.append(0, rng.permutation(np.arange(1, 256))[: n - 1]),
}
COLOURS = {
    "colours": lambda rng, n: rng.integers(0, 256, (n, 3)) * (np.arange(n) > 0)[:, None],
    "panoptic": lambda rng, n: np.stack([np.arange(n) * 37 % 256, np.arange(n) // 7, np.arange(n) * 0], -1),
}


def painted(mask: np.ndarray, values: np.ndarray) -> Image.Image:
    return Image.fromarray(values[mask].astype(np.uint8))


def scaled(image: Image.Image, factor: float, how: Image.Resampling) -> np.ndarray:
    return np.array(image.resize((int(image.width * factor), int(image.height * factor)), how))


def is_refused(channels: np.ndarray) -> bool:
    try:
        require_hard(channels, Path("mask.png"))
    except BrokenSceneError:
        return True
    return False


@pytest.mark.parametrize("values", [*GRAY_VALUES, *COLOURS])
@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("seed", range(3))
def test_masks_as_drawn_are_read_whatever_their_size(drawn: str, values: str, seed: int):
    rng = np.random.default_rng([seed, *drawn.encode()])
    mask = DRAWN[drawn](rng)
    image = painted(mask, {**GRAY_VALUES, **COLOURS}[values](rng, mask.max() + 1))
    assert not is_refused(np.array(image))
    for factor in (0.35, 0.5, 0.75, 1.5, 2.3):
        assert not is_refused(scaled(image, factor, Image.Resampling.NEAREST)), factor


@pytest.mark.parametrize("values", [*GRAY_VALUES, *COLOURS])
@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("seed", range(3))
def test_smoothed_masks_are_refused_whatever_their_size(drawn: str, values: str, seed: int):
    rng = np.random.default_rng([seed, *drawn.encode()])
    mask = DRAWN[drawn](rng)
    image = painted(mask, {**GRAY_VALUES, **COLOURS}[values](rng, mask.max() + 1))
    for how in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        for factor in (0.35, 0.5, 0.75, 1.5, 2, 3.3):
            assert is_refused(scaled(image, factor, how)), (how, factor)


@pytest.mark.parametrize("values", [*GRAY_VALUES, *COLOURS])
@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_masks_that_were_jpeg_once_are_refused(drawn: str, values: str, quality: int):
    rng = np.random.default_rng([quality, *drawn.encode()])
    mask = DRAWN[drawn](rng)
    stream = io.BytesIO()
    painted(mask, {**GRAY_VALUES, **COLOURS}[values](rng, mask.max() + 1)).save(stream, "JPEG", quality=quality)
    assert is_refused(np.array(Image.open(stream)))


@pytest.mark.parametrize("values", [*GRAY_VALUES, *COLOURS])
@pytest.mark.parametrize("drawn", DRAWN)
def test_large_masks_are_judged_as_small_ones(drawn: str, values: str):
    """Of these, not every row is looked at."""
    rng = np.random.default_rng([7, *drawn.encode()])
    mask = DRAWN[drawn](rng)
    large = scaled(painted(mask, {**GRAY_VALUES, **COLOURS}[values](rng, mask.max() + 1)), 9, Image.Resampling.NEAREST)
    assert not is_refused(large)
    assert not is_refused(large.swapaxes(0, 1))
    for factor in (0.8, 1.3):
        assert is_refused(scaled(Image.fromarray(large), factor, Image.Resampling.BILINEAR)), factor


def outlines_of(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one above or to the left."""
    found = np.zeros(mask.shape, dtype=bool)
    found[1:] |= mask[1:] != mask[:-1]
    found[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return found


@pytest.mark.parametrize("value", [0, 1, 2, 100, 255])
@pytest.mark.parametrize("drawn", ["four objects", "twenty objects", "a crowd", "cells", "many cells"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_outlines_of_any_value_are_no_smoothing(drawn: str, value: int, width: int):
    mask = DRAWN[drawn](np.random.default_rng([value, width, *drawn.encode()]))
    outline = outlines_of(mask)
    if width > 1:
        outline = ndimage.binary_dilation(outline, iterations=width - 1)
    mask = np.where(outline, value, np.where((mask >= value) & (0 < value < 255), mask + 1, mask))
    assert not is_refused(mask.astype(np.uint8))


@pytest.mark.parametrize("uri", ["synthetic:n=6,seed=1", "synthetic:n=6,seed=2,size=80x80,objects=12,outlines=any"])
def test_synthetic_masks_are_read(uri: str):
    for scene in open_scenes(uri):
        image = Image.fromarray(scene.instances.astype(np.uint8))
        for factor in (0.35, 0.6, 1, 2.3):
            assert not is_refused(scaled(image, factor, Image.Resampling.NEAREST))
        assert is_refused(scaled(Image.fromarray((scene.instances * 20).astype(np.uint8)), 0.6, Image.Resampling.BOX))


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the ADE20K sample is not here")
def test_masks_of_ade20k_are_read():
    masks = sorted(SAMPLE.glob("**/*_seg.png"))
    assert masks
    for path in masks:
        require_hard(read_channels(path, rgb=True).pixels, path)


# --- of a folder -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("images", "instances"):
        (tmp_path / name).mkdir()
    return tmp_path


def add(folder: Path, name: str, mask: np.ndarray, **options: object) -> None:
    Image.fromarray(np.zeros((*mask.shape[:2], 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
    image = Image.fromarray(mask.astype(np.uint8))
    if options:
        image.putpalette(list(range(256)) * 3)
    image.save(folder / "instances" / f"{name}.png")


def test_smoothed_masks_are_broken_scenes_that_the_report_names(folder):
    mask = discs(np.random.default_rng(0), 4, 15, 40)
    add(folder, "sharp", mask * 60)
    add(folder, "smoothed", scaled(Image.fromarray((mask * 60).astype(np.uint8)), 1.5, Image.Resampling.BILINEAR))
    report = check_scenes(open_scenes(f"folder:{folder}"))
    assert [scene.id for scene in report.statistics] == ["sharp"]
    assert [scene.id for scene in report.broken] == ["smoothed"]
    assert f"{folder}/instances/smoothed.png: a mask that looks smoothed: it has " in report.broken[0].reason
    assert "nearest neighbour" in report.broken[0].reason
    insisted = open_scenes(f"folder:{folder},soft=allow")
    assert len(check_scenes(insisted).statistics) == 2
    assert open_scenes(insisted.uri)[1].instances.max() > 200


def border_mask(value: int = 255, width: int = 1) -> np.ndarray:
    mask = discs(np.random.default_rng(1), 4, 15, 40)
    return np.where(ndimage.binary_dilation(outlines_of(mask), iterations=width), value, mask)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_thin_border_of_255_is_said_in_log_and_report(folder, caplog, width: int):
    for name in "abc":
        add(folder, name, border_mask(width=width), palette=True)
    scenes = open_scenes(f"folder:{folder}")
    report = check_scenes(scenes)
    remark = "a thin border of value 255 around objects is read as an object: void=255 reads it as unlabelled"
    assert f"note: {remark}: a, b, c" in str(report)
    assert sum(remark in record.message and "instances/" in record.message for record in caplog.records) == 1
    assert (scenes[0].instances == border_mask(width=width)).all()
    report.write_csv(folder / "scenes.csv")
    assert (folder / "scenes.csv").read_text().count(remark) == 3


def test_void_values_are_unlabelled_in_both_masks(folder):
    mask = border_mask()
    mask[:5] = 254
    add(folder, "a", mask)
    (folder / "classes").mkdir()
    classes = (mask > 0) + 6
    classes[-3:] = 255
    Image.fromarray(classes.astype(np.uint8)).save(folder / "classes" / "a.png")
    scenes = open_scenes(f"folder:{folder},void=255+254")
    assert scenes.uri == f"folder:{folder},void=254+255"
    unlabelled = (mask >= 254) | (classes == 255)
    scene = scenes[0]
    assert (scene.instances == np.where(unlabelled, 0, mask)).all()
    assert (scene.classes == np.where(unlabelled, 0, classes)).all()
    assert scene.remarks == ()


def test_what_is_no_thin_border_is_not_said():
    mask = discs(np.random.default_rng(1), 4, 15, 40)
    assert border_value(mask) is None
    assert border_value(np.where(mask == 4, 255, mask)) is None  # an object
    assert border_value(np.where(mask == 0, 255, mask)) is None  # the ground
    assert border_value(np.zeros(SIZE, dtype=np.int32)) is None
    assert border_value(border_mask()) == 255
    assert border_value(border_mask(0xC0E0E0)) == 0xC0E0E0
    crowd = discs(np.random.default_rng(1), 255, 4, 6)  # numbered to the end: 255 is one of them
    assert border_value(crowd) is None
