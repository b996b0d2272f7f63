"""The report on a scene set: figures counted independently, broken scenes named, nothing lost, nothing stopped."""

import csv
import logging

import numpy as np
import pytest

from bindkit.errors import BrokenSceneError, InvalidParameterError, OneAnswerError
from bindkit.scenes import Scene, check_scenes, open_scenes, write_ade20k
from bindkit.scenes.checking import describe_scene
from bindkit.scenes.scene import BrokenScene, SceneSequence


def scene_of(instances, classes) -> Scene:
    instances, classes = np.array(instances, np.int32), np.array(classes, np.int32)
    return Scene("x", np.zeros((*instances.shape, 3), np.uint8), instances, classes)


@pytest.mark.parametrize("scale", [1, 100_000])
def test_objects_classes_and_twins_are_counted_by_the_instances_main_class(scale: int):
    scene = scene_of(
        np.array([[0, 0, 1, 1, 1], [2, 2, 3, 3, 4]]) * scale,
        np.array([[0, 0, 7, 7, 8], [7, 7, 9, 9, 0]]) * scale,
    )
    statistics = describe_scene(scene, 5)
    assert (statistics.objects, statistics.classes, statistics.twins_classes) == (4, 2, 1)
    assert statistics.labelled == 0.8
    assert (statistics.height, statistics.width, statistics.position) == (2, 5, 5)


def test_statistics_agree_with_a_slow_count():
    scenes = open_scenes("synthetic:n=6,seed=9")
    report = check_scenes(scenes, workers=3)
    for position, row in report.table.set_index("position").iterrows():
        scene = scenes[position]
        objects = {int(k): set(scene.classes[scene.instances == k].tolist()) for k in np.unique(scene.instances) if k}
        labels = [next(iter(found)) for found in objects.values()]
        assert row["id"] == scene.id
        assert row["objects"] == len(objects)
        assert row["classes"] == len(set(labels))
        assert row["twins_classes"] == sum(labels.count(label) > 1 for label in set(labels))
        assert row["labelled"] == pytest.approx((scene.instances > 0).mean())


def test_an_unlabelled_scene_is_counted_not_refused():
    statistics = describe_scene(scene_of([[0, 0]], [[0, 0]]), 0)
    assert (statistics.objects, statistics.classes, statistics.labelled) == (0, 0, 0.0)


class Flawed(SceneSequence):
    uri = "flawed:"
    ids = ("a", "b", "c")
    broken = (BrokenScene("z", "the file is missing"),)
    official_splits = None
    class_names = {1: "x"}  # noqa: RUF012

    def __getitem__(self, position: int) -> Scene:
        if self._position(position) == 1:
            raise BrokenSceneError("b.png: cut short, they say")
        return scene_of([[1]], [[1]])


def test_broken_scenes_are_reported_beside_those_found_on_opening(tmp_path, caplog):
    scenes = Flawed()
    report = check_scenes(scenes)
    assert report.n_scenes == 4
    assert report.usable == (0, 2)
    assert report.broken == (scenes.broken[0], BrokenScene("b", "b.png: cut short, they say"))
    assert "4 scenes, 2 usable, 2 broken" in str(report)
    assert "broken: b: b.png" in str(report)
    assert "b.png: cut short" in caplog.text
    usable = report.usable_scenes(scenes)
    assert list(usable.ids) == ["a", "c"]
    assert usable.broken == report.broken

    report.write_csv(tmp_path / "deep" / "scenes.csv")
    with (tmp_path / "deep" / "scenes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["usable"], row["reason"]) for row in rows] == [
        ("x", "yes", ""),
        ("x", "yes", ""),
        ("z", "no", "the file is missing"),
        ("b", "no", "b.png: cut short, they say"),
    ]
    assert rows[0]["labelled"] == "1.000000"


def test_iteration_goes_on_past_a_broken_scene_and_names_it(caplog):
    with caplog.at_level(logging.WARNING, logger="bindkit"):
        assert len(list(Flawed())) == 2
    assert "b.png: cut short" in caplog.text


def test_a_damaged_data_set_on_disk_is_reported_scene_by_scene(tmp_path):
    write_ade20k(open_scenes("synthetic:n=5,seed=0,size=32x32"), tmp_path)
    jpg = sorted(tmp_path.rglob("*.jpg"), key=lambda path: path.name)
    jpg[0].write_bytes(jpg[0].read_bytes()[:300])
    mask = jpg[1].with_name(jpg[1].stem + "_seg.png")
    mask.write_bytes(b"")
    jpg[2].unlink()
    report = check_scenes(open_scenes(f"ade20k:{tmp_path}"))
    assert report.n_scenes == 5
    assert [scene.id[-1] for scene in report.statistics] == ["4", "5"]
    assert sorted(scene.id[-1] for scene in report.broken) == ["1", "2", "3"]


def test_fewer_than_one_worker_is_refused():
    with pytest.raises(InvalidParameterError, match="at least 1"):
        check_scenes(open_scenes("synthetic:n=1"), workers=0)


class Listed(SceneSequence):
    uri = "listed:"
    official_splits = None
    class_names = {1: "x"}  # noqa: RUF012
    broken = ()

    def __init__(self, *instances):
        self.instances = instances
        self.ids = tuple(map(str, range(len(instances))))

    def __getitem__(self, position: int) -> Scene:
        instances = self.instances[self._position(position)]
        return scene_of([instances], [[int(k > 0) for k in instances]])


def test_one_object_in_every_scene_is_noticed_before_anything_is_cached():
    with pytest.raises(OneAnswerError, match=r"none of the 3 usable scenes has two labelled objects.*several objects"):
        check_scenes(Listed([1, 1], [0, 5], [0, 0])).require_two_objects()
    check_scenes(Listed([1, 1], [0, 5], [2, 3])).require_two_objects()  # one scene is enough
    check_scenes(Listed()).require_two_objects()  # no scene at all is another error's business


def test_notebook_01_asks_for_two_objects(root):
    assert "report.require_two_objects()" in (root / "notebooks" / "01_data_setup.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        (([1, 2], [0, 0], [0, 3]), "1 scene has no labelled object"),
        (([0, 0], [0, 0], [0, 3]), "2 scenes have no labelled object"),
    ],
)
def test_scenes_without_an_object_are_said_in_the_summary(instances, words):
    assert words in str(check_scenes(Listed(*instances))).splitlines()
    assert "no labelled object" not in str(check_scenes(Listed([1, 2], [0, 3])))
