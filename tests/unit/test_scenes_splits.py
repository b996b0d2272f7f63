"""Splits: every scene in exactly one, by rule, with plain words where there are too few."""

import hashlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindkit.errors import EmptySplitError, InvalidParameterError
from bindkit.scenes import Split, open_scenes, split_scenes


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
