"""Preprocessing: read from the checkpoint, never guessed; pixels scaled as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import IMAGE, MEAN, STD, write_checkpoint, write_preprocessing

from bindkit.backbones import Preprocessing, load_backbone
from bindkit.backbones.preprocessing import IMAGENET, read_preprocessing
from bindkit.errors import BackboneError, InvalidParameterError


@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 2)] * 3),
    rescale_factor=st.sampled_from([1 / 255, 1.0, 1 / 127.5]),
    seed=st.integers(0, 99),
)
def test_normalise_equals_the_plain_formula(
    mean: tuple[float, ...], std: tuple[float, ...], rescale_factor: float, seed: int
) -> None:
    windows = np.random.default_rng(seed).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    got = Preprocessing(mean, std, rescale_factor).normalise(torch.from_numpy(windows))
    assert got.shape == (2, 3, 3, 4)
    assert got.dtype == torch.float32
    for window, row, col, channel in np.ndindex(*windows.shape):
        value = (float(windows[window, row, col, channel]) * rescale_factor - mean[channel]) / std[channel]
        assert got[window, channel, row, col].item() == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_box_resize_equals_block_means() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    got = Preprocessing(MEAN, STD, resample="box").resize(image, (3, 5))
    expected = image.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3))
    assert got.shape == (3, 5, 3)
    assert np.abs(got - expected).max() <= 1  # Pillow rounds once per axis


@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
def test_shrinking_is_antialiased(resample: str) -> None:
    """Stripes one pixel wide turn grey; without antialiasing some would survive."""
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[:, ::2] = 255
    small = Preprocessing(MEAN, STD, resample=resample).resize(image, (8, 12))[2:-2, 2:-2]
    assert small.min() > 110
    assert small.max() < 146


def test_resize_keeps_an_image_that_has_the_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(IMAGENET.resize(image, (6, 8)), image)
    assert IMAGENET.resize(image, (12, 7)).shape == (12, 7, 3)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
)
def test_other_images_than_rgb_bytes_are_refused(image: np.ndarray) -> None:
    with pytest.raises(InvalidParameterError, match="uint8 of shape"):
        IMAGENET.resize(image, (2, 2))


def test_settings_come_from_the_checkpoint(tmp_path: Path) -> None:
    backbone = load_backbone(str(write_checkpoint("clip", tmp_path)), device="cpu")
    assert backbone.preprocessing == Preprocessing(MEAN, STD, 1 / 255, "bilinear")
    assert backbone.describe()["preprocessing"]["mean"] == list(MEAN)
    # Size and crop rules of the file are left aside: windows decide.
    assert backbone.geometry.window == IMAGE


def read(tmp_path: Path, **changes: object) -> Preprocessing:
    write_preprocessing(tmp_path, **changes)
    return read_preprocessing(tmp_path / "preprocessor_config.json")


@pytest.mark.parametrize(
    ("resample", "name"),
    [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic"), (None, "bicubic"), (4, "box")],
)
def test_resample_codes_are_pillows(resample: int | None, name: str, tmp_path: Path) -> None:
    assert read(tmp_path, resample=resample).resample == name


def test_steps_that_are_switched_off_stay_off(tmp_path: Path) -> None:
    assert read(tmp_path, do_rescale=False).rescale_factor == 1
    assert read(tmp_path, rescale_factor=1 / 127.5).rescale_factor == 1 / 127.5
    unnormalised = read(tmp_path, do_normalize=False, image_mean=None, image_std=None)
    assert (unnormalised.mean, unnormalised.std) == ((0, 0, 0), (1, 1, 1))


def test_files_of_the_first_image_processors_divide_by_255(tmp_path: Path) -> None:
    assert read(tmp_path, do_rescale=None, rescale_factor=None) == Preprocessing(MEAN, STD, 1 / 255, "bilinear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": None}, "no image_mean.*imagenet"),
        ({"image_mean": None, "image_std": None}, "no image_mean and no image_std"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "positive std"),
        ({"image_std": "half"}, "no list of numbers"),
        ({"resample": 9}, "unknown resample"),
        ({"rescale_factor": "much"}, "much"),
        ({"rescale_offset": True}, "rescale_offset"),
    ],
)
def test_settings_that_cannot_be_used_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=message):
        read(tmp_path, **changes)


@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_a_file_that_is_no_json_object_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises(BackboneError, match=r"preprocessor_config\.json"):
        read_preprocessing(path)


def test_a_missing_file_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    directory = write_checkpoint("vit", tmp_path)
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r'no preprocessor_config.json.*normalization="imagenet"'):
        load_backbone(str(directory), device="cpu")
    assert load_backbone(str(directory), normalization="imagenet", device="cpu").preprocessing == IMAGENET


def test_imagenet_normalization_overrides_the_checkpoint(tmp_path: Path) -> None:
    backbone = load_backbone(str(write_checkpoint("vit", tmp_path)), normalization="imagenet", device="cpu")
    assert backbone.preprocessing.mean == (0.485, 0.456, 0.406)
    assert backbone.preprocessing.std == (0.229, 0.224, 0.225)
    assert backbone.preprocessing.resample == "bicubic"
    with pytest.raises(InvalidParameterError, match="unknown normalization 'none'"):
        load_backbone("random-init:vit", normalization="none")


def test_settings_nested_in_a_processor_config_are_found(tmp_path: Path) -> None:
    directory = write_checkpoint("siglip", tmp_path)
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": settings, "processor_class": "X"}))
    assert load_backbone(str(directory), device="cpu").preprocessing == Preprocessing(MEAN, STD, 1 / 255, "bilinear")


def test_a_processor_config_without_image_settings_is_no_preprocessing(tmp_path: Path) -> None:
    directory = write_checkpoint("vit", tmp_path)
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    with pytest.raises(BackboneError, match=r"processor_config\.json.*image_mean"):
        load_backbone(str(directory), device="cpu")
