"""The affinity figure marks the asked patch and draws its row of the scores; layers on a page are spread."""

import numpy as np
import pytest

import bindkit as bk
from bindkit.errors import InvalidParameterError, ProbeError
from bindkit.probes import make_probe
from bindkit.scenes import Scene
from bindkit.views.figures import affinity_figure, affinity_table
from bindkit.views.figures.scenes import telling_patch
from bindkit.views.viewer import spread


@pytest.fixture(scope="module")
def view():
    backbone = bk.load_backbone("random-init:vit")
    scene = bk.open_scenes("synthetic:n=1,seed=0,size=112x144")[0]
    probe = make_probe("quadratic", backbone.d_model, seed=0)
    return scene, bk.affinity(backbone, probe.eval(), scene, layer=2)


def test_each_map_is_the_marked_patchs_row(view):
    scene, found = view
    figure = affinity_figure(scene, {"one": found, "two": found}, patch=20)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(maps) == 2
    np.testing.assert_allclose(np.array(maps[0].z), found.scores[20].reshape(found.grid.rows, -1), atol=6e-4)
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    box = found.box(20)
    assert {(mark.x[0], mark.y[0]) for mark in marks} == {((box.left + box.right) / 2, (box.top + box.bottom) / 2)}


def test_the_table_has_every_number_of_the_figure(view):
    scene, found = view
    views = {"one<br>layer 1": found, "two": found}
    table, figure = affinity_table(scene, views), affinity_figure(scene, views)
    maps = [trace.z for trace in figure.data if trace.type == "heatmap"]
    assert table["view"].unique().tolist() == ["one · layer 1", "two"]
    for shown, (_, rows) in zip(maps, table.groupby("view", sort=False), strict=True):
        for row, column, affinity in zip(rows["row"], rows["column"], rows["affinity"], strict=True):
            assert shown[row][column] == pytest.approx(affinity, abs=6e-4)
    (marked,) = table[table["marked"] & (table["view"] == "two")].to_dict("records")
    assert marked["row"] * found.grid.cols + marked["column"] == telling_patch(scene, found)


def test_the_telling_patch_lies_in_the_largest_object_that_has_a_twin(view):
    _, found = view
    instances, classes = np.zeros((112, 144), np.int32), np.zeros((112, 144), np.int32)
    for number, (box, kind) in enumerate([(np.s_[0:80, 0:80], 5), (np.s_[80:112, 0:64], 7), (np.s_[0:16, 96:128], 7)]):
        instances[box], classes[box] = number + 1, kind
    scene = Scene("planted", np.zeros((112, 144, 3), np.uint8), instances, classes)
    row, col = found.grid.row_col(telling_patch(scene, found))
    assert instances[row * 8 + 4, col * 8 + 4] == 2
    with pytest.raises(InvalidParameterError, match="no labelled object"):
        telling_patch(Scene("empty", scene.image, 0 * instances, 0 * classes), found)


def test_no_view_and_too_many_are_refused(view):
    scene, found = view
    with pytest.raises(InvalidParameterError, match="got 0"):
        affinity_figure(scene, {})
    with pytest.raises(InvalidParameterError, match="got 12"):
        affinity_figure(scene, {str(k): found for k in range(12)})


def test_layers_are_spread_from_the_first_to_the_last():
    assert spread(range(24), 9) == [0, 2, 5, 8, 11, 14, 17, 20, 23]
    assert spread([3, 1, 1.0], 2) == [1, 3]
    assert spread([0, 5], 1) == [5]
    with pytest.raises(ProbeError, match="at least one"):
        spread([0], 0)


def test_the_marked_patch_stands_out_from_any_colour(view):
    scene, found = view
    marks = [trace for trace in affinity_figure(scene, {"one": found}).data if trace.type == "scatter"]
    assert [(mark.marker.color, mark.marker.line.width) for mark in marks] == 2 * [("#000000", 6), ("#ffffff", 2.5)]
