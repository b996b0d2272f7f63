"""The paper protocol is a set of facts, the strict one says where it differs; neither changes by accident."""

import inspect
import json
import re
from dataclasses import asdict, fields, replace

import pytest

from bindkit.errors import InvalidParameterError
from bindkit.files import slug
from bindkit.probes.protocols import PAPER, STRICT, Protocol, loading_options, protocol, protocol_of_fit


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
        "weight_decay": 0.0,
        "n_queries": 100,
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "no_object_weight": 0.1,
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


OTHER = {"min_purity": 0.75, "keep": "accuracy", "normalization": "imagenet", "arithmetic": "reference"}
"""Of fields that take not just any other value of their kind."""

VARIED = [
    {name: OTHER.get(name, not value if isinstance(value, bool) else value if isinstance(value, str) else value + 1)}
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


@pytest.mark.parametrize(
    "rules", [STRICT, PAPER, protocol(replace(PAPER, judged_patches=16)), protocol("paper,epochs=2,weight_decay=0.5")]
)
def test_a_fit_says_its_protocol(rules):
    kept = {"protocol": rules.name} | ({} if rules.is_shipped else {"protocol_fields": asdict(rules)})
    assert protocol_of_fit(json.loads(json.dumps(kept))) == rules
    assert protocol_of_fit({}) is STRICT


def test_a_protocol_of_another_bindkit_is_named():
    fields = asdict(STRICT) | {"temper": 3}
    with pytest.raises(InvalidParameterError, match="the protocol 'strict-1234', whose fields are not"):
        protocol_of_fit({"protocol": "strict-1234", "protocol_fields": fields})


# --- as text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", VARIED, ids=str)
def test_every_field_can_be_set_in_text_and_is_read_back_from_its_name(change):
    ((field, value),) = change.items()
    rules = protocol(f"strict,{field}={value}")
    assert rules.name == f"strict,{field}={str(value).lower()}"
    assert rules == replace(STRICT, name=rules.name, **change)
    assert type(getattr(rules, field)) is type(getattr(STRICT, field))
    assert rules.is_shipped, "its name alone says all of its fields"
    assert protocol(rules.name) == protocol(rules) == rules
    assert slug(rules.name) == rules.name, "a place as it is"


def test_all_fields_can_be_set_at_once_and_stand_in_their_order_however_they_were_written():
    changes = {name: value for change in VARIED for name, value in change.items()}
    written = [f"{name} = {value}" for name, value in changes.items()]
    rules = protocol(" , ".join(["strict", *written]))
    assert rules == protocol(", ".join(["strict", *reversed(written)])) == protocol(rules.name)
    assert re.findall("([a-z_]+)=", rules.name) == [field.name for field in fields(Protocol)][1:]
    assert rules == replace(STRICT, name=rules.name, **changes)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("strict,learning_rate=1e-3", "strict,learning_rate=0.001"),
        ("strict,learning_rate=1", "strict,learning_rate=1.0"),
        ("strict,weight_decay=0.00001", "strict,weight_decay=1e-05"),
        ("strict,weight_decay=0.30000000000000004", "strict,weight_decay=0.30000000000000004"),
        ("paper,epochs=8,decay_every=8", "paper,epochs=8"),
        ("strict,dice_weight=-0", "strict,dice_weight=0.0"),
        ("paper,precondition=TRUE", "paper,precondition=true"),
    ],
)
def test_one_protocol_has_one_name(written, name):
    assert protocol(written).name == name
    assert protocol(name) == protocol(written)


def test_what_is_spelled_out_as_it_is_shipped_is_the_shipped_protocol():
    assert protocol("strict,epochs=8,min_purity=0.5,keep=loss,precondition=true,weight_decay=-0.0") is STRICT
    assert protocol(" paper ,learning_rate=0.001") is PAPER


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("loose,epochs=4", "unknown protocol 'loose,epochs=4'; choose one of paper, strict"),
        ("", "unknown protocol ''"),
        (
            "strict,epoch=4",
            "protocol 'strict,epoch=4': unknown field 'epoch' (did you mean 'epochs'?); fields: pair",
        ),
        ("strict,name=mine", "unknown field 'name'; fields: pairs_with_unlabelled, min_purity"),
        ("strict,", "unknown field ''"),
        ("strict,epochs", "epochs takes a whole number, at least 1; got ''"),
        ("strict,epochs=4,epochs=5", "epochs is given twice"),
        ("strict,epochs=0", "epochs takes a whole number, at least 1; got 0"),
        ("strict,epochs=4.0", "epochs takes a whole number, at least 1; got '4.0'"),
        ("strict,min_steps=-1", "min_steps takes a whole number, at least 0; got -1"),
        ("strict,learning_rate=0", "learning_rate takes a number above 0; got 0.0"),
        ("strict,learning_rate=fast", "learning_rate takes a number above 0; got 'fast'"),
        ("strict,learning_rate=inf", "learning_rate takes a number above 0; got inf"),
        ("strict,weight_decay=-0.1", "weight_decay takes a number, at least 0; got -0.1"),
        ("strict,dice_weight=nan", "dice_weight takes a number, at least 0; got nan"),
        ("strict,min_purity=50", "min_purity takes a number, at least 0 and below 1; got 50.0"),
        ("strict,precondition=1", "precondition takes true or false; got '1'"),
        ("strict,keep=best", "keep takes accuracy or loss; got 'best'"),
        ("strict,normalization=clip", "normalization takes imagenet or checkpoint; got 'clip'"),
        ("strict,arithmetic=1", "arithmetic takes reference or centred; got '1'"),
    ],
)
def test_wrong_text_is_refused_with_what_it_takes(written, said):
    with pytest.raises(InvalidParameterError, match=re.escape(said)):
        protocol(written)


@pytest.mark.parametrize("given", [3, None, ["strict"]])
def test_what_is_no_text_is_refused_by_name(given):
    with pytest.raises(InvalidParameterError, match="unknown protocol"):
        inspect.unwrap(protocol)(given)


@pytest.mark.parametrize(
    ("change", "takes"),
    [
        ({"epochs": 3.0}, "a whole number, at least 1; got 3.0"),
        ({"epochs": True}, "a whole number, at least 1; got True"),
        ({"mask_weight": "5"}, "a number, at least 0; got '5'"),
        ({"weight_decay": True}, "a number, at least 0; got True"),
        ({"weight_decay": None}, "a number, at least 0; got None"),
        ({"precondition": 1}, "true or false; got 1"),
        ({"keep": ["loss"]}, r"accuracy or loss; got \['loss'\]"),
    ],
    ids=str,
)
def test_fields_of_ones_own_are_checked_too(change, takes):
    (field,) = change
    bare = object.__new__(Protocol)  # as without the tests' own checks of types
    vars(bare).update(asdict(STRICT) | change)
    with pytest.raises(InvalidParameterError, match=f"a protocol's {field} takes {takes}"):
        bare.__post_init__()


def test_a_protocol_of_ones_own_that_came_from_text_does_not_claim_its_fields():
    changed = replace(protocol("strict,epochs=4"), epochs=2)
    assert not changed.is_shipped
    assert protocol(changed).name == protocol(replace(STRICT, epochs=2)).name
    assert protocol(replace(protocol("strict,epochs=4"), epochs=8)).name.startswith("strict-")


def test_fields_that_came_later_leave_the_names_of_before():
    """120c0484 is of the time before weight_decay; with it, it is another protocol."""
    assert protocol(replace(STRICT, epochs=1, weight_decay=0.0)).name == "strict-120c0484"
    assert protocol(replace(STRICT, epochs=1, weight_decay=0.1)).name != "strict-120c0484"


def test_a_probe_saved_before_there_were_further_fields_is_of_the_same_protocol():
    later = ("weight_decay", "n_queries", "class_weight", "mask_weight", "dice_weight", "no_object_weight")
    rules = protocol(replace(PAPER, judged_patches=16))
    kept = {name: value for name, value in asdict(rules).items() if name not in later}
    assert protocol_of_fit({"protocol": rules.name, "protocol_fields": kept}) == rules


def test_controls_of_text_are_trained_as_strict_does_where_training_is_in_raw_units():
    asked = protocol("paper,epochs=3,weight_decay=0.5,n_queries=7,mask_weight=1")
    rules = asked.for_controls()
    assert (rules.name, rules.epochs, rules.weight_decay) == (asked.name, STRICT.epochs, STRICT.weight_decay)
    assert (rules.n_queries, rules.mask_weight, rules.full_matrix_loss) == (7, 1, True), "pairs and loss are as asked"
    assert protocol("strict,epochs=3").for_controls().epochs == 3


def test_backbones_are_loaded_as_the_text_says():
    assert loading_options("strict,normalization=imagenet") == {"normalization": "imagenet", "arithmetic": "centred"}
