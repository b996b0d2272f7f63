"""Every format of scenes in files gives what a scene set is: one suite over `written_formats.ROWS`."""

from __future__ import annotations

import io
import pickle
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from written_formats import ROWS, SIZES, SPLIT_OF, Plan, encode, image_of, instances_of

import bindkit as bk
from bindkit.errors import BrokenSceneError, CacheMismatchError, InvalidParameterError, SceneSetError
from bindkit.scenes import FORMATS, SceneSet, check_scenes, open_scenes, split_scenes
from bindkit.scenes.checking import contents_of
from bindkit.scenes.scene import sources_of

ALL = sorted(ROWS)
WITH_FILES = [scheme for scheme in ALL if ROWS[scheme].picture]
WITH_MASKS = [scheme for scheme in ALL if ROWS[scheme].mask]


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Where `datasets` keeps what it prepares."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data, =set"  # commas and blanks are part of a directory's name


def written(scheme: str, root: Path, **changes) -> str:
    return ROWS[scheme].write(root, Plan(ROWS[scheme].class_ids, **changes))


def file_of(root: Path, pattern: str, name: str) -> Path:
    (found,) = root.glob(pattern.format(name=name))
    return found


def position_of(scenes, name: str) -> int:
    return sorted(SIZES).index(name)


def same_partition(left: np.ndarray, right: np.ndarray) -> bool:
    pairs = np.unique(np.stack([left.ravel(), right.ravel()]), axis=1)
    one_to_one = all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
    return one_to_one and bool(((left == 0) == (right == 0)).all())


def test_every_format_in_files_is_in_the_table():
    assert set(ROWS) == set(FORMATS) - {"synthetic"}


@pytest.mark.parametrize("scheme", ALL)
def test_the_planted_answer_is_read_exactly(root, scheme: str):
    scenes = open_scenes(written(scheme, root))
    assert isinstance(scenes, SceneSet)
    assert len(scenes) == len(scenes.ids) == len(set(scenes.ids)) == len(SIZES)
    assert scenes.broken == ()
    assert scenes.official_splits == tuple(SPLIT_OF[name] for name in sorted(SIZES))
    class_of = np.array([0, *ROWS[scheme].class_ids], np.int32)
    for position, name in enumerate(sorted(SIZES)):
        scene, split = scenes[position], SPLIT_OF[name]
        short, long = {"training": ("train", "train"), "validation": ("val", "validation")}[split]
        assert scene.id == scenes.ids[position]
        assert scene.id.startswith(ROWS[scheme].ids.format(name=name, split=split, short=short, long=long))
        assert scene.image.dtype == np.uint8
        assert abs(scene.image.astype(int) - image_of(name)).mean() < 3  # JPEG, of smooth pictures
        assert scene.instances.dtype == scene.classes.dtype == np.int32
        assert same_partition(scene.instances, instances_of(name))
        assert (scene.classes == class_of[instances_of(name)]).all()
        assert scenes.size_of(position) == scene.size == SIZES[name]
        assert scene.remarks == ()
    assert 0 not in scenes.class_names
    if ROWS[scheme].named:
        assert set(ROWS[scheme].class_ids) <= set(scenes.class_names)
    assert scenes[-1].id == scenes.ids[3]
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            scenes[beyond]


@pytest.mark.parametrize("scheme", ALL)
def test_its_uri_opens_it_again_and_so_does_another_process(root, scheme: str, monkeypatch):
    scenes = open_scenes(written(scheme, root))
    again, sent = open_scenes(scenes.uri), pickle.loads(pickle.dumps(scenes))
    for other in (again, sent):
        assert (other.uri, tuple(other.ids), other.official_splits) == (scenes.uri, scenes.ids, scenes.official_splits)
        assert (other[1].instances == scenes[1].instances).all()
    monkeypatch.chdir(root.parent)
    rest = scenes.uri.partition(":")[2].removeprefix(str(root))
    if root.name in scenes.uri:
        assert bk.open_scenes(f"{scheme}:{root.name}{'' if rest.startswith('/') else rest}").uri == scenes.uri


@pytest.mark.parametrize("scheme", ALL)
def test_options_are_checked_and_unknown_ones_list_the_known(root, scheme: str):
    uri = written(scheme, root)
    with pytest.raises(InvalidParameterError, match=r"no_such=1 is not understood; the options are .*max_pixels"):
        open_scenes(f"{uri},no_such=1")
    with pytest.raises(InvalidParameterError, match="is given twice"):
        open_scenes(f"{uri},max_pixels=9000,max_pixels=9000")
    assert open_scenes(f"{uri},max_pixels=9000").uri.count("max_pixels=9000") == 1


@pytest.mark.parametrize("scheme", ALL)
def test_a_directory_of_something_else_says_what_was_expected(tmp_path, scheme: str):
    (tmp_path / "empty").mkdir()
    for place in ("absent", "empty"):
        with pytest.raises(SceneSetError, match=r"[Gg]ive|[Ee]xpected|no usable scene: no annotations/inst|looked for"):
            open_scenes(f"{scheme}:{tmp_path / place}")


@pytest.mark.parametrize("scheme", ALL)
def test_scenes_are_cached_and_probed_as_any_others(root, tmp_path, scheme: str):
    scenes = open_scenes(written(scheme, root))
    backbone = bk.load_backbone("bindkit/scenes-mae")
    cache = bk.cache_activations(backbone, scenes, root=tmp_path / "cache", layers=[0], patches_per_scene=16)
    assert cache.is_complete
    assert cache.skipped == ()
    assert sum(map(len, cache.manifest.identity.scene_ids.values())) == 4
    assert split_scenes(scenes).test == (3,)
    changed = instances_of("b")
    changed[60:64, 30:34] = 2
    shutil.rmtree(root)
    scenes = open_scenes(written(scheme, root, masks={"b": changed}))
    with pytest.raises(CacheMismatchError, match=r"1 mask has changed|masks have changed"):
        bk.cache_activations(backbone, scenes, root=tmp_path / "cache", layers=[0], patches_per_scene=16)


@pytest.mark.parametrize("scheme", ALL)
def test_a_changed_mask_is_another_content(root, tmp_path, scheme: str):
    before = contents_of(open_scenes(written(scheme, root))).of
    assert len(before) == 4
    assert contents_of(open_scenes(written(scheme, tmp_path / "again"))).of == before
    changed = instances_of("b")
    changed[60:64, 30:34] = 2
    now = contents_of(open_scenes(written(scheme, tmp_path / "changed", masks={"b": changed}))).of
    differing = {scene_id for scene_id in before if now[scene_id] != before[scene_id]}
    mine = [*before][1]
    # One JSON file says the masks of a whole split of COCO.
    assert differing == ({*before} - {[*before][3]} if scheme == "coco" else {mine})


@pytest.mark.parametrize("scheme", WITH_FILES)
def test_its_files_are_named_picture_first(root, scheme: str):
    scenes = open_scenes(written(scheme, root))
    for position, name in enumerate(sorted(SIZES)):
        picture, *masks = sources_of(scenes, position)
        assert picture.resolve() == file_of(root, ROWS[scheme].picture, name).resolve()
        assert masks and all(mask.is_file() for mask in masks)
        if ROWS[scheme].mask:
            assert masks[0].resolve() == file_of(root, ROWS[scheme].mask, name).resolve()


# --- broken files ----------------------------------------------------------------------------------

FILES = [(scheme, "picture") for scheme in WITH_FILES] + [(scheme, "mask") for scheme in WITH_MASKS]


@pytest.mark.parametrize("kind", ["missing", "empty"])
@pytest.mark.parametrize(("scheme", "which"), FILES)
def test_what_is_missing_or_empty_is_listed_on_opening(root, scheme: str, which: str, kind: str):
    uri = written(scheme, root)
    file = file_of(root, getattr(ROWS[scheme], which), "b")
    # Formats that go through pictures find a mask alone.
    alone = file_of(root, ROWS[scheme].mask, "b").name + ": a mask whose image is missing" if ROWS[scheme].mask else "-"
    file.unlink() if kind == "missing" else file.write_bytes(b"")
    scenes = open_scenes(uri)
    (broken,) = scenes.broken
    assert len(scenes) == 3
    assert broken.id not in scenes.ids
    assert (file.name in broken.reason and kind in broken.reason) or broken.reason.endswith(alone)
    assert scenes.official_splits == ("training", "training", "validation")
    assert check_scenes(scenes).usable == (0, 1, 2)


@pytest.mark.parametrize("kind", ["cut", "garbage", "size", "too large"])
@pytest.mark.parametrize(("scheme", "which"), FILES)
def test_damage_inside_is_reported_and_stops_nothing(root, scheme: str, which: str, kind: str):
    uri = written(scheme, root)
    scenes = open_scenes(f"{uri},max_pixels=7000")
    file = file_of(root, getattr(ROWS[scheme], which), "b")
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-60])
    elif kind == "garbage":
        file.write_bytes(b"\x80\x04cos\nsystem\n" + bytes(99))
    else:
        image = Image.open(file)
        image.resize((20, 30) if kind == "size" else (300, 300), Image.Resampling.NEAREST).save(file)
    with pytest.raises(BrokenSceneError) as caught:
        scenes[1]
    said = {"cut": "cannot be read", "garbage": "cannot be read", "size": "both must have the same size"}
    assert said.get(kind, "90,000 pixels, above the limit of 7,000") in str(caught.value)
    assert file.name in str(caught.value)
    report = check_scenes(scenes)
    assert report.usable == (0, 2, 3)
    assert [scene.id for scene in report.broken] == [scenes.ids[1]]


@pytest.mark.parametrize("scheme", WITH_MASKS)
@pytest.mark.parametrize("kind", ["jpeg", "rgba"])
def test_masks_that_may_have_lost_their_ids_are_refused(root, scheme: str, kind: str):
    scenes = open_scenes(written(scheme, root))
    file = file_of(root, ROWS[scheme].mask, "b")
    colours = Image.fromarray(np.stack([instances_of("b")] * 3, -1))
    colours.convert("RGBA" if kind == "rgba" else "RGB").save(file, "PNG" if kind == "rgba" else "JPEG")
    with pytest.raises(BrokenSceneError, match=r"mode RGBA; expected|saved as JPEG, which may change ids"):
        scenes[1]


# --- pictures as people keep them ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_pictures_of_other_colour_modes_become_rgb(root, scheme: str, mode: str):
    def other(image: np.ndarray, kind: str) -> bytes:
        stream = io.BytesIO()
        as_png = kind == "PNG" or mode == "RGBA"  # a PNG in a file called .jpg is a classic too
        picture = Image.fromarray(image).convert("RGB" if as_png and mode == "CMYK" else mode)
        picture.save(stream, "PNG" if as_png else kind)
        return stream.getvalue()

    scene = open_scenes(written(scheme, root, encode=other))[0]
    assert scene.image.shape == (*SIZES["a"], 3)
    assert scene.image.dtype == np.uint8
    if mode == "L":
        assert (scene.image[..., 0] == scene.image[..., 2]).all()
    else:
        assert abs(scene.image.astype(int) - image_of("a")).mean() < 6


@pytest.mark.parametrize("scheme", ALL)
def test_pictures_are_turned_as_exif_says_where_that_fits_the_mask(root, scheme: str):
    def turned(image: np.ndarray, kind: str) -> bytes:
        """Stored lying on its side, so that viewers show `image`."""
        exif = Image.Exif()
        exif[0x0112] = 6
        stream = io.BytesIO()
        Image.fromarray(np.rot90(image).copy()).save(stream, kind, exif=exif, quality=98)
        assert ImageOps.exif_transpose(Image.open(stream)).size == image.shape[1::-1]
        return stream.getvalue()

    scenes = open_scenes(written(scheme, root, encode=turned))
    for position, name in enumerate(sorted(SIZES)):
        assert scenes.size_of(position) == scenes[position].size == SIZES[name]
        assert abs(scenes[position].image.astype(int) - image_of(name)).mean() < 6
        assert same_partition(scenes[position].instances, instances_of(name))


@pytest.mark.parametrize("scheme", ALL)
def test_a_bomb_of_pixels_is_refused_without_being_unpacked(root, scheme: str):
    """A picture of 400 million pixels in some kilobytes."""
    header = encode(np.zeros((1, 1), np.uint8), "PNG")
    wide = (20_000).to_bytes(4, "big")
    ihdr = b"IHDR" + wide + wide + header[24:29]
    bomb = header[:12] + ihdr + zlib.crc32(ihdr).to_bytes(4, "big") + header[33:]
    scenes = open_scenes(written(scheme, root, encode=lambda image, kind: bomb))
    with pytest.raises(BrokenSceneError, match=r"400,000,000 pixels, above the limit of 300,000,000"):
        scenes[0]
    assert check_scenes(scenes).usable == ()
