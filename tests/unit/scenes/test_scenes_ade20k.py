"""ADE20K's full release: round trips through its layout, the index with and without, names, and two real scenes."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bindkit.errors import BrokenSceneError, InvalidParameterError, SceneSetError, UnsafePickleError
from bindkit.scenes import check_scenes, open_scenes, write_ade20k
from bindkit.scenes.formats import ade20k
from bindkit.scenes.formats.ade20k import map_to_benchmark
from bindkit.scenes.formats.ade20k_writer import RELEASE, encode_masks
from bindkit.scenes.scene import Scene

GENERATED = "synthetic:n=6,seed=3"
SPLITS = ["training", "validation", "training", "training", "validation", "training"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Six scenes in ADE20K's layout with index and benchmark table; tests that change it work on a copy."""
    directory = tmp_path_factory.mktemp("data") / RELEASE
    return write_ade20k(open_scenes(GENERATED), directory, SPLITS, index=True, benchmark=True)


@pytest.fixture
def release(written: Path, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / RELEASE))


def file_of(root: Path, name: str) -> Path:
    return next(root.rglob(name))


def same_up_to_names(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two instance masks show the same objects under other numbers, 0 being 0 in both."""
    pairs = np.unique(np.stack([left.ravel(), right.ravel()]), axis=1)
    one_to_one = all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
    return one_to_one and ((left == 0) == (right == 0)).all()


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("benchmark", [True, False])
def test_what_is_written_is_read_back(release: Path, index: bool, benchmark: bool):
    if not index:
        (release / "index_ade20k.pkl").unlink()
    if not benchmark:
        (release / "objectInfo150.csv").unlink()
    generated, scenes = open_scenes(GENERATED), open_scenes(f"ade20k:{release}")
    order = [0, 2, 3, 5, 1, 4]
    assert scenes.ids == (*(f"ADE_train_0000000{k}" for k in (1, 2, 3, 4)), "ADE_val_00000001", "ADE_val_00000002")
    assert scenes.official_splits == (*["training"] * 4, *["validation"] * 2)
    assert scenes.broken == ()
    for position, source in enumerate(order):
        wanted, scene = generated[source], scenes[position]
        assert (scene.classes == wanted.classes).all()
        assert same_up_to_names(scene.instances, wanted.instances)
        difference = abs(scene.image.astype(int) - wanted.image.astype(int))
        assert difference.mean() < 4  # JPEG of quality 95 on grainy pictures
        assert scenes.size_of(position) == wanted.size
        for class_id in np.unique(wanted.classes)[1:]:
            assert scenes.class_names[int(class_id)] == generated.class_names[int(class_id)]
    if benchmark:
        assert scenes.benchmark_classes == {class_id: class_id for class_id in scenes.class_names}
    else:
        assert scenes.benchmark_classes is None


def test_the_directory_that_holds_the_release_is_as_good(release: Path):
    assert open_scenes(f"ade20k:{release.parent}").uri == open_scenes(f"ade20k:{release}").uri
    shutil.copytree(release, release.parent / "second")
    with pytest.raises(SceneSetError, match=f"several releases of ADE20K .*{RELEASE}, second"):
        open_scenes(f"ade20k:{release.parent}")


def test_the_scene_parsing_benchmark_is_told_apart(tmp_path):
    (tmp_path / "ADEChallengeData2016" / "annotations" / "training").mkdir(parents=True)
    with pytest.raises(SceneSetError, match=r"ADEChallengeData2016.*no instances apart.*full release"):
        open_scenes(f"ade20k:{tmp_path}/ADEChallengeData2016")


# --- masks -----------------------------------------------------------------------------------------


def test_masks_are_encoded_as_the_release_encodes_them():
    instances = np.array([[0, 1, 2, 7, 7]], np.int32)
    classes = np.array([[0, 1, 255, 256, 3687]], np.int32)
    encoded = encode_masks(Scene("x", np.zeros((1, 5, 3), np.uint8), instances, classes))
    assert encoded[0, :, 2].tolist() == [0, 85, 170, 255, 255]
    assert encoded[0, :, 0].tolist() == [0, 0, 0, 10, 140]
    assert encoded[0, :, 1].tolist() == [0, 1, 255, 0, 103]


def test_up_to_255_instances_keep_values_of_their_own():
    instances = np.arange(256, dtype=np.int32)[None]
    encoded = encode_masks(Scene("x", np.zeros((1, 256, 3), np.uint8), instances, instances))
    assert len(np.unique(encoded[..., 2])) == 256
    too_many = np.arange(257, dtype=np.int32)[None]
    with pytest.raises(InvalidParameterError, match="256 instances"):
        encode_masks(Scene("x", np.zeros((1, 257, 3), np.uint8), too_many, too_many))
    high = np.array([[6656]], np.int32)
    with pytest.raises(InvalidParameterError, match="class ids up to 6656"):
        encode_masks(Scene("x", np.zeros((1, 1, 3), np.uint8), high, high))


def test_red_counts_in_tens_and_blue_is_the_instance(release: Path):
    mask = file_of(release, "ADE_train_00000001_seg.png")
    pixels = np.array(Image.open(mask))
    pixels[0, :3] = [[119, 5, 200], [9, 0, 0], [10, 255, 1]]
    Image.fromarray(pixels).save(mask)
    scene = open_scenes(f"ade20k:{release}")[0]
    assert scene.classes[0, :3].tolist() == [11 * 256 + 5, 0, 511]
    assert scene.instances[0, :3].tolist() == [200, 0, 1]


@pytest.mark.parametrize("split", ["test", ["training"], ["training"] * 5 + ["val"]])
def test_other_splits_are_refused(tmp_path, split):
    with pytest.raises(InvalidParameterError, match="training, validation"):
        write_ade20k(open_scenes(GENERATED), tmp_path, split)


# --- broken and missing files ----------------------------------------------------------------------


def test_missing_and_empty_files_are_listed_whether_or_not_there_is_an_index(release: Path):
    file_of(release, "ADE_train_00000001.jpg").unlink()
    file_of(release, "ADE_train_00000002_seg.png").unlink()
    file_of(release, "ADE_val_00000001.jpg").write_bytes(b"")
    for index in (True, False):
        if not index:
            (release / "index_ade20k.pkl").unlink()
        scenes = open_scenes(f"ade20k:{release}")
        assert scenes.ids == ("ADE_train_00000003", "ADE_train_00000004", "ADE_val_00000002")
        assert scenes.official_splits == ("training", "training", "validation")
        reasons = {scene.id: scene.reason for scene in scenes.broken}
        assert len(scenes.broken) == len(reasons) == 3
        assert ("in the index but missing" if index else "image is missing") in reasons["ADE_train_00000001"]
        assert reasons["ADE_train_00000002"].endswith("ADE_train_00000002_seg.png: the file is missing")
        assert reasons["ADE_val_00000001"].endswith("ADE_val_00000001.jpg: the file is empty")


def test_scenes_that_are_gone_altogether_are_known_from_the_index(release: Path):
    shutil.rmtree(release / "images" / "ADE" / "validation")
    scenes = open_scenes(f"ade20k:{release}")
    assert [scene.id for scene in scenes.broken] == ["ADE_val_00000001", "ADE_val_00000002"]


def test_scenes_on_disk_that_the_index_does_not_list_are_used(release: Path):
    place = release / "images" / "ADE" / "training" / "urban"
    place.mkdir()
    for suffix in (".jpg", "_seg.png"):
        shutil.copy(file_of(release, f"ADE_train_00000001{suffix}"), place / f"ADE_train_00000000{suffix}")
    scenes = open_scenes(f"ade20k:{release}")
    assert scenes.ids[:2] == ("ADE_train_00000000", "ADE_train_00000001")


def test_two_images_of_one_name_and_per_object_folders_do_no_harm(release: Path):
    first = file_of(release, "ADE_train_00000001.jpg")
    other = release / "images" / "ADE" / "training" / "other"
    other.mkdir()
    for suffix in (".jpg", "_seg.png"):
        shutil.copy(first.with_name(f"ADE_train_00000001{suffix}"), other / f"ADE_train_00000001{suffix}")
    objects = first.with_suffix("")
    objects.mkdir()
    (objects / "instance_000_ADE_train_00000001.jpg").write_bytes(b"not looked at")
    (first.parent / "._ADE_train_00000009.jpg").write_bytes(b"left by an archive tool")
    scenes = open_scenes(f"ade20k:{release}")
    assert len(scenes) == 6
    assert len(scenes.broken) == 1
    assert "a second image of this name" in scenes.broken[0].reason


def test_linked_folders_are_followed_once(release: Path):
    elsewhere = release.parent / "disk2"
    shutil.move(release / "images" / "ADE" / "validation", elsewhere)
    (release / "images" / "ADE" / "validation").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    scenes = open_scenes(f"ade20k:{release}")
    assert len(scenes) == 6
    assert scenes.broken == ()


@pytest.mark.parametrize("kind", ["cut", "garbage", "size", "gray"])
def test_damage_inside_files_is_one_named_error_and_stops_nothing(release: Path, kind: str):
    image = file_of(release, "ADE_train_00000002.jpg")
    mask = image.with_name(image.stem + "_seg.png")
    if kind == "cut":
        image.write_bytes(image.read_bytes()[:2000])
    elif kind == "garbage":
        mask.write_bytes(b"GIF89a" + bytes(50))
    elif kind == "size":
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(mask)
    else:
        Image.fromarray(np.zeros((112, 144), np.uint8)).save(mask)
    scenes = open_scenes(f"ade20k:{release}")
    assert len(scenes) == 6
    with pytest.raises(BrokenSceneError, match="ADE_train_00000002"):
        scenes[1]
    report = check_scenes(scenes)
    assert report.usable == (0, 2, 3, 4, 5)
    assert [scene.id for scene in report.broken] == ["ADE_train_00000002"]


def test_no_usable_scene_is_an_error(release: Path):
    for image in release.rglob("*.jpg"):
        image.write_bytes(b"")
    with pytest.raises(SceneSetError, match=r"no usable scene.*6 broken.*the file is empty"):
        open_scenes(f"ade20k:{release}")


# --- names -----------------------------------------------------------------------------------------


def test_names_come_from_the_json_files_in_either_encoding(release: Path):
    (release / "index_ade20k.pkl").unlink()
    damaged, latin, missing = (file_of(release, f"ADE_train_0000000{k}.json") for k in (1, 2, 3))
    damaged.write_text("{")
    missing.unlink()
    content = {"annotation": {"object": [{"name": "entrée", "name_ndx": 99}, {"name": None, "name_ndx": 98}, 7]}}
    latin.write_bytes(json.dumps(content, ensure_ascii=False).encode("latin-1"))
    scenes = open_scenes(f"ade20k:{release}")
    assert len(scenes) == 6
    assert scenes.class_names[99] == "entrée"
    assert 98 not in scenes.class_names


def test_json_files_are_not_read_before_a_name_is_wanted_and_once_only(release: Path, tmp_path, monkeypatch):
    (release / "index_ade20k.pkl").unlink()
    read = []
    original = ade20k._names_in
    monkeypatch.setattr(ade20k, "_names_in", lambda path: read.append(path) or original(path))
    scenes = open_scenes(f"ade20k:{release}", index_dir=tmp_path / "kept")
    scenes[0]
    assert not read
    names = dict(scenes.class_names)
    assert len(scenes.class_names) == len(names) > 0
    assert len(read) == 6
    again = open_scenes(f"ade20k:{release}", index_dir=tmp_path / "kept")
    assert dict(again.class_names) == names
    assert len(read) == 6
    file_of(release, "ADE_val_00000002.json").unlink()
    assert open_scenes(f"ade20k:{release}", index_dir=tmp_path / "kept").class_names
    assert len(read) == 11


def test_names_map_to_the_benchmark_through_the_table_and_by_hand(tmp_path):
    table = tmp_path / "objectInfo150.csv"
    table.write_text(
        "Idx,Ratio,Train,Val,Stuff,Name\n2,0,0,0,1,building;edifice\n15,0,0,0,0,door;double;door\n57,0,0,0,0,"
        "pool;table;billiard;table;snooker;table\n90,0,0,0,0,television;television;receiver\n142,0,0,0,0,crt;screen\n"
    )
    television = "television receiver, television, television set, tv, tv set, idiot box, boob tube, telly, goggle box"
    names = ["building, edifice", "door", "double door", "Pool table, billiard table, snooker table", television]
    names += ["screen, CRT screen", "CRT screen", "screen", "-", "edifice"]
    mapped = map_to_benchmark(dict(enumerate(names, start=1)), table)
    assert list(mapped.values()) == [2, 15, 15, 57, 90, 142, 142, 0, 0, 0]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "Idx,Name\nx,wall\n", "\xff\xfe"])
def test_a_table_that_is_none_is_named_when_it_is_asked_for(release: Path, content: str):
    (release / "objectInfo150.csv").write_bytes(content.encode("latin-1"))
    scenes = open_scenes(f"ade20k:{release}")
    with pytest.raises(SceneSetError, match=r"objectInfo150\.csv cannot be read as the benchmark's table"):
        _ = scenes.benchmark_classes


# --- the index -------------------------------------------------------------------------------------


def test_the_index_is_read_once_and_kept_beside_the_workspace(release: Path, tmp_path, monkeypatch):
    read = []
    original = ade20k.load_plain_pickle
    monkeypatch.setattr(ade20k, "load_plain_pickle", lambda path: read.append(path) or original(path))
    kept = tmp_path / "workspace" / "index"
    first = open_scenes(f"ade20k:{release}", index_dir=kept)
    second = open_scenes(f"ade20k:{release}", index_dir=str(kept))
    assert len(read) == 1
    assert dict(first.class_names) == dict(second.class_names)
    assert [path.suffix for path in kept.iterdir()] == [".json"]

    kept_file = next(kept.iterdir())
    in_part = json.loads(kept_file.read_text())
    del in_part["content"]["objectnames"]
    for damaged in ("{}", json.dumps(in_part)):
        kept_file.write_text(damaged)
        assert dict(open_scenes(f"ade20k:{release}", index_dir=kept).class_names) == dict(first.class_names)
    assert len(read) == 3

    content = pickle.loads((release / "index_ade20k.pkl").read_bytes())
    content["objectnames"] = [name.upper() for name in content["objectnames"]]
    (release / "index_ade20k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert open_scenes(f"ade20k:{release}", index_dir=kept).class_names[1] == "DISC"
    assert len(read) == 4

    before = sorted(release.rglob("*"))
    open_scenes(f"ade20k:{release}")
    assert len(read) == 5
    assert sorted(release.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_no_reason_to_stop(release: Path, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert len(open_scenes(f"ade20k:{release}", index_dir=tmp_path / "file" / "index")) == 6
    assert "cannot keep" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        ["filename"],
        {"filename": ["a"], "folder": ["b"]},
        {"filename": ["a"], "folder": [], "objectnames": []},
        {"filename": [1], "folder": ["b"], "objectnames": ["c"]},
        {"filename": np.arange(3), "folder": ["b"], "objectnames": ["c"]},
    ],
)
def test_a_pickle_that_is_no_index_is_named(release: Path, content):
    (release / "index_ade20k.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(SceneSetError, match=r"index_ade20k\.pkl .*[Ff]etch it anew"):
        open_scenes(f"ade20k:{release}")


def test_lists_kept_as_arrays_are_read_too(release: Path):
    content = pickle.loads((release / "index_ade20k.pkl").read_bytes())
    for field in ("filename", "folder", "objectnames"):
        content[field] = np.array(content[field], dtype=object if field == "folder" else None)
    (release / "index_ade20k.pkl").write_bytes(pickle.dumps(content))
    scenes = open_scenes(f"ade20k:{release}")
    assert scenes.broken == ()
    assert scenes.class_names[1] == "disc"


class Attack:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_an_index_that_would_run_code_is_refused_and_runs_nothing(release: Path, tmp_path):
    marker = tmp_path / "ran"
    content = pickle.loads((release / "index_ade20k.pkl").read_bytes())
    content["objectPresence"] = np.array([Attack(marker)], dtype=object)
    (release / "index_ade20k.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UnsafePickleError, match="pathlib"):
        open_scenes(f"ade20k:{release}", index_dir=tmp_path / "kept")
    assert not marker.exists()
    assert not (tmp_path / "kept").exists()
    pickle.loads((release / "index_ade20k.pkl").read_bytes())
    assert marker.exists()


# --- the real thing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    place = Path(__file__).resolve().parents[4] / "shared" / "ade20k_sample"
    if not place.is_dir():
        pytest.skip(f"needs ADE20K's two sample scenes, which are not shipped with bindkit, in {place}")
    return open_scenes(f"ade20k:{place}")


def test_real_scenes_hold_the_objects_that_their_json_files_list(real):
    assert real.ids == ("ADE_train_00016869", "ADE_train_00016900")
    assert real.official_splits == ("training", "training")
    assert [real.size_of(k) for k in (0, 1)] == [(1536, 2048), (1650, 2200)]
    for position, n_values, n_classes in ((0, 52, 14), (1, 35, 17)):
        scene = real[position]
        assert len(np.unique(scene.instances)) == n_values
        assert len(np.unique(scene.classes)) == n_classes
        assert ((scene.instances == 0) == (scene.classes == 0)).all()
        annotation = json.loads(file_of(real.root, f"{scene.id}.json").read_text(encoding="utf-8"))["annotation"]
        listed = [item for item in annotation["object"] if item["parts"]["part_level"] == 0]
        assert set(np.unique(scene.classes)) - {0} <= {item["name_ndx"] for item in listed}
        assert n_values - 1 <= len(listed)
        for item in listed:
            assert real.class_names[item["name_ndx"]] == item["name"]


def test_real_names_reach_the_benchmark(real):
    by_name = {real.class_names[class_id]: number for class_id, number in real.benchmark_classes.items()}
    assert by_name["car, auto, automobile, machine, motorcar"] == 21
    assert by_name["person, individual, someone, somebody, mortal, soul"] == 13
    assert by_name["building, edifice"] == 2
    assert by_name["traffic light, traffic signal, stoplight"] == 137
    assert by_name["central reservation"] == 0
    assert real.class_names[401] == "car, auto, automobile, machine, motorcar"


def test_real_scenes_have_twins(real):
    report = check_scenes(real)
    assert [scene.objects for scene in report.statistics] == [51, 34]
    assert [scene.twins_classes for scene in report.statistics] == [9, 6]
    assert report.broken == ()
