"""Which probes of a directory a page shows."""

import pytest

from bindkit.errors import ProbeError
from bindkit.probes import make_probe, save_probe
from bindkit.views.viewer import find_probes


def keep(root, name, kind="quadratic", **fitted_on):
    probe = make_probe(kind, 4)
    probe.fitted_on = {"backbone": "mine", "task": "pairwise", "protocol": "strict", "seed": 0} | fitted_on
    return save_probe(probe, root / name)


def names(found):
    return [place.name for place in found]


def test_one_a_layer_the_most_capable_kind_layers_ascending(tmp_path):
    keep(tmp_path, "mine/b/late", layer=10)
    keep(tmp_path, "mine/a/early", layer=9)
    keep(tmp_path, "mine/a/linear", "linear", layer=9)
    keep(tmp_path, "other/theirs", layer=9, backbone="other")
    assert names(find_probes(tmp_path, "mine")) == ["early", "late"]
    assert names(find_probes(tmp_path, "mine", layers=[10])) == ["late"]
    assert names(find_probes(tmp_path, "mine", probe="linear")) == ["linear"]
    assert names(find_probes(tmp_path / "mine" / "a" / "early", "mine")) == ["early"]


def test_a_kind_that_covers_more_layers_goes_before_a_more_capable_one(tmp_path):
    keep(tmp_path, "q", layer=0)
    for layer in (0, 1):
        keep(tmp_path, f"l{layer}", "linear", layer=layer)
    assert names(find_probes(tmp_path, "mine")) == ["l0", "l1"]


def test_strict_goes_before_paper_and_low_seeds_before_high(tmp_path):
    keep(tmp_path, "a", layer=0, protocol="paper")
    keep(tmp_path, "b", layer=0, seed=3)
    keep(tmp_path, "c", layer=0, seed=1)
    assert names(find_probes(tmp_path, "mine")) == ["c"]


def test_weights_decide_where_they_are_known(tmp_path):
    keep(tmp_path, "old", layer=0, weights_digest="a" * 64)
    keep(tmp_path, "new", layer=0, weights_digest="b" * 64)
    assert names(find_probes(tmp_path, "mine", weights_digest="b" * 64)) == ["new"]
    assert names(find_probes(tmp_path, "renamed", weights_digest="a" * 64)) == ["old"]


def test_what_is_missing_is_said_with_what_there_is(tmp_path):
    with pytest.raises(ProbeError, match="holds no fitted probe"):
        find_probes(tmp_path)
    with pytest.raises(ProbeError, match="nowhere holds no fitted probe"):
        find_probes(tmp_path / "nowhere")
    keep(tmp_path, "a", layer=0)
    with pytest.raises(ProbeError, match="no probe of yours; it has probes of mine"):
        find_probes(tmp_path, "yours")
    with pytest.raises(ProbeError, match="no quadratic probe of layer 7 of mine"):
        find_probes(tmp_path, "mine", layers=[0, 7])
    with pytest.raises(ProbeError, match="no linear probe of mine; it has quadratic"):
        find_probes(tmp_path, "mine", probe="linear")
    (tmp_path / "a" / "probe.json").write_text("{}")
    with pytest.raises(ProbeError, match=r"probe.json cannot be read"):
        find_probes(tmp_path, "mine")
