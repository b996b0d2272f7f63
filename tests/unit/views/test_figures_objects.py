"""The figure of found objects: a panel each, titles with figures, what segments say, colours that match."""

import inspect

import numpy as np
import pytest

import bindkit as bk
from bindkit.affinities.objects import Objects
from bindkit.affinities.scoring import ImageGrid
from bindkit.errors import InvalidParameterError
from bindkit.views.figures.objects import _matched, objects_figure
from bindkit.views.figures.scenes import colours_of

GRID = ImageGrid(3, 4, (24, 32), (24, 32))
CELLS = np.array([[0, 0, 5, 5], [0, 0, 5, 5], [2, 2, 2, 2]], dtype=np.int32)
SCENE = bk.Scene("planted", np.full((24, 32, 3), 90, np.uint8), *[np.kron(CELLS, np.ones((8, 8), np.int32))] * 2)
FOUND = Objects(np.array([1, 1, 2, 2, 1, 1, 2, 3, 4, 4, 4, 4], dtype=np.int32), GRID, "spectral")


def test_every_result_has_a_panel_whose_title_says_method_and_figure():
    figure = objects_figure(SCENE, {"mine": FOUND, "spectral, again": FOUND})
    titles = [note.text for note in figure.layout.annotations]
    figure_of = f"4 segments · fg-ARI {bk.judge_objects(FOUND.mask(), SCENE)['fg_ari']:.2f}"
    assert titles == [
        *("the picture", "2 true objects"),
        *(f"mine: spectral<br>{figure_of}", f"spectral, again<br>{figure_of}"),
    ]
    assert sum(trace.type == "image" for trace in figure.data) == 4


def test_what_is_pointed_at_says_which_segment_it_is():
    figure = objects_figure(SCENE, {"mine": FOUND})
    true, found = [trace for trace in figure.data if trace.type == "heatmap"]
    assert found.text[0][0] == "segment 1: 4 patches<br>IoU 1.00 with the unlabelled ground"
    assert found.text[0][2] == "segment 2: 3 patches<br>IoU 0.75 with object 5"
    assert found.text[1][3] == "segment 3: 1 patch<br>IoU 0.25 with object 5"
    for row in range(3):
        for col in range(4):
            assert GRID.patch_at(found.y0 + row * found.dy, found.x0 + col * found.dx) == row * 4 + col
    for row, col in ((0, 0), (3, 7), (5, 2)):
        instance = SCENE.instances[int(true.y0 + row * true.dy), int(true.x0 + col * true.dx)]
        assert true.text[row][col] == (f"object {instance}" if instance else "unlabelled ground")


def test_segments_have_the_colour_of_the_object_they_match_and_the_ground_has_none():
    colours = colours_of([2, 5])
    painted, _ = _matched(FOUND.mask(), FOUND, SCENE, colours)
    assert painted[2] == colours[5] and painted[4] == colours[2]
    assert 1 not in painted
    assert painted[3] not in colours.values()


def test_many_left_over_segments_are_grey_and_no_match_is_made_of_nothing_shared():
    every = Objects(np.arange(1, 13, dtype=np.int32), GRID, "components")
    painted, _ = _matched(every.mask(), every, SCENE, colours_of([2, 5]))
    assert len(set(painted.values())) == 7  # the palette's six, and grey
    apart = bk.Scene("apart", SCENE.image, *[np.where(SCENE.instances == 5, np.int32(5), np.int32(0))] * 2)
    whole = Objects(np.ones(12, dtype=np.int32), GRID, "spectral")
    assert _matched(whole.mask(), whole, apart, colours_of([5]))[0] == {}


def test_none_too_many_and_other_things_are_refused():
    draw = inspect.unwrap(objects_figure)
    for found, message in (
        ({}, "got 0"),
        ({str(k): FOUND for k in range(11)}, "got 11"),
        ([FOUND], "a mapping of titles"),
        ({"mine": FOUND.labels}, "each of found"),
        ({"mine": Objects(FOUND.labels, ImageGrid(3, 4, (24, 40), (24, 32)), "spectral")}, r"shape \[24, 32\]"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            draw(SCENE, found)
