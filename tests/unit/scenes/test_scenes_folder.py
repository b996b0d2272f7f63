"""Plain folders of images and masks: modes, optional classes, official splits, and every kind of broken file."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.scenes import open_scenes

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 18, 3), dtype=np.uint8)
INSTANCES = np.repeat(np.arange(6, dtype=np.uint8), 3)[None].repeat(12, 0)
CLASSES = (INSTANCES + 1) // 2


def save(array: np.ndarray | Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path)


def add(root, name: str, classes: bool = False, suffix: str = ".png", instances=INSTANCES) -> None:
    save(PICTURE, root / "images" / f"{name}{suffix}")
    save(instances, root / "instances" / f"{name}.png")
    if classes:
        save(CLASSES, root / "classes" / f"{name}.png")


def test_images_instances_and_classes_are_read_as_they_stand(tmp_path):
    add(tmp_path, "b", classes=True)
    add(tmp_path, "a", classes=True, suffix=".PNG")
    (tmp_path / "class_names.json").write_text('{"1": "cat", "2": "dög"}', encoding="utf-8")
    scenes = open_scenes(f"folder:{tmp_path}")
    assert scenes.ids == ("a", "b")
    assert scenes.official_splits is None
    assert scenes.class_names == {1: "cat", 2: "dög"}
    scene = scenes[1]
    assert (scene.image == PICTURE).all()
    assert (scene.instances == INSTANCES).all()
    assert (scene.classes == CLASSES).all()
    assert scene.instances.dtype == scene.classes.dtype == np.int32


def test_without_classes_no_class_is_known(tmp_path):
    add(tmp_path, "a", suffix=".jpeg")
    scenes = open_scenes(f"folder:{tmp_path}")
    assert scenes.class_names == {}
    assert not scenes[0].classes.any()
    assert (scenes[0].instances == INSTANCES).all()


def palette(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array)
    image = image.convert("L")
    image.putpalette(list(range(255, -1, -1)) * 3)
    return image


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (INSTANCES, INSTANCES),
        (INSTANCES.astype(np.uint16) * 1000, INSTANCES.astype(np.int32) * 1000),
        (palette(INSTANCES), INSTANCES),
        (INSTANCES > 2, INSTANCES > 2),
        (np.stack([INSTANCES, INSTANCES * 2, INSTANCES * 3], -1), INSTANCES.astype(np.int32) * (1 + 512 + 3 * 65536)),
    ],
    ids=["8-bit", "16-bit", "palette", "1-bit", "RGB"],
)
def test_instance_masks_of_every_mode_give_their_ids(tmp_path, mask, wanted):
    add(tmp_path, "a", instances=mask)
    assert (open_scenes(f"folder:{tmp_path}")[0].instances == wanted).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_pictures_of_every_8_bit_mode_become_rgb(tmp_path, mode: str):
    add(tmp_path, "a")
    picture = Image.fromarray(PICTURE).convert(mode)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    (tmp_path / "images" / "a.png").unlink()
    save(picture, tmp_path / "images" / f"a{suffix}")
    image = open_scenes(f"folder:{tmp_path}")[0].image
    assert image.shape == (12, 18, 3)
    assert image.dtype == np.uint8


def test_training_and_validation_folders_are_official_splits(tmp_path):
    add(tmp_path / "training", "a", classes=True)
    add(tmp_path / "validation", "a", classes=True)
    scenes = open_scenes(f"folder:{tmp_path}")
    assert scenes.ids == ("training/a", "validation/a")
    assert scenes.official_splits == ("training", "validation")
    assert scenes[1].id == "validation/a"


def test_missing_and_empty_files_are_listed_and_the_rest_is_used(tmp_path):
    for name in "abcdef":
        add(tmp_path, name, classes=True)
    (tmp_path / "instances" / "a.png").unlink()
    (tmp_path / "classes" / "b.png").unlink()
    (tmp_path / "images" / "c.png").write_bytes(b"")
    (tmp_path / "images" / "d.png").unlink()
    save(PICTURE, tmp_path / "images" / "e.jpg")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "images" / "notes.txt").write_bytes(b"x")
    scenes = open_scenes(f"folder:{tmp_path}")
    assert scenes.ids == ("e", "f")
    reasons = {(scene.id, scene.reason.split(": ", 1)[1].split(" of this")[0]) for scene in scenes.broken}
    assert reasons == {
        ("a", "the file is missing"),
        ("b", "the file is missing"),
        ("c", "the file is empty"),
        ("d", "a mask whose image is missing"),
        ("e", "a second image"),
    }
    assert str(tmp_path / "classes" / "b.png") in next(scene.reason for scene in scenes.broken if scene.id == "b")


def encoded(array: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]


NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
PNG, JPEG = encoded(INSTANCES, "PNG"), encoded(NOISE, "JPEG")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("images/a.png", JPEG[: len(JPEG) // 2], "cannot be read"),
        ("images/a.png", b"this is text", "cannot be read"),
        ("images/a.png", encoded(INSTANCES.astype(np.uint16), "PNG"), "mode I;16"),
        ("images/a.png", encoded(PICTURE[:6], "PNG"), "6 x 18 px"),
        ("instances/a.png", PNG[:-20], "cannot be read"),
        ("instances/a.png", PNG[: len(PNG) // 2], "cannot be read"),
        ("instances/a.png", flipped(PNG, PNG.index(b"IDAT") + 12), "cannot be read"),
        ("instances/a.png", encoded(INSTANCES.T.copy(), "PNG"), r"18 x 12 px but the image .*a.png is 12 x 18 px"),
        ("instances/a.png", encoded(np.dstack([PICTURE, INSTANCES]), "PNG"), "mode RGBA; expected .* or RGB"),
        ("classes/a.png", encoded(PICTURE, "PNG"), "mode RGB; expected 8- or 16-bit gray or palette without"),
        ("classes/a.png", encoded(CLASSES[:, :9].copy(), "PNG"), "12 x 9 px"),
        ("classes/a.png", None, "is missing"),
        ("images/a.png", None, "is missing"),
        ("instances/a.png", b"", "is empty"),
    ],
)
def test_files_that_break_after_opening_raise_one_named_error(tmp_path, file: str, content: bytes | None, reason: str):
    add(tmp_path, "a", classes=True)
    scenes = open_scenes(f"folder:{tmp_path}")
    assert scenes[0].id == "a"
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(BrokenSceneError, match=reason) as caught:
        scenes[0]
    assert str(tmp_path / file) in str(caught.value)


def test_nothing_usable_is_an_error_with_the_first_reasons(tmp_path):
    add(tmp_path, "a")
    (tmp_path / "instances" / "a.png").write_bytes(b"")
    with pytest.raises(SceneSetError, match=r"no usable scene.*1 broken.*a\.png: the file is empty"):
        open_scenes(f"folder:{tmp_path}")


@pytest.mark.parametrize("content", ["{", "[1]", '{"cat": 1}'])
def test_unreadable_class_names_are_named(tmp_path, content: str):
    add(tmp_path, "a")
    (tmp_path / "class_names.json").write_text(content)
    with pytest.raises(SceneSetError, match=r"class_names\.json cannot be read"):
        open_scenes(f"folder:{tmp_path}")


def test_class_names_may_be_left_out(tmp_path):
    add(tmp_path, "a", classes=True)
    assert open_scenes(f"folder:{tmp_path}").class_names == {}
    (tmp_path / "class_names.json").write_text(json.dumps({"3": "owl"}))
    assert open_scenes(f"folder:{tmp_path}").class_names == {3: "owl"}


def test_the_reason_that_a_file_cannot_be_read_is_the_same_in_every_run(tmp_path):
    """Pillow names the buffer that the file was read into, by its place in memory."""
    add(tmp_path, "a")
    scenes = open_scenes(f"folder:{tmp_path}")
    path = tmp_path / "images" / "a.png"
    path.write_bytes(b"this is text")
    with pytest.raises(BrokenSceneError) as caught:
        scenes[0]
    assert str(caught.value) == (
        f"{path}: cannot be read (cannot identify image file); the file is damaged or not an image"
    )
