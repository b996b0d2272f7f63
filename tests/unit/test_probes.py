"""Each probe equals its formula written out pair by pair, and comes back from disk as it was."""

import json
import math

import pytest
import torch

from bindkit.errors import ProbeError, ProbeMismatchError
from bindkit.probes import PROBES, load_probe, make_probe, save_probe


def formula(probe, x, y):
    """One pair's logit as DESIGN writes it: plain Python over dimensions."""
    d = len(x)
    if probe.kind == "linear":
        return float(sum(probe.weight[k] * (x[k] + y[k]) for k in range(d)) + probe.bias)
    if probe.kind == "diag_quadratic":
        return float(sum(probe.weight[k] * x[k] * y[k] for k in range(d)) + probe.bias)
    if probe.kind == "quadratic":
        total = sum(x[i] * (probe.weight[i, j] + probe.weight[j, i]) * y[j] for i in range(d) for j in range(d))
        return float(total / (2 * math.sqrt(d)) + probe.bias)
    raise AssertionError(f"write the formula of {probe.kind} here")


@pytest.mark.parametrize("kind", PROBES)
def test_batched_logits_equal_the_formula_pair_by_pair(kind):
    probe = make_probe(kind, d_model=5, seed=3).double().requires_grad_(False)
    scenes = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = probe(scenes)
    assert logits.shape == (2, 4, 4)
    for scene in range(2):
        for i in range(4):
            for j in range(4):
                assert math.isclose(float(logits[scene, i, j]), formula(probe, scenes[scene, i], scenes[scene, j]))
    other = torch.randn(2, 3, 5, dtype=torch.float64)
    assert probe.pairwise(scenes, other).shape == (2, 4, 3)
    assert torch.allclose(logits, logits.mT), "the order of the two patches must not matter"


@pytest.mark.parametrize("kind", PROBES)
def test_folding_a_scale_gives_the_same_logits_in_raw_units(kind):
    probe = make_probe(kind, d_model=6, seed=1).double()
    raw = torch.randn(3, 6, dtype=torch.float64) * 10
    scale = torch.rand(6, dtype=torch.float64) * 5 + 0.1
    before = probe(raw / scale)
    probe.fold_scale(scale)
    assert torch.allclose(probe(raw), before)


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_comes_back_from_disk_as_it_was(kind, tmp_path):
    probe = make_probe(kind, d_model=4, seed=2)
    probe.fitted_on = {"layer": 3, "backbone": "demo"}
    loaded = load_probe(save_probe(probe, tmp_path), d_model=4, layer=3)
    assert loaded.fitted_on == probe.fitted_on
    assert loaded.kind == kind
    assert all(
        torch.equal(a, b) for a, b in zip(probe.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_seeds_decide_the_weights_and_the_global_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = make_probe("quadratic", 4, seed=1).weight
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, make_probe("quadratic", 4, seed=1).weight)
    assert not torch.equal(first, make_probe("quadratic", 4, seed=2).weight)


def test_another_width_or_layer_is_refused_with_both_sides_named(tmp_path):
    probe = make_probe("linear", d_model=4)
    probe.fitted_on = {"layer": 3}
    save_probe(probe, tmp_path)
    with pytest.raises(ProbeMismatchError, match="width 4, got width 8"):
        load_probe(tmp_path, d_model=8)
    with pytest.raises(ProbeMismatchError, match="fitted on layer 3, it is asked to judge layer 5"):
        load_probe(tmp_path, layer=5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "probe.json").unlink(), "no readable probe.json"),
        (lambda d: (d / "probe.json").write_text("{"), "no readable probe.json"),
        (lambda d: (d / "probe.safetensors").unlink(), "cannot be read"),
        (lambda d: (d / "probe.safetensors").write_bytes(b"x" * 200), "not the file that was saved"),
        (lambda d: edit(d, format=99), "probe format 99"),
        (lambda d: edit(d, probe="cubic"), "'cubic' probe, which is not registered"),
        (lambda d: edit(d, d_model=9), "cannot be read"),
    ],
)
def test_a_damaged_probe_directory_is_a_named_error(damage, message, tmp_path):
    save_probe(make_probe("quadratic", d_model=4), tmp_path)
    damage(tmp_path)
    with pytest.raises(ProbeError, match=message):
        load_probe(tmp_path)


def edit(directory, **changes):
    path = directory / "probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unknown_probe_names_those_there_are():
    with pytest.raises(ProbeError, match=r"unknown probe 'cubic'; there are linear, diag_quadratic, quadratic"):
        make_probe("cubic", 4)
