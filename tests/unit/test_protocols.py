"""The paper protocol is a set of facts, the strict one says where it differs; neither changes by accident."""

from dataclasses import asdict

import pytest

from bindkit.errors import InvalidParameterError
from bindkit.protocols import PAPER, STRICT, protocol


def test_the_paper_protocol_is_the_reference_implementations():
    assert asdict(PAPER) == {
        "name": "paper",
        "pairs_with_unlabelled": True,
        "min_purity": 0.0,
        "overlapping_pairs": True,
        "full_matrix_loss": True,
        "train_patches": 64,
        "judged_patches": 64,
        "scenes_per_step": 256,
        "epochs": 16,
        "min_steps": 0,
        "learning_rate": 1e-3,
        "divide_by_width": False,
        "decay_every": 8,
        "decay": 0.2,
        "precondition": False,
        "chance_is_logit": True,
        "offset_at_both": True,
        "attention_normed": False,
        "keep": "accuracy",
        "normalization": "imagenet",
        "arithmetic": "reference",
    }


def test_the_strict_protocol_measures_labelled_pure_patches_that_show_different_pixels():
    assert not STRICT.pairs_with_unlabelled
    assert STRICT.min_purity == 0.5
    assert not STRICT.overlapping_pairs
    assert not STRICT.full_matrix_loss
    assert STRICT.keep == "loss"


def test_a_protocol_is_found_by_name_and_one_of_ones_own_passes_through():
    assert protocol("paper") is PAPER
    assert protocol(STRICT) is STRICT
    with pytest.raises(InvalidParameterError, match="unknown protocol 'loose'; choose one of paper, strict"):
        protocol("loose")
