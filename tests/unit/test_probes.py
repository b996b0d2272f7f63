"""Each probe equals its formula written out pair by pair, and comes back from disk as it was."""

import json
import math

import pytest
import torch
from torch.func import functional_call

from bindkit.errors import ProbeError, ProbeMismatchError
from bindkit.probes import PROBES, PairMoments, load_probe, make_probe, save_probe


def plain(value):
    return [float(entry) for entry in value]


def soft(logits):
    top = max(logits)
    shares = [math.exp(value - top) for value in logits]
    return [share / sum(shares) for share in shares]


def outcomes(probe, x):
    return [
        sum(w * v for w, v in zip(plain(row), x, strict=True)) + float(b)
        for row, b in zip(probe.weight, probe.bias, strict=True)
    ]


def bilinear(matrix, x, y):
    return sum(x[i] * float(matrix[i][j]) * y[j] for i in range(len(x)) for j in range(len(y)))


def formula(probe, x, y):
    """One pair's logit as DESIGN writes it: plain Python over dimensions."""
    d, x, y = len(x), plain(x), plain(y)
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    if probe.kind == "linear":
        return float(sum(probe.weight[k] * (x[k] + y[k]) for k in range(d)) + probe.bias)
    if probe.kind == "diag_quadratic":
        return float(sum(probe.weight[k] * x[k] * y[k] for k in range(d)) + probe.bias)
    if probe.kind in ("quadratic", "quadratic_fixed_rank"):
        weight = probe.weight if probe.kind == "quadratic" else probe.first.T @ probe.second
        return bilinear(weight + weight.T, x, y) / (2 * math.sqrt(d)) + float(probe.bias)
    if probe.kind == "cosine_similarity":
        return dot / (math.hypot(*x) * math.hypot(*y)) + float(probe.bias)
    if probe.kind == "dot_product":
        return dot + float(probe.bias)
    if probe.kind in ("softmax", "class_map", "identity_map"):
        same = sum(a * b for a, b in zip(soft(outcomes(probe, x)), soft(outcomes(probe, y)), strict=True))
        return same if probe.options.get("chance_is_logit") else math.log(same / (1 - same))
    if probe.kind == "self_attention":
        looked = []
        for patch, weight, bias in ((x, probe.query_weight, probe.query_bias), (y, probe.key_weight, probe.key_bias)):
            mean = sum(patch) / d
            spread = math.sqrt(sum((v - mean) ** 2 for v in patch) / d + probe.options["norm_epsilon"])
            normed = [
                (v - mean) / spread * float(w) + float(b)
                for v, w, b in zip(patch, probe.norm_weight, probe.norm_bias, strict=True)
            ]
            looked.append(
                [
                    sum(float(w) * v for w, v in zip(row, normed, strict=True)) + float(b)
                    for row, b in zip(weight, bias, strict=True)
                ]
            )
        head, width = probe.options["head"], d // probe.options["n_heads"]
        rows = range(d) if head is None else range(head * width, (head + 1) * width)
        return sum(looked[0][k] * looked[1][k] for k in rows) / math.sqrt(len(rows)) + float(probe.bias)
    raise AssertionError(f"write the formula of {probe.kind} here")


NAMED = {
    **{kind: {} for kind in PROBES},
    "quadratic_fixed_rank@2": {},
    "softmax@7": {},
    "softmax": {"chance_is_logit": True},
    "class_map": {"class_ids": [2, 5, 9]},
    "self_attention@1": {"n_heads": 3},
    "self_attention": {"n_heads": 3},
}


def filled(name, d_model=6, seed=3, **options):
    """A probe in float64 of which nothing is zero."""
    probe = make_probe(name, d_model, seed, **NAMED.get(name, {}) | options).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for weight in [*probe.parameters(), *(b for b in probe.buffers() if b.is_floating_point())]:
        weight.copy_(torch.randn(weight.shape, dtype=torch.float64, generator=generator))
    return probe


@pytest.mark.parametrize("name", NAMED)
def test_batched_logits_equal_the_formula_pair_by_pair(name):
    probe = filled(name)
    scenes = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = probe(scenes)
    assert logits.shape == (2, 4, 4)
    for scene in range(2):
        for i in range(4):
            for j in range(4):
                expected = formula(probe, scenes[scene, i], scenes[scene, j])
                assert math.isclose(float(logits[scene, i, j]), expected, rel_tol=1e-9, abs_tol=1e-9)
    other = torch.randn(2, 3, 6, dtype=torch.float64)
    assert probe.pairwise(scenes, other).shape == (2, 4, 3)
    assert torch.allclose(logits, logits.mT) == (probe.kind != "self_attention"), "only attention has a direction"


@pytest.mark.parametrize("name", [name for name in NAMED if PROBES[name.partition("@")[0]].trained_in != "raw"])
@pytest.mark.parametrize("diagonal", [True, False])
def test_folding_units_gives_the_same_logits_in_raw_units(name, diagonal):
    probe = filled(name)
    if probe.trained_in == "scaled" and not diagonal:
        pytest.skip("a diagonal probe is only ever scaled")
    raw = torch.randn(3, 6, dtype=torch.float64) * 10
    units = torch.rand(6, dtype=torch.float64) + 0.1 if diagonal else torch.randn(6, 6, dtype=torch.float64)
    before = probe(raw * units if diagonal else raw @ units.T)
    folded = probe.folded(dict(probe.named_parameters()), units)
    assert torch.allclose(functional_call(probe, folded, (raw,)), before)


def whitened_sample(n=200_000, d=4):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(2))
    form = torch.randn(d, d, dtype=torch.float64, generator=generator)
    form = form + form.T
    answer = (
        torch.einsum("ni,ij,nj->n", x, form, y) + torch.randn(n, dtype=torch.float64, generator=generator) > 1
    ).double()
    centred = answer - answer.mean()
    signal = torch.einsum("n,ni,nj->ij", centred, x, y) / n
    return x, y, centred, PairMoments(torch.eye(d, dtype=torch.float64), (signal + signal.T) / 2)


def test_the_quadratic_start_is_the_least_squares_fit_on_all_products():
    x, y, centred, moments = whitened_sample()
    products = torch.einsum("ni,nj->nij", x, y).flatten(1)
    best = torch.linalg.lstsq(products, centred[:, None]).solution.reshape(4, 4)
    probe = make_probe("quadratic", 4).double()
    start = probe.closed_form(moments)
    form = (start["weight"] + start["weight"].T) / (2 * math.sqrt(4))
    assert torch.allclose(form, (best + best.T) / 2, atol=0.003)
    ranked = make_probe("quadratic_fixed_rank@2", 4).double()
    low = ranked.closed_form(moments)
    form = (low["first"].T @ low["second"] + low["second"].T @ low["first"]) / (2 * math.sqrt(4))
    values, vectors = torch.linalg.eigh(moments.signal)
    kept = values.abs().argsort(descending=True)[:2]
    assert torch.allclose(form, (vectors[:, kept] * values[kept]) @ vectors[:, kept].T)
    diagonal = make_probe("diag_quadratic", 4).double().closed_form(moments)["weight"]
    best = torch.linalg.lstsq(x * y, centred[:, None]).solution[:, 0]
    assert torch.allclose(diagonal, best, atol=0.003)


def test_log_odds_stay_finite_and_right_where_outcomes_are_sure():
    probe = make_probe("softmax@3", 1).requires_grad_(False)
    probe.weight.copy_(torch.tensor([[0.0], [1.0], [-1.0]]))
    probe.bias.zero_()
    x = torch.tensor([[30.0], [29.0], [-80.0]])
    logits = probe(x)
    assert logits.isfinite().all()
    # 1 - p of the first two is about exp(-30) + exp(-29).
    assert math.isclose(float(logits[0, 1]), -math.log(math.exp(-30) + math.exp(-29)), rel_tol=1e-5)
    assert math.isclose(float(logits[0, 2]), -60, rel_tol=1e-5)


def test_a_class_map_knows_its_classes_and_calls_all_others_one():
    probe = make_probe("class_map", 2, class_ids=[3, 70])
    assert probe.targets(torch.tensor([[0, 3, 70, 4, 71, 3000]])).tolist() == [[0, 1, 2, 0, 0, 0]]
    x = torch.randn(5, 2)
    said = probe.says_same(x, probe(x))
    likeliest = probe.outcomes(x).argmax(1)
    assert said.tolist() == [[bool(a == b) for b in likeliest] for a in likeliest]


@pytest.mark.parametrize("name", ["cubic", "linear@2", "self_attention@a", "quadratic_fixed_rank@"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ProbeError, match="unknown probe"):
        make_probe(name, 4)


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_comes_back_from_disk_as_it_was(kind, tmp_path):
    probe = make_probe(kind, d_model=4, seed=2, **{"class_map": {"class_ids": [1, 7]}}.get(kind, {}))
    probe.temperature = 1.5
    probe.fitted_on = {"layer": 3, "backbone": "demo"}
    loaded = load_probe(save_probe(probe, tmp_path), d_model=4, layer=3)
    assert loaded.fitted_on == probe.fitted_on
    assert (loaded.kind, loaded.options, loaded.temperature) == (kind, probe.options, 1.5)
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), probe.pairwise(x, x) / 1.5)
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
    with pytest.raises(ProbeError, match=r"unknown probe 'cubic'; there are .*linear, diag_quadratic, quadratic"):
        make_probe("cubic", 4)
