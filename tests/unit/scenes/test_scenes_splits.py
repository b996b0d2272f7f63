"""Splits: every scene in exactly one, by rule, with plain words where there are too few."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bindkit.errors import EmptySplitError, InvalidParameterError, SceneSetError
from bindkit.scenes import Split, open_scenes, split_scenes
from bindkit.scenes.scene import subset


@dataclass
class Named:
    ids: tuple[str, ...]
    official_splits: tuple[str, ...] | None = None


def named(n: int, official: list[str] | None = None) -> Named:
    return Named(tuple(f"scene-{k}" for k in range(n)), None if official is None else tuple(official))


@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=120, unique=True).flatmap(
        lambda ids: st.tuples(
            st.just(ids),
            st.none() | st.lists(st.sampled_from(["training", "validation"]), min_size=len(ids), max_size=len(ids)),
        )
    )
)
def test_no_scene_is_in_two_splits_and_none_is_left_out(case):
    ids, official = case
    split = split_scenes(Named(tuple(ids), None if official is None else tuple(official)))
    together = [*split.train, *split.validation, *split.test]
    assert sorted(together) == list(range(len(ids)))
    assert split.train
    assert all(list(part) == sorted(part) for part in (split.train, split.validation, split.test))
    if len(ids) > 1:
        assert split.test
        assert split.judged == "test"


@given(st.integers(3, 300))
def test_shares_are_60_20_20_ordered_by_hash(n: int):
    split = split_scenes(named(n))
    held = max(1, n // 5)
    assert len(split.validation) == len(split.test) == held
    order = sorted(range(n), key=lambda k: hashlib.sha256(f"scene-{k}".encode()).hexdigest())
    assert set(split.train) == set(order[: n - 2 * held])
    assert set(split.test) == set(order[n - held :])


def test_the_split_of_a_scene_set_is_the_same_whatever_its_order():
    forward, backward = Named(tuple("abcdefghij")), Named(tuple("jihgfedcba"))
    chosen = {forward.ids[k] for k in split_scenes(forward).test}
    assert chosen == {backward.ids[k] for k in split_scenes(backward).test}


@pytest.mark.parametrize(
    ("n", "sizes", "judged"),
    [(1, (1, 0, 0), "train"), (2, (1, 0, 1), "test"), (3, (1, 1, 1), "test"), (4, (2, 1, 1), "test")],
)
def test_the_smallest_sets_split_as_far_as_possible_and_say_so(n: int, sizes: tuple[int, ...], judged: str):
    split = split_scenes(named(n))
    assert (len(split.train), len(split.validation), len(split.test)) == sizes
    assert split.judged == judged
    assert split.notices


def test_notices_name_what_is_too_small():
    notices = " | ".join(split_scenes(named(2)).notices)
    assert "validation is empty" in notices
    assert "test holds 1 scene: its figures are a demonstration, not a measurement" in notices
    assert "train holds 1 scene:" in notices
    assert "very scene it was trained on" in split_scenes(named(1)).notices[0]
    assert "test holds 19 scenes" in " | ".join(split_scenes(named(99)).notices)
    assert split_scenes(named(100)).notices == ()


def test_official_splits_follow_the_paper():
    official = ["training"] * 10 + ["validation"] * 3
    split = split_scenes(named(13, official))
    assert split.train == tuple(range(8))
    assert split.validation == (8, 9)
    assert split.test == (10, 11, 12)
    assert any(notice.startswith("test holds 3 scenes") for notice in split.notices)


def test_official_splits_in_any_order_keep_the_order_of_the_scenes():
    split = split_scenes(named(6, ["validation", "training", "training", "validation", "training", "training"]))
    assert (split.train, split.validation, split.test) == ((1, 2, 4), (5,), (0, 3))


def test_a_single_official_training_scene_trains():
    split = split_scenes(named(3, ["training", "validation", "validation"]))
    assert (split.train, split.validation, split.test) == ((0,), (), (1, 2))
    assert any("validation is empty" in notice for notice in split.notices)


@pytest.mark.parametrize("only", ["training", "validation"])
def test_one_official_split_alone_is_shared_out_by_hash(only: str):
    assert split_scenes(named(30, [only] * 30)) == split_scenes(named(30))


def test_no_scene_is_an_error():
    with pytest.raises(EmptySplitError, match="no scene"):
        split_scenes(named(0))


def test_split_checks_itself_and_is_read_by_name():
    with pytest.raises(InvalidParameterError, match="scene 3 is in two splits"):
        Split((1, 3), (3,), ())
    split = Split((0,), (), (1,))
    assert split.positions("test") == (1,)
    with pytest.raises(InvalidParameterError, match="train, validation, test"):
        split.positions("dev")


def test_the_default_scenes_are_split_240_80_80_without_notices():
    split = split_scenes(open_scenes("synthetic:n=400,seed=0"))
    assert (len(split.train), len(split.validation), len(split.test)) == (240, 80, 80)
    assert split.notices == ()


# --- groups and identical pictures ------------------------------------------------------------------------------------


def sides_of(split: Split) -> dict[int, str]:
    return {position: name for name in ("train", "validation", "test") for position in split.positions(name)}


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=80),
    st.none() | st.lists(st.sampled_from(["training", "validation"]), min_size=80, max_size=80),
)
def test_no_group_is_on_two_sides_and_every_scene_is_on_one(groups, official):
    scenes = named(len(groups), None if official is None else official[: len(groups)])
    try:
        split = split_scenes(scenes, groups)
    except EmptySplitError:
        assert official is not None
        return
    side = sides_of(split)
    assert sorted(side) == list(range(len(groups)))
    sides_by_group = {group: {side[k] for k, of in enumerate(groups) if of == group} for group in groups}
    assert all(len(sides) == 1 for sides in sides_by_group.values())
    if scenes.official_splits is None and len(sides_by_group) > 2:
        assert split.train and split.validation and split.test


@given(st.integers(1, 300), st.none() | st.just("official"))
def test_groups_of_one_scene_change_nothing(n, kind):
    official = None if kind is None else [("training", "training", "validation")[k % 3] for k in range(n)]
    scenes = named(n, official)
    for alone in (list(range(n)), {scene_id: k for k, scene_id in enumerate(scenes.ids)}, "", None):
        split = split_scenes(scenes, alone)
        assert (split.train, split.validation, split.test) == today(scenes)
        assert split.groups == ()


def today(scenes: Named) -> tuple[tuple[int, ...], ...]:
    """The split as it was before there were groups, written down again."""
    n = len(scenes.ids)
    if scenes.official_splits is not None and {"training", "validation"} <= set(scenes.official_splits):
        training = [k for k in range(n) if scenes.official_splits[k] == "training"]
        cut = max(1, len(training) * 4 // 5)
        return tuple(training[:cut]), tuple(training[cut:]), tuple(k for k in range(n) if k not in training)
    order = sorted(range(n), key=lambda k: hashlib.sha256(scenes.ids[k].encode()).digest())
    held = max(1, n // 5) if n > 2 else 0
    cuts = (n - 2 * held, n - held) if n > 2 else (1, 1)
    return tuple(tuple(sorted(order[a:b])) for a, b in ((0, cuts[0]), cuts, (cuts[1], n)))


def frames(videos: int, each: int) -> Named:
    return Named(tuple(f"video{v:02d}_frame{k}" for v in range(videos) for k in range(each)))


def test_frames_of_one_video_stay_on_one_side_and_are_said():
    scenes = frames(10, 5)
    split = split_scenes(scenes, r"^(video\d+)_")
    side = sides_of(split)
    assert all(len({side[v * 5 + k] for k in range(5)}) == 1 for v in range(10))
    assert [len(part) for part in (split.train, split.validation, split.test)] == [30, 10, 10]
    assert split.groups == tuple(tuple(range(v * 5, v * 5 + 5)) for v in range(10))
    assert split.notices[0] == "50 scenes in 10 groups (by '^(video\\\\d+)_' in their ids)"
    assert "test holds 10 scenes in 2 groups: its figures are a demonstration" in " | ".join(split.notices)
    # The whole match where the expression has no group; the order of scenes does not matter.
    assert split_scenes(scenes, r"^video\d+").train == split.train
    turned = Named(tuple(reversed(scenes.ids)))
    again = split_scenes(turned, r"^video\d+")
    assert {turned.ids[k] for k in again.test} == {scenes.ids[k] for k in split.test}


def test_scenes_without_a_match_are_alone_and_counted():
    scenes = Named((*frames(4, 2).ids, "lake", "hill"))
    assert "8 scenes in 4 groups" in split_scenes(scenes, r"video\d+").notices[0]
    assert "2 without one: each of those is a group of its own" in split_scenes(scenes, r"video\d+").notices[0]


def test_one_and_two_groups_are_treated_as_so_many_scenes():
    one = split_scenes(named(9), [0] * 9)
    assert (one.train, one.judged) == (tuple(range(9)), "train")
    assert "one group of scenes only" in " | ".join(one.notices)
    two = split_scenes(named(9), [0] * 6 + [1] * 3)
    assert (two.train, two.validation, two.test) == (tuple(range(6)), (), (6, 7, 8))
    assert "validation is empty (too few groups)" in " | ".join(two.notices)


def test_an_official_split_that_tears_a_group_apart_is_mended_and_said():
    scenes = named(12, ["training"] * 10 + ["validation"] * 2)
    split = split_scenes(scenes, [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 1])
    side = sides_of(split)
    assert side[1] == side[11] == "test"
    assert side[0] == side[9]
    assert "2 scenes moved from the data set's own split" in " | ".join(split.notices)
    with pytest.raises(EmptySplitError, match="nothing is left to train on"):
        split_scenes(named(4, ["training", "validation"] * 2), [0] * 4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [("(", "neither"), ("film", "no scene id"), ([1, 2], "2 entries"), ({"stranger": 1}, "no scene of the set")],
)
def test_groups_that_name_nothing_are_refused(groups, message):
    with pytest.raises(InvalidParameterError, match=message):
        split_scenes(named(3), groups)


@pytest.fixture
def photos(tmp_path):
    """48 scenes that are 6 pictures 8 times, of which two are of one size in bytes; each with a mask of its own."""
    for folder in ("images", "instances"):
        (tmp_path / folder).mkdir()
    for k in range(48):
        picture = np.full((8, 8, 3), 40 * (k % 6), np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"p{k:02d}.png")
        Image.fromarray(np.full((8, 8), k, np.uint8)).save(tmp_path / "instances" / f"p{k:02d}.png")
    return tmp_path


def test_identical_pictures_are_kept_on_one_side_and_named(photos):
    split = split_scenes(open_scenes(f"folder:{photos}"))
    side = sides_of(split)
    assert all(len({side[k] for k in range(first, 48, 6)}) == 1 for first in range(6))
    assert split.groups == tuple(tuple(range(first, 48, 6)) for first in range(6))
    assert "48 scenes show 6 pictures, byte for byte: p00, p06, p12" in split.notices[0]
    assert [len(part) for part in (split.train, split.validation, split.test)] == [32, 8, 8]
    # Pictures of one size that differ are told apart by their bytes, not their size.
    sizes = {(photos / "images" / f"p{k:02d}.png").stat().st_size for k in range(6)}
    assert len(sizes) < 6


def test_identical_pictures_join_groups(photos):
    groups = [k // 24 for k in range(48)]
    assert split_scenes(open_scenes(f"folder:{photos}"), groups).groups == (tuple(range(48)),)


def test_a_column_of_the_folders_table_groups_scenes(photos):
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(photos / "images" / "p01.png")
    (photos / "scenes.csv").write_text("\ufeffid,place\np01,hall\np00,hall\np02,\n", encoding="utf-8")
    scenes = open_scenes(f"folder:{photos}")
    split = split_scenes(scenes, "place")
    assert {0, 1} <= set(split.groups[0])
    assert "2 scenes in 1 group (column 'place' of scenes.csv), 46 without one" in split.notices[0]
    with pytest.raises(InvalidParameterError, match=r"scenes\.csv has the columns place"):
        split_scenes(scenes, "film")
    (photos / "scenes.csv").write_text("name,place\np01,hall\n")
    with pytest.raises(SceneSetError, match="no column id"):
        split_scenes(scenes, "place")


def test_a_subset_is_grouped_as_the_set_is(photos):
    view = subset(open_scenes(f"folder:{photos}"), [7, 1, 3, 9])
    assert split_scenes(view).groups == ((0, 1), (2, 3))


def test_a_split_of_ones_own_may_not_tear_a_group_apart():
    with pytest.raises(InvalidParameterError, match="belong together"):
        Split((0,), (1,), (2,), groups=((0, 2),))
