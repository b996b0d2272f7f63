"""What is special in a format: void, crowds, overlaps, numbers that two classes share, videos, columns; and safety."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from written_formats import (
    ROWS,
    SIZES,
    Plan,
    coco_content,
    encode,
    image_of,
    instances_of,
    palette,
    put,
    runs_of,
    write_cityscapes,
    write_davis,
    write_lists,
    write_voc,
)

from bindkit.errors import BrokenSceneError, InvalidParameterError, SceneSetError
from bindkit.scenes import check_scenes, open_scenes, split_scenes, subset
from bindkit.scenes.formats.coco import packed_mask, run_lengths
from bindkit.scenes.reading import leads_out

PLAN = Plan((1, 1, 2, 3))
OUTSIDE = [
    "../secret",
    "../../data2/secret",
    "/etc/secret",
    "C:\\secret",
    "c:secret",
    "..\\secret",
    "\\secret",
    "a/../../b",
]


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


# --- void, groups and shared numbers ---------------------------------------------------------------


def test_void_of_voc_is_unlabelled_in_both_masks(root):
    uri = write_voc(root, PLAN)
    objects, classes = instances_of("a"), PLAN.classes("a")
    objects[0:2], classes[0:2] = 255, 255
    objects[10, 10], classes[10, 11] = 255, 255  # in one mask alone
    put(root / "VOC2012" / "SegmentationObject" / "a.png", palette(objects))
    put(root / "VOC2012" / "SegmentationClass" / "a.png", palette(classes))
    scene = open_scenes(uri)[0]
    void = (objects == 255) | (classes == 255)
    assert (scene.instances == np.where(void, 0, instances_of("a"))).all()
    assert (scene.classes == np.where(void, 0, PLAN.classes("a"))).all()
    assert open_scenes(uri).class_names[15] == "person"


def test_void_of_davis_is_unlabelled(root):
    uri = write_davis(root, PLAN)
    mask = instances_of("a")
    mask[:2] = 255
    put(root / "Annotations" / "480p" / "a" / "00000.png", palette(mask))
    assert (open_scenes(uri)[0].instances == np.where(mask == 255, 0, mask)).all()


def test_cityscapes_regions_and_groups_are_no_objects(root):
    uri = write_cityscapes(root, Plan((26, 26, 24, 33)))
    values = np.zeros(SIZES["a"], np.uint16)
    parts = {26001: 26001, 26002: 26002, 33000: 33000, 24255: 24255, 7: 0, 26: 0, 7001: 0, 4000: 0, 65535: 0, 34001: 0}
    for k, value in enumerate(parts):
        values[5 * k : 5 * k + 5] = value
    put(root / "gtFine" / "train" / "ulm" / "a_gtFine_instanceIds.png", encode(values, "PNG"))
    scene = open_scenes(uri)[0]
    for k, wanted in enumerate(parts.values()):
        assert (scene.instances[5 * k : 5 * k + 5] == wanted).all()
        assert (scene.classes[5 * k : 5 * k + 5] == wanted // 1000).all()
    assert open_scenes(uri).class_names[26] == "car"


def test_two_classes_that_share_a_number_are_two_objects(root):
    uri = ROWS["ade20k-instances"].write(root, Plan((4, 4, 100, 9)))
    colours = np.zeros((*SIZES["a"], 3), np.uint8)
    colours[:10], colours[10:20], colours[20:30], colours[30:40] = (4, 7, 1), (8, 7, 2), (0, 7, 3), (9, 0, 4)
    put(root / "annotations_instance" / "training" / "a.png", encode(colours, "PNG"))
    scenes = open_scenes(uri)
    found = [scenes[0].instances[row, 0] for row in (5, 15, 25, 35, 45)]
    assert len(set(found[:3])) == 3
    assert 0 not in found[:3]
    assert found[3:] == [0, 0]
    assert [scenes[0].classes[row, 0] for row in (5, 15, 25, 35, 45)] == [4, 8, 0, 0, 0]
    assert (scenes.class_names[4], scenes.class_names[100], len(scenes.class_names)) == ("person", "flag", 100)


# --- COCO ------------------------------------------------------------------------------------------


def box(top: int, bottom: int, left: int, right: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def one_picture(root: Path, annotations: list[dict], categories: tuple[int, ...] = (3, 900)) -> str:
    put(root / "a.jpg", encode(image_of("a"), "JPEG"))
    named = [{"id": class_id, "name": f"thing {class_id}"} for class_id in categories]
    images = [{"id": 1, "file_name": "a.jpg", "height": 64, "width": 96}]
    filled = [{"image_id": 1, "category_id": 3, "iscrowd": 0} | one for one in annotations]
    put(root / "mine.json", json.dumps({"images": images, "annotations": filled, "categories": named}))
    return f"coco:{root},annotations=mine.json"


def test_smaller_objects_lie_on_top_and_of_equal_ones_the_later(root):
    uri = one_picture(
        root,
        [
            {"segmentation": box(10, 20, 10, 20)},
            {"segmentation": box(0, 40, 0, 40), "category_id": 900},
            {"segmentation": box(15, 25, 15, 25)},
        ],
    )
    wanted = np.zeros((64, 96), int)
    wanted[:40, :40], wanted[10:20, 10:20], wanted[15:25, 15:25] = 2, 1, 3
    scenes = open_scenes(uri)
    assert scenes.ids == ("a",)
    assert scenes.official_splits is None
    assert (scenes[0].instances == wanted).all()
    assert (scenes[0].classes == np.array([0, 3, 900, 3])[wanted]).all()
    assert scenes.class_names == {3: "thing 3", 900: "thing 900"}
    assert open_scenes(scenes.uri).uri == scenes.uri


def test_crowds_are_unlabelled_but_for_objects_in_them(root):
    crowd = np.zeros((64, 96), bool)
    crowd[30:60, 10:90] = True
    runs = {"size": [64, 96], "counts": runs_of(crowd)}
    uri = one_picture(
        root, [{"segmentation": runs, "iscrowd": 1, "category_id": 900}, {"segmentation": box(40, 50, 20, 30)}]
    )
    wanted = np.zeros((64, 96), int)
    wanted[40:50, 20:30] = 2
    assert (open_scenes(uri)[0].instances == wanted).all()
    with pytest.raises(SceneSetError, match=r"a\.jpg has no annotated object, only crowd regions"):
        open_scenes(one_picture(root, [{"segmentation": runs, "iscrowd": 1}]))


def test_an_object_of_several_polygons_is_one(root):
    uri = one_picture(root, [{"segmentation": box(0, 5, 0, 5) + box(20, 25, 50, 60)}])
    instances = open_scenes(uri)[0].instances
    assert instances[2, 2] == instances[22, 55] == 1
    assert np.count_nonzero(instances) == 25 + 50


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_packed_run_lengths_are_those_of_pycocotools(density: float):
    from pycocotools import mask as coco

    mask = np.random.default_rng(3).random((190, 210)) < density
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert run_lengths(packed) == runs_of(mask)
    for counts in (packed, runs_of(mask)):
        assert (coco.decode(packed_mask({"size": [190, 210], "counts": counts}, 190, 210)) == mask).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [64, 96], "counts": [5, 3]},  # too few: pycocotools leaves the rest to what memory held
        {"size": [64, 96], "counts": ""},
        {"size": [64, 96], "counts": [5, 6140]},
        {"size": [64, 96], "counts": [-5, 6149]},
        {"size": [96, 64], "counts": [6144]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [64, 96], "counts": "\x7f\xff"},
        {"size": [64, 96], "counts": "o" * 10**6},
        {"size": [64, 96], "counts": None},
        {"counts": [6144]},
        [[0, 0, 1e9, 0, 1e9, 1e9]],  # takes all memory
        [[0, 0, float("nan"), 0, 5, 5]],  # ends the process
        [[0, 0, float("inf"), 0, 5, 5]],
        [[0, 0, 5, 5]],
        [[0, 0, 5, 5, 5]],
        [["a", "b", "c", "d", "e", "f"]],
        [],
        [3],
        "text",
        None,
    ],
    ids=repr,
)
def test_segmentations_that_are_none_make_a_broken_scene(root, segmentation):
    scenes = open_scenes(one_picture(root, [{"segmentation": segmentation}]))
    report = check_scenes(scenes)
    assert [scene.id for scene in report.broken] == ["a"]
    assert "annotation 1 of a: " in report.broken[0].reason


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as COCO's instances"),
        ("[]", "cannot be read as COCO's instances"),
        ('{"images": [], "categories": []}', "annotations"),
        (
            '{"images": [], "categories": [], "annotations": [{"image_id": 7, "segmentation": 0, "category_id": 1}]}',
            "7",
        ),
        ('{"images": [], "categories": [{"id": 0, "name": "x"}], "annotations": []}', "class ids are 1 to"),
        ('{"images": [], "categories": [], "annotations": []}', "no usable scene"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_none_of_cocos_is_named(root, content: str, said: str):
    put(root / "mine.json", content)
    with pytest.raises(SceneSetError, match=said):
        open_scenes(f"coco:{root},annotations=mine.json")


def test_an_object_of_an_unnamed_class_and_a_picture_of_absurd_size_are_broken_scenes(root):
    scenes = open_scenes(one_picture(root, [{"segmentation": box(0, 9, 0, 9), "category_id": 4}]))
    with pytest.raises(BrokenSceneError, match="an object of class 4, which has no name"):
        scenes[0]
    content = coco_content(PLAN, ("a",))
    content["images"][0]["height"] = 10**7
    put(root / "mine.json", json.dumps(content))
    with pytest.raises(BrokenSceneError, match=r"10000000 x 96 px; the limit is 300,000,000"):
        open_scenes(f"coco:{root},annotations=mine.json")[0]


def test_pictures_without_an_object_are_left_out_by_name(root):
    uri = ROWS["coco"].write(root, Plan((1, 1, 2, 3), masks={"b": np.zeros(SIZES["b"], np.uint8)}))
    scenes = open_scenes(uri)
    assert scenes.ids == ("train2017/a", "train2017/c", "val2017/d")
    assert [scene.id for scene in scenes.broken] == ["train2017/b"]
    assert "b.jpg has no annotated object" in scenes.broken[0].reason


def test_several_years_are_not_mixed(root):
    uri = ROWS["coco"].write(root, PLAN)
    put(root / "annotations" / "instances_train2014.json", "{}")
    with pytest.raises(SceneSetError, match=r"instances_train2014\.json, instances_train2017\.json; choose"):
        open_scenes(uri)
    scenes = open_scenes(f"{uri},annotations=annotations/instances_train2017.json,images=train2017")
    assert scenes.ids == ("train2017/a", "train2017/b", "train2017/c")
    with pytest.raises(SceneSetError, match="images= goes with annotations="):
        open_scenes(f"{uri},images=train2017")


@pytest.mark.parametrize(("uri", "library", "extra"), [("coco:{}", "pycocotools", "coco"), ("hf:{}", "datasets", "hf")])
def test_a_missing_library_is_named_with_what_to_install(root, monkeypatch, uri: str, library: str, extra: str):
    ROWS[extra].write(root, PLAN)
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SceneSetError, match=rf"pip install 'bindkit\[{extra}\]'"):
        open_scenes(uri.format(root))


def test_opening_scenes_imports_no_library_that_one_format_alone_needs():
    code = "import sys, bindkit.scenes; print(sorted({'pycocotools', 'datasets', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- videos ----------------------------------------------------------------------------------------


@pytest.fixture
def videos(root) -> str:
    """Six videos of seven frames, two of them official validation."""
    for k in range(6):
        for frame in range(7):
            place = Path("480p", f"video{k}", f"{frame:05d}")
            put(
                root / "JPEGImages" / place.with_suffix(".jpg"), encode(image_of("a") + np.uint8(7 * k + frame), "JPEG")
            )
            put(root / "Annotations" / place.with_suffix(".png"), palette(instances_of("a")))
    put(root / "ImageSets" / "2017" / "train.txt", "video3\nvideo0\nvideo1\nvideo2\n\n")
    put(root / "ImageSets" / "2017" / "val.txt", "video4\nvideo5\n")
    return f"davis:{root}"


def sides_of(scenes, split) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = {}
    for side in ("train", "validation", "test"):
        for position in split.positions(side):
            sides.setdefault(scenes.ids[position].split("/")[0], set()).add(side)
    return sides


def test_frames_of_a_video_lie_on_one_side_without_being_asked_to(videos):
    scenes = open_scenes(videos)
    assert scenes.ids[0] == "video3/00000"
    assert len(scenes) == 42
    split = split_scenes(scenes)
    sides = sides_of(scenes, split)
    assert set(map(len, sides.values())) == {1}
    assert sides["video4"] == sides["video5"] == {"test"}
    assert {side for name in ("video0", "video1", "video2", "video3") for side in sides[name]} == {
        "train",
        "validation",
    }
    assert "42 scenes in 6 groups (the data set's own)" in split.notices
    part = subset(scenes, range(0, 28, 2))
    assert set(map(len, sides_of(part, split_scenes(part)).values())) == {1}
    asked = sides_of(scenes, split_scenes(scenes, "^video[02]"))  # what is asked for joins more, and parts nothing
    assert set(map(len, asked.values())) == {1}
    assert set(map(len, sides_of(scenes, split_scenes(scenes, r"^video[02]/00000")).values())) == {1}


def test_every_so_many_th_frame_is_taken_from_the_first_on(videos):
    scenes = open_scenes(f"{videos},every=3")
    assert scenes.ids[:4] == ("video3/00000", "video3/00003", "video3/00006", "video0/00000")
    assert open_scenes(scenes.uri).ids == scenes.ids
    with pytest.raises(InvalidParameterError, match="every=0 is not understood"):
        open_scenes(f"{videos},every=0")


def test_a_video_without_frames_is_named(videos, root):
    put(root / "ImageSets" / "2017" / "val.txt", "video4\nnone\n")
    (broken,) = open_scenes(videos).broken
    assert broken.id == "none"
    assert "the file is missing" in broken.reason


# --- paths that a data set's own files name --------------------------------------------------------


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out(root, name: str):
    assert leads_out(root / "inner" / name, root / "inner")
    assert leads_out(root / "a" / "b..jpg", root) is None


@pytest.mark.parametrize("scheme", ["coco", "voc", "davis"])
@pytest.mark.parametrize("name", [*OUTSIDE, "nul\0byte"])
def test_files_outside_are_refused_by_name_and_not_read(root, monkeypatch, scheme: str, name: str):
    uri = ROWS[scheme].write(root, PLAN)
    for place in root.parent, root.parent / "data2":
        put(place / "secret.jpg", encode(image_of("a"), "JPEG"))
    if scheme == "coco":
        content = coco_content(PLAN, ("a", "b"))
        content["images"][1]["file_name"] = f"{name}.jpg"
        put(root / "annotations" / "instances_train2017.json", json.dumps(content))
    else:
        lists = next(root.rglob("ImageSets")) / ("Segmentation" if scheme == "voc" else "2017")
        put(lists / "train.txt", f"a\n{name}\n")
    scenes = open_scenes(uri)
    (broken,) = scenes.broken
    assert "leads out of the data set" in broken.reason
    assert len(scenes) == 2
    assert all(file.is_relative_to(root) for k in range(2) for file in scenes.sources(k))


@pytest.mark.parametrize(
    "option", ["annotations=../mine.json", "annotations=/etc/mine.json", "annotations=a.json,images=.."]
)
def test_options_of_coco_stay_inside_too(root, option: str):
    root.mkdir()
    with pytest.raises(SceneSetError, match="leads out of the data set"):
        open_scenes(f"coco:{root},{option}")


def test_links_of_the_data_sets_owner_are_followed(root):
    uri = write_voc(root, PLAN)
    (root / "VOC2012" / "JPEGImages").rename(root.parent / "elsewhere")
    (root / "VOC2012" / "JPEGImages").symlink_to(root.parent / "elsewhere")
    assert len([*open_scenes(uri)]) == 4


def test_a_name_that_is_listed_twice_is_one_scene(root):
    uri = write_voc(root, PLAN)
    write_lists(root / "VOC2012" / "ImageSets" / "Segmentation", PLAN)
    put(root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt", "d\na\n")
    scenes = open_scenes(uri)
    assert scenes.ids == ("a", "b", "c", "d")
    assert [(scene.id, "second scene of this name" in scene.reason) for scene in scenes.broken] == [("a", True)]
    put(root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt", b"\xff\xfe\x00")
    with pytest.raises(SceneSetError, match=r"val\.txt cannot be read"):
        open_scenes(uri)


def test_two_pictures_of_one_id_are_no_guess(root):
    content = coco_content(PLAN, ("a", "b"))
    for one in content["images"]:
        one["id"] = 1
    for one in content["annotations"]:
        one["image_id"] = 1
    put(root / "mine.json", json.dumps(content))
    with pytest.raises(SceneSetError, match="two pictures of one id"):
        open_scenes(f"coco:{root},annotations=mine.json")


def test_a_size_that_is_no_number_is_named(root):
    content = coco_content(PLAN, ("a",))
    content["images"][0]["height"] = float("inf")
    put(root / "mine.json", json.dumps(content))
    with pytest.raises(SceneSetError, match="cannot be read as COCO's instances"):
        open_scenes(f"coco:{root},annotations=mine.json")


def test_annotations_that_change_while_they_are_open_are_not_read_on(root):
    """What was read at opening would else be kept under what the file holds now."""
    scenes = open_scenes(ROWS["coco"].write(root, PLAN))
    assert scenes[0].instances.max() > 0
    file = scenes.sources(0)[1]
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(SceneSetError, match="has changed since it was opened; open the scenes again"):
        scenes[0]
