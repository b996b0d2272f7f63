"""Each probe equals its formula written out pair by pair, and comes back from disk as it was."""

import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.func import functional_call

from bindkit.errors import ProbeError, ProbeMismatchError
from bindkit.probes import PROBES, PairMoments, by_capability, load_probe, make_probe, parse_probe, save_probe


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
    "quadratic_fixed_rank@16": {},
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


# Every kind that is trained in units of its own, with each shape of units that it can get.
SHAPES = {"raw": [], "scaled": ["diagonal"], "whitened": ["diagonal", "matrix"]}
FOLDED = [(name, shape == "diagonal") for name in NAMED for shape in SHAPES[PROBES[parse_probe(name)[0]].trained_in]]


@pytest.mark.parametrize(("name", "diagonal"), FOLDED)
def test_folding_units_gives_the_same_logits_in_raw_units(name, diagonal):
    probe = filled(name)
    raw = torch.randn(3, 6, dtype=torch.float64) * 10
    units = torch.rand(6, dtype=torch.float64) + 0.1 if diagonal else torch.randn(6, 6, dtype=torch.float64)
    before = probe(raw * units if diagonal else raw @ units.T)
    folded = probe.folded(dict(probe.named_parameters()), units)
    assert set(folded) == {key for key, _ in probe.named_parameters()}
    assert torch.allclose(functional_call(probe, folded, (raw,)), before)


@pytest.mark.parametrize("kind", [kind for kind in PROBES if PROBES[kind].trained_in == "raw"])
def test_a_probe_that_is_trained_in_raw_units_folds_none(kind):
    with pytest.raises(ProbeError, match=f"the {kind} probe says trained_in = 'raw' but does not define folded"):
        make_probe(kind, 4).folded({}, torch.ones(4))


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


@pytest.mark.parametrize("rank", [4, 9])
def test_a_rank_that_is_no_limit_starts_as_the_quadratic_probe_does(rank):
    x, *_, moments = whitened_sample(n=200)
    whole, ranked = (make_probe(name, 4).double() for name in ("quadratic", f"quadratic_fixed_rank@{rank}"))
    logits = [functional_call(probe, probe.closed_form(moments), (x[:7],)) for probe in (whole, ranked)]
    assert torch.allclose(logits[0], torch.einsum("ni,ij,mj->nm", x[:7], moments.signal, x[:7]))
    assert torch.allclose(*logits)


def test_the_diagonal_start_is_the_least_squares_fit_of_correlated_dimensions_too():
    x, y, *_ = whitened_sample()
    mixing = torch.tensor([[1, 0, 0, 0], [0.8, 0.6, 0, 0], [0, 0.6, 0.8, 0], [0, 0, 0, 1]], dtype=torch.float64)
    x, y = x @ mixing.T, y @ mixing.T
    answer = ((x * y) @ torch.tensor([1.0, -0.5, 2.0, 0.0], dtype=torch.float64) > 1).double()
    centred = answer - answer.mean()
    signal = torch.einsum("n,ni,nj->ij", centred, x, y) / len(x)
    start = (
        make_probe("diag_quadratic", 4)
        .double()
        .closed_form(PairMoments(mixing @ mixing.T, (signal + signal.T) / 2))["weight"]
    )
    best = torch.linalg.lstsq(x * y, centred[:, None]).solution[:, 0]
    assert torch.allclose(start, best, atol=0.004)
    assert not torch.allclose(signal.diagonal(), best, atol=0.02), "the correlations matter here"


def plain_log_odds(first, second):
    """Log odds of one pair from the logits of its outcomes, added up in logarithms: nothing under- or overflows."""

    def log_sum(terms):
        top = max(terms)
        return top + math.log(math.fsum(math.exp(term - top) for term in terms))

    outcomes = range(len(first))
    same = log_sum([first[k] + second[k] for k in outcomes])
    return same - log_sum([first[k] + second[m] for k in outcomes for m in outcomes if k != m])


@pytest.mark.parametrize(("spread", "beyond"), [(1, "none"), (40, "none"), (100, "some"), (1000, "all")])
def test_log_odds_are_right_as_far_as_float32_reaches_and_finite_beyond(spread, beyond):
    probe = make_probe("softmax@5", 5).requires_grad_(False)
    probe.weight.copy_(torch.eye(5))
    probe.bias.zero_()
    x = spread * torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    limit = -math.log(torch.finfo(torch.float32).tiny)
    expected = [[max(-limit, min(limit, plain_log_odds(plain(a), plain(b)))) for b in x] for a in x]
    assert torch.allclose(probe(x), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    reached = [abs(value) == limit for row in expected for value in row]
    assert beyond == ("all" if all(reached) else "some" if any(reached) else "none")
    for same in (0.0, 1.0):
        probe.requires_grad_(True).zero_grad()
        logits = probe(x)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, same)).backward()
        assert probe.weight.grad.isfinite().all()


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
    assert make_probe("class_map", 2).targets(torch.tensor([0, 1, 150])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", PROBES)
def test_pairs_are_called_same_by_their_logit_or_by_the_likeliest_outcome(kind):
    probe = filled(kind)
    scenes = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits = torch.randn(2, 9, 9, dtype=torch.float64)
    logits[0, 0, 0] = 0
    said = probe.says_same(scenes, logits)
    if kind in ("class_map", "identity_map"):
        top = [[max(range(len(o)), key=o.__getitem__) for o in (outcomes(probe, plain(x)) for x in s)] for s in scenes]
        assert said.tolist() == [[[a == b for b in row] for a in row] for row in top]
    else:
        assert said.tolist() == [[[value > 0 for value in row] for row in scene] for scene in logits.tolist()]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("quadratic_fixed_rank@16", ("quadratic_fixed_rank", {"rank": 16})),
        ("self_attention@0", ("self_attention", {"head": 0})),
        ("softmax@7", ("softmax", {"n_outcomes": 7})),
        *((kind, (kind, {})) for kind in PROBES),
    ],
)
def test_a_name_is_a_kind_and_the_kinds_own_number(name, read):
    assert parse_probe(name) == read


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cubic", "there are .*quadratic_fixed_rank"),
        ("", "there are"),
        ("cubic@3", "there are"),
        ("linear@2", "linear takes nothing behind an @"),
        ("linear@", "linear takes nothing behind an @"),
        ("self_attention@a", r"takes a whole number behind the @ \(head\)"),
        ("self_attention@-1", r"takes a whole number behind the @ \(head\)"),
        ("quadratic_fixed_rank@", r"takes a whole number behind the @ \(rank\)"),
        ("quadratic_fixed_rank@1.5", r"takes a whole number behind the @ \(rank\)"),
        ("quadratic_fixed_rank@²", r"takes a whole number behind the @ \(rank\)"),
    ],
)
def test_a_name_that_is_none_is_refused(name, message):
    with pytest.raises(ProbeError, match=f"unknown probe '{name}'.*{message}"):
        parse_probe(name)
    with pytest.raises(ProbeError, match="unknown probe"):
        make_probe(name, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quadratic_fixed_rank@0", "rank 0 says nothing"),
        ("softmax@0", "0 outcomes tells no patches apart"),
        ("softmax@1", "1 outcomes tells no patches apart"),
    ],
)
def test_a_number_that_leaves_nothing_to_learn_is_refused(name, message):
    with pytest.raises(ProbeError, match=message):
        make_probe(name, 4)


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_comes_back_from_disk_as_it_was(kind, tmp_path):
    unusual = {
        "class_map": {"class_ids": [1, 7]},
        "identity_map": {"n_queries": 5},
        "quadratic_fixed_rank": {"rank": 3},
        "self_attention": {"n_heads": 2, "head": 1, "norm_epsilon": 0.01},
        "softmax": {"n_outcomes": 6, "chance_is_logit": True},
    }
    probe = make_probe(kind, d_model=4, seed=2, **unusual.get(kind, {}))
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


def test_classes_are_still_told_apart_after_a_round_trip(tmp_path):
    loaded = load_probe(save_probe(make_probe("class_map", 4, class_ids=[1, 7]), tmp_path))
    assert loaded.targets(torch.tensor([7, 1, 3, 9])).tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("kind", ["linear", "diag_quadratic", "quadratic"])
def test_a_record_of_version_1_still_loads(kind, tmp_path):
    """As the first version wrote it: these kinds, with neither options nor temperature."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 4) if kind == "quadratic" else (4,)
    weights = {"weight": torch.randn(shape, generator=generator), "bias": torch.randn((), generator=generator)}
    save_file(weights, tmp_path / "probe.safetensors")
    digest = hashlib.sha256((tmp_path / "probe.safetensors").read_bytes()).hexdigest()
    record = {"format": 1, "probe": kind, "d_model": 4, "sha256": digest, "fitted_on": {"layer": 2}}
    (tmp_path / "probe.json").write_text(json.dumps(record))
    probe = load_probe(tmp_path, d_model=4, layer=2)
    assert (probe.kind, probe.options, probe.temperature, probe.fitted_on) == (kind, {}, 1.0, {"layer": 2})
    assert torch.equal(probe.weight, weights["weight"])
    assert torch.equal(probe.bias, weights["bias"])


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


def test_the_most_capable_probe_comes_first():
    capable = ["quadratic_fixed_rank@16", "quadratic_fixed_rank@4", "linear", "softmax"]
    assert sorted(reversed(capable), key=by_capability) == capable
