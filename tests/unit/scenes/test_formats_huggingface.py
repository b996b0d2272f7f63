"""Hugging Face datasets as scenes: columns, splits, masks of every kind, and nothing read or run from elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from written_formats import (
    SIZES,
    encode,
    image_of,
    instances_of,
    palette,
    put,
)

from bindkit.errors import BrokenSceneError, SceneSetError
from bindkit.pipeline.parameters import absolute_scenes
from bindkit.scenes import check_scenes, open_scenes, split_scenes, subset


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


def dataset(**columns):
    """Pictures in a column of images; those without bytes, which would be put in, as the same without that name."""
    import datasets

    made = datasets.Dataset.from_dict(columns)
    for name, values in columns.items():
        if isinstance(values[0], dict) and all(value["bytes"] for value in values):
            made = made.cast_column(name, datasets.Image())
    return made


def held(content: bytes | None, path: str | None = None) -> dict:
    return {"bytes": content, "path": path}


PICTURE, MASK = held(encode(image_of("a"), "JPEG")), instances_of("a")


def opened(root: Path, options: str = "", **columns):
    dataset(**{"image": [PICTURE], "mask": [MASK.tolist()]} | columns).save_to_disk(str(root))
    return open_scenes(f"hf:{root}{options}")


@pytest.mark.parametrize(
    ("mask", "factor"),
    [
        (MASK.tolist(), 1),
        ((MASK.astype(int) * 10**9).tolist(), None),
        (held(palette(MASK)), 1),
        (held(encode(MASK, "PNG")), 1),
        (held(encode(MASK.astype(np.uint16) * 700, "PNG")), 700),
        (held(encode(np.stack([0 * MASK, MASK, 0 * MASK], -1), "PNG")), 256),
    ],
    ids=["array", "large", "palette", "gray", "16-bit", "RGB"],
)
def test_masks_of_every_kind_give_their_ids(root, mask, factor):
    scene = opened(root, mask=[mask])[0]
    wanted = MASK.astype(int) * factor if factor else np.unique(MASK.astype(int) * 10**9, return_inverse=True)[1]
    assert (scene.instances == wanted.reshape(MASK.shape)).all()
    assert not scene.classes.any()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [held(b"\x80\x04cos")]}, "cannot be read"),
        ({"image": [PICTURE, held(None)], "mask": [MASK.tolist()] * 2}, "holds no picture"),
        ({"mask": [held(encode(MASK, "JPEG"))]}, "saved as JPEG, which may change ids"),
        ({"mask": [[[1, 2], [3]]]}, "cannot be read"),
        ({"mask": [[1, 2]]}, r"int64 \[2\]; expected whole numbers"),
        ({"mask": [[[0.5, 1.0]]]}, r"float64 \[1, 2\]; expected whole numbers"),
        ({"mask": [MASK.T.tolist()]}, "both must have the same size"),
        ({"mask": [(-MASK.astype(int)).tolist()]}, "ids below 0"),
        ({"mask": [["a", "b"]]}, "expected whole numbers"),
    ],
)
def test_rows_that_cannot_be_read_are_broken_scenes(root, columns, said: str):
    scenes = opened(root, **columns)
    with pytest.raises(BrokenSceneError, match=said) as caught:
        scenes[-1]
    assert scenes.ids[-1] in str(caught.value)
    assert len(check_scenes(scenes).broken) >= 1


@pytest.mark.parametrize("name", ["/{}/secret.jpg", "../secret.jpg", "C:\\secret.jpg"])
def test_a_row_reads_no_file_outside_the_data_set(root, name: str):
    secret = put(root.parent / "secret.jpg", encode(image_of("a"), "JPEG"))
    scenes = opened(root, image=[held(None, name.format(secret.parent).replace("//", "/"))])
    with pytest.raises(BrokenSceneError, match="leads out of the data set"):
        scenes[0]
    inside = put(root / "inside.jpg", secret.read_bytes())
    assert opened(root, image=[held(None, str(inside))])[0].size == SIZES["a"]


def test_a_data_set_whose_own_files_lie_elsewhere_is_refused(root):
    opened(root)
    state = json.loads((root / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../other.arrow"
    (root / "state.json").write_text(json.dumps(state))
    with pytest.raises(SceneSetError, match="leads out of the data set"):
        open_scenes(f"hf:{root}")


def test_columns_and_splits_are_chosen_and_what_there_is_is_listed(root):
    import datasets

    part = dataset(photo=[PICTURE], objects=[MASK.tolist()])
    datasets.DatasetDict({"train": part, "test": part, "dev": part}).save_to_disk(str(root))
    with pytest.raises(SceneSetError, match=r"no split 'validation', but train, test, dev; write split=NAME"):
        open_scenes(f"hf:{root}")
    with pytest.raises(SceneSetError, match=r"no column 'image', but photo, objects; write image=COLUMN"):
        open_scenes(f"hf:{root},split=dev")
    scenes = open_scenes(f"hf:{root},split=dev,image=photo,mask=objects,void=3+4")
    assert scenes.ids == ("dev/000000",)
    assert scenes.official_splits is None
    assert set(np.unique(scenes[0].instances)) == {0, 1, 2}
    assert open_scenes(scenes.uri).uri == scenes.uri


def test_folders_of_parquet_need_no_network(root):
    part = dataset(image=[PICTURE, PICTURE], mask=[held(palette(MASK))] * 2)
    for config in ("small", "large"):
        (root / config).mkdir(parents=True)
        part.to_parquet(root / config / "train-00000-of-00001.parquet")
        part.select([0]).to_parquet(root / config / "validation-00000-of-00001.parquet")
    with pytest.raises(SceneSetError, match="several configurations: add config=FOLDER"):
        open_scenes(f"hf:{root}")
    scenes = open_scenes(f"hf:{root},config=small")
    assert scenes.ids == ("train/000000", "train/000001", "validation/000000")
    assert scenes.official_splits == ("training", "training", "validation")
    assert (scenes[2].instances == MASK).all()


def test_a_name_on_the_hub_stays_one_when_paths_are_made_absolute(root):
    assert absolute_scenes("hf:user/name,split=dev", root) == "hf:user/name,split=dev"
    (root / "user" / "name").mkdir(parents=True)
    assert absolute_scenes("hf:user/name,split=dev", root) == f"hf:{root}/user/name,split=dev"


def test_what_the_hub_cannot_give_is_named(root):
    with pytest.raises(SceneSetError, match=r"hf:nobody/nothing cannot be opened .*; expected a directory"):
        open_scenes("hf:nobody/nothing")


def test_code_in_a_directory_is_not_run(root):
    marker = root / "ran"
    put(root / "data.py", f"open({str(marker)!r}, 'w')")
    with pytest.raises(SceneSetError, match="holds no Parquet file"):
        open_scenes(f"hf:{root}")
    assert not marker.exists()


def test_rows_of_one_picture_or_group_stay_together(root, tmp_path):
    """A row an object is a common layout; so is a column that names the video."""
    rng = np.random.default_rng(0)
    pictures = [held(encode(rng.integers(0, 255, (64, 96, 3)).astype(np.uint8), "PNG")) for _ in range(8)]
    rows = {"image": [one for one in pictures for _ in range(3)], "mask": [MASK.tolist()] * 24}
    scenes = opened(root, **rows, video=[f"v{k // 6}" for k in range(24)])
    for chosen, n_units in ((scenes, 8), (subset(scenes, range(1, 24)), 8)):
        split = split_scenes(chosen)
        assert len(split.groups) == n_units
        first = [(int(name.split("/")[1])) // 3 for name in chosen.ids]
        sides = [{first[k] for k in split.positions(side)} for side in ("train", "validation", "test")]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    by_video = open_scenes(f"hf:{root},group=video")
    assert [len(members) for members in split_scenes(by_video).groups] == [6, 6, 6, 6]
    with pytest.raises(SceneSetError, match="no column 'place'"):
        open_scenes(f"hf:{root},group=place")


def test_a_border_is_said_as_of_a_folder(root):
    mask = np.where(np.pad(MASK[1:-1, 1:-1], 1) == 1, 1, 0)
    inner = mask.astype(bool)
    grown = np.zeros_like(inner)
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        grown |= np.roll(inner, (down, right), (0, 1))
    mask[grown & ~inner] = 255
    scenes = opened(root, mask=[mask.tolist()])
    assert [remark for remark in scenes[0].remarks if "void=255" in remark]
    assert scenes[0].instances.max() == 255
    assert open_scenes(f"hf:{root},void=255")[0].instances.max() == 1


def test_no_split_leads_out(root, tmp_path):
    dataset(image=[PICTURE], mask=[MASK.tolist()]).save_to_disk(str(tmp_path / "secret"))
    put(root / "dataset_dict.json", json.dumps({"splits": ["../secret"]}))
    with pytest.raises(SceneSetError, match="secret"):
        open_scenes(f"hf:{root}")


def test_a_parquet_file_that_was_replaced_under_its_old_time_is_read_anew(root):
    root.mkdir()
    for number in (1, 7):
        mask = np.where(MASK == 1, number, 0)
        dataset(image=[PICTURE], mask=[mask.tolist()]).to_parquet(root / "train-00000.parquet")
        os.utime(root / "train-00000.parquet", (1e9, 1e9))
        assert open_scenes(f"hf:{root}")[0].instances.max() == number
