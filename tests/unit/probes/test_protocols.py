"""The paper protocol is a set of facts, the strict one says where it differs; neither changes by accident."""

import json
import re
from dataclasses import asdict, replace

import pytest

from bindkit.errors import InvalidParameterError
from bindkit.probes.protocols import PAPER, STRICT, protocol, protocol_of_fit


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


VARIED = [
    {name: (not value if isinstance(value, bool) else value + 1 if not isinstance(value, str) else "accuracy")}
    for name, value in asdict(STRICT).items()
    if name != "name"
]


@pytest.mark.parametrize("change", VARIED, ids=str)
def test_other_fields_give_another_name(change):
    named = protocol(replace(STRICT, **change)).name
    assert re.fullmatch("strict-[0-9a-f]{8}", named)
    assert protocol(protocol(replace(STRICT, **change))).name == named
    assert named not in {protocol(replace(STRICT, **other)).name for other in VARIED if other != change}


def test_names_say_the_fields_and_nothing_else_does():
    brief = protocol(replace(STRICT, epochs=1))
    assert brief.name == "strict-120c0484", "directories of fits are named by it"
    assert protocol(replace(brief, epochs=STRICT.epochs)).name.startswith("strict-")
    assert protocol(replace(brief, epochs=2)).name == protocol(replace(STRICT, epochs=2)).name
    renamed = protocol(replace(STRICT, name="mine"))
    assert renamed.name == "mine-" + protocol(replace(brief, epochs=STRICT.epochs)).name.removeprefix("strict-")
    assert protocol(replace(PAPER, name="strict")).name != "strict"


@pytest.mark.parametrize("asked", [PAPER, replace(PAPER, epochs=3)])
def test_controls_keep_the_name_of_the_protocol_that_was_asked_for(asked):
    for_controls = protocol(asked).for_controls()
    assert for_controls.name == protocol(asked).name and for_controls.precondition


@pytest.mark.parametrize("rules", [STRICT, PAPER, protocol(replace(PAPER, judged_patches=16))])
def test_a_fit_says_its_protocol(rules):
    kept = {"protocol": rules.name} | ({} if rules.is_shipped else {"protocol_fields": asdict(rules)})
    assert protocol_of_fit(json.loads(json.dumps(kept))) == rules
    assert protocol_of_fit({}) is STRICT


def test_a_protocol_of_another_bindkit_is_named():
    fields = asdict(STRICT) | {"temper": 3}
    with pytest.raises(InvalidParameterError, match="the protocol 'strict-1234', whose fields are not"):
        protocol_of_fit({"protocol": "strict-1234", "protocol_fields": fields})
