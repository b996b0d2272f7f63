"""The binding subspace: a planted code in a few known directions, among noise of more and of less variance."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.linalg
import torch
from planted import PlantedBackbone, PlantedScenes

import bindkit as bk
from bindkit.analysis.subspace import (
    AXES,
    Moments,
    Subspace,
    _alike,
    chosen_subspace,
    effective_rank,
    form_of,
    random_like,
    seen_through,
    spectrum_of,
)
from bindkit.errors import InvalidParameterError, ProbeError, ProbeMismatchError
from bindkit.probes import make_probe
from bindkit.probes.protocols import STRICT

D, K = 24, 3
QUICK = replace(STRICT, epochs=6, min_steps=240, judged_patches=512)
BRIEF = replace(QUICK, epochs=2, min_steps=20)
BASIS = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0].float()
CODED = {0: slice(0, K), 1: slice(K, 2 * K), 2: slice(0, K)}
"""Columns of the basis in which a layer has the code of the instance."""
CODES = torch.cat([torch.zeros(1, K), torch.eye(K), -torch.eye(K)])
"""Of the instances 1 to 6 (0: none): an octahedron, on which products tell same from other."""
NOISE = torch.logspace(-1, 0.9, D)
"""Its standard deviation along the other directions: from far less than the code's to far more."""


@dataclass(frozen=True)
class CodedBackbone(PlantedBackbone):
    """The instance's code in three directions of each layer, in the others noise of many sizes."""

    def activations(self, windows, layers):
        grid = windows.float().reshape(-1, 8, 4, 8, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(len(windows), 64, 16, 3)
        instance = (grid[..., 0].median(-1).values / 20).round().long()
        generator = torch.Generator().manual_seed(7)
        found = {}
        for layer, at in CODED.items():
            # Of the patch's own pixels, so that a window gives the same activations whenever it is shown.
            turns, starts = torch.randn(16, D, generator=generator), 6.3 * torch.rand(D, generator=generator)
            noise = 1.4 * torch.sin(grid[..., 2] @ turns / 20 + starts) * NOISE
            noise[..., at] *= 0.1 / NOISE[at]
            noise[..., at] += 1.5 * CODES[instance]
            found[layer] = 3.0 + noise @ BASIS.T
        return {layer: found[layer] for layer in layers}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("coded")
    return bk.cache_activations(CodedBackbone(), PlantedScenes(30), root, dtype="float32")


@pytest.fixture(scope="module")
def fit(cache):
    return bk.fit_probe(cache, 0, "quadratic", protocol=QUICK)


def probe_of(form, like, layer=0):
    """A probe that is this very form, fitted (so it says) where another one was."""
    probe = make_probe("quadratic", D).eval().requires_grad_(False)
    probe.weight.copy_(form * math.sqrt(D))
    probe.bias.fill_(-0.5)
    probe.fitted_on = like.fitted_on | {"layer": layer}
    return probe


def coded_form(layer):
    directions = BASIS[:, CODED[layer]]
    return directions @ directions.T


def rows_of(cache, split, layer=0):
    """The rows that take part, and their instances, by the labels alone."""
    labels = cache.labels(split)
    chosen = np.flatnonzero((labels.instances > 0) & (labels.purity > 0.5))
    return cache.activations(split, layer).take(chosen).double(), labels.instances[chosen]


# --- closed forms ----------------------------------------------------------------------------------------------


def test_mean_and_covariance_are_those_of_the_training_patches(cache, fit):
    x, _ = rows_of(cache, "train")
    moments = Moments.of(cache, fit.probe)
    np.testing.assert_allclose(moments.mean, x.mean(0), atol=1e-9)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy().T, bias=True), atol=1e-7)
    root = moments.root().numpy()
    np.testing.assert_allclose(root, scipy.linalg.sqrtm(np.cov(x.numpy().T, bias=True)).real, atol=1e-5)
    np.testing.assert_allclose(moments.root(-0.5).numpy() @ root, np.eye(D), atol=1e-8)


@pytest.mark.parametrize("kind", ["quadratic", "quadratic_fixed_rank@3", "diag_quadratic"])
def test_the_form_is_what_the_probe_computes(cache, kind):
    probe = bk.fit_probe(cache, 0, kind, protocol=BRIEF).probe
    probe.temperature = 1.7
    x = cache.activations("test", 0).take(range(9))
    form, bias = form_of(probe), float(probe.bias.detach()) / 1.7
    expected = x.double() @ form @ x.double().T + bias
    np.testing.assert_allclose(probe(x).detach(), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(form, form.T)


def test_weights_are_the_eigenvalues_of_the_form_between_roots_of_the_covariance(cache, fit):
    x, _ = rows_of(cache, "train")
    root = scipy.linalg.sqrtm(np.cov(x.numpy().T, bias=True)).real
    weight = fit.probe.weight.detach().double().numpy() * fit.probe.scale**2
    form = (weight + weight.T) / (2 * math.sqrt(D))
    table = bk.binding_spectrum(cache, fit.probe)
    values = np.linalg.eigvalsh(root @ form @ root)
    values = values[np.argsort(-np.abs(values))]
    np.testing.assert_allclose(table["weight"], values, atol=1e-6 * abs(values[0]))
    plain = np.linalg.eigvalsh(form)
    np.testing.assert_allclose(table["eigenvalue"], plain[np.argsort(-np.abs(plain))], atol=1e-6)
    np.testing.assert_allclose(table["share"], values**2 / (values**2).sum(), atol=1e-6)
    np.testing.assert_allclose(table["cumulative"], np.cumsum(values**2) / (values**2).sum(), atol=1e-6)
    np.testing.assert_array_equal(table["sign"], np.sign(table["weight"]))
    assert list(table["axis"]) == [*range(1, D + 1)]
    assert table["effective_rank"].unique() == pytest.approx([(values**2).sum() ** 2 / (values**4).sum()])
    assert table["effective_rank_plain"].unique() == pytest.approx([(plain**2).sum() ** 2 / (plain**4).sum()])
    assert set(table["layer"]) == {0} and set(table["probe"]) == {"quadratic"} and set(table["backbone"]) == {"planted"}


def test_the_shares_are_of_the_variance_of_logits_between_random_patches(cache, fit):
    """The sum of squared weights is that variance, counted over all pairs of deviations from the mean."""
    x, _ = rows_of(cache, "train")
    deviations = x - x.mean(0)
    logits = deviations @ form_of(fit.probe) @ deviations.T
    weights = bk.binding_spectrum(cache, fit.probe)["weight"]
    assert float(logits.square().mean()) == pytest.approx((weights**2).sum(), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
def test_without_the_first_axes_a_form_has_the_weights_of_the_others(cache, fit, rank):
    """The binding projection takes exactly these terms out: the form seen through the rest."""
    form, moments = form_of(fit.probe), Moments.of(cache, fit.probe)
    found = chosen_subspace(form, moments, rank, "binding")
    rest = torch.eye(D, dtype=torch.float64) - found.readers @ found.writers.T
    before = spectrum_of(form, moments)[0]
    after = spectrum_of(rest @ form @ rest.T, moments)[0]
    np.testing.assert_allclose(after[: D - rank], before[rank:], atol=1e-8)
    np.testing.assert_allclose(after[D - rank :], 0, atol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_effective_rank_of_equal_values_is_their_number(n):
    assert effective_rank(np.array([-3.0] * n + [0.0] * 5)) == pytest.approx(n)
    assert effective_rank(np.array([1.0] * n)) == pytest.approx(n)
    assert 1 < effective_rank(np.array([1.0, 0.5])) < 2


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_probe_of_rank_r_reads_at_most_2r_directions(cache, rank):
    probe = bk.fit_probe(cache, 0, f"quadratic_fixed_rank@{rank}", protocol=BRIEF).probe
    for column in ("weight", "eigenvalue"):
        values = bk.binding_spectrum(cache, probe)[column].abs()
        assert 0 < (values > 1e-6 * values.max()).sum() <= 2 * rank


# --- the planted subspace ---------------------------------------------------------------------------------------


def auroc_seen(probe, cache, to):
    return bk.judge_probe(probe, seen_through(cache, to))["auroc"]


def test_a_planted_subspace_is_found(cache, fit):
    assert fit.metrics["auroc"] > 0.97
    found = bk.binding_subspace(cache, fit.probe, K)
    assert found.rank == K
    directions = BASIS[:, CODED[0]].double()
    # In units where all directions of the activations weigh alike, else faint ones would count for more than they are.
    root = Moments.of(cache, fit.probe).root()
    bases = [torch.linalg.qr(root @ part)[0] for part in (found.readers, directions)]
    cosines = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    assert cosines.min() > 0.95
    x, instances = rows_of(cache, "test")
    scores, code = found.scores(x).numpy(), CODES[instances].numpy()
    design = np.column_stack([scores, np.ones(len(scores))])
    residual = code - design @ np.linalg.lstsq(design, code, rcond=None)[0]
    assert (residual**2).sum() / (code**2).sum() < 0.1
    spectrum = bk.binding_spectrum(cache, fit.probe)
    assert spectrum["effective_rank"][0] == pytest.approx(K, abs=0.5)
    assert (spectrum["sign"][:K] == 1).all(), "alike speaks for one object"
    assert spectrum["cumulative"][K - 1] > 0.9


def test_without_it_the_probe_is_at_chance_and_without_a_random_one_it_is_not(cache, fit):
    found = bk.binding_subspace(cache, fit.probe, K)
    assert auroc_seen(fit.probe, cache, found.rest) == pytest.approx(0.5, abs=0.06)
    assert auroc_seen(fit.probe, cache, found.alone) > fit.metrics["auroc"] - 0.01
    for seed in (0, 1):
        random = bk.binding_subspace(cache, fit.probe, K, "random", seed)
        assert auroc_seen(fit.probe, cache, random.rest) > 0.75
    principal = bk.binding_subspace(cache, fit.probe, K, "principal")
    assert auroc_seen(fit.probe, cache, principal.rest) > fit.metrics["auroc"] - 0.01


def test_the_curve_says_how_many_directions_there_are(cache, fit):
    table = bk.rank_curve(cache, fit.probe, ranks=[D, 1, K, 99, K], n_random=2)
    figures = table.set_index(["axes", "rank"])
    assert list(figures.index) == [
        ("all", D),
        *((axes, k) for axes in ("binding", "eigenvalues", "principal", "random") for k in (1, K, D)),
        *(("refitted", k) for k in (1, K, D)),
    ]
    auroc = figures["auroc"]
    for name in ("accuracy", "auroc", "matched_auroc", "twins_auroc"):
        assert figures[name]["all", D] == pytest.approx(fit.metrics[name], abs=1e-6)
        for axes in AXES:
            assert figures[name][axes, D] == pytest.approx(fit.metrics[name], abs=1e-4), axes
    assert auroc["binding", K] > auroc["all", D] - 0.01
    assert auroc["refitted", K] > auroc["all", D] - 0.01
    assert auroc["binding", 1] < auroc["all", D] - 0.1 and auroc["refitted", 1] < auroc["all", D] - 0.1
    assert auroc["principal", K] == pytest.approx(0.5, abs=0.06)
    assert auroc["random", K] < auroc["binding", K] - 0.2
    assert figures["auroc_low"]["random", K] != figures["auroc_low"]["random", K], "a mean over draws has no interval"
    # Six test scenes are too few for an interval anywhere: what there is are the probe's own bounds.
    for end in ("low", "high"):
        bound = figures[f"auroc_{end}"]["all", D]
        assert bound == pytest.approx(fit.metrics[f"auroc_{end}"], abs=1e-6, nan_ok=True)
    assert table["n_pairs"].nunique() == table["n_scenes"].nunique() == 1
    assert "random" not in set(bk.rank_curve(cache, fit.probe, [1], n_random=0, refit=False)["axes"])


def test_large_eigenvalues_along_faint_directions_bind_nothing(cache, fit):
    """Of the code's form and a far larger one along what hardly varies, weights choose the code, eigenvalues the other.

    The faintest direction has a hundredth of the code's variance.
    """
    faint = BASIS[:, 2 * K].double()
    moments = Moments.of(cache, fit.probe)
    assert faint @ moments.covariance @ faint < 0.15
    probe = probe_of(coded_form(0) + 4 * torch.outer(faint, faint).float(), fit.probe)
    weights, plain = (chosen_subspace(form_of(probe), moments, 1, axes) for axes in ("binding", "eigenvalues"))
    assert abs(float(plain.readers[:, 0] @ faint)) == pytest.approx(1, abs=1e-4)
    read = weights.readers[:, 0] / weights.readers[:, 0].norm()
    assert abs(float(read @ faint)) < 0.3


# --- the split ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
def test_part_and_rest_are_the_activation_and_the_projection_is_one(cache, fit, axes):
    found = bk.binding_subspace(cache, fit.probe, 4, axes)
    x = cache.activations("test", 0).take(range(20)).double()
    part, rest = found.part(x), found.rest(x)
    torch.testing.assert_close(part + rest, x)
    torch.testing.assert_close(found.part(found.mean + part), part)
    torch.testing.assert_close(found.part(rest), torch.zeros_like(part))
    torch.testing.assert_close(found.alone(x), found.mean + part)
    torch.testing.assert_close(found.scores(found.alone(x)), found.scores(x))
    assert np.linalg.matrix_rank(part.numpy(), tol=1e-6) == 4
    torch.testing.assert_close(found.part(found.mean[None]), torch.zeros(1, D, dtype=torch.float64))
    # In any shape and type, as a model's own patches come.
    windows = x.float().reshape(2, 10, D)
    torch.testing.assert_close(found.part(windows), part.float().reshape(2, 10, D), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", ["eigenvalues", "principal", "random"])
def test_plain_axes_are_orthonormal(cache, fit, axes):
    found = bk.binding_subspace(cache, fit.probe, 5, axes)
    np.testing.assert_allclose(found.readers.T @ found.readers, np.eye(5), atol=1e-9)
    assert torch.equal(found.readers, found.writers)


def test_binding_scores_have_unit_variance_each_by_itself(cache, fit):
    x, _ = rows_of(cache, "train")
    scores = bk.binding_subspace(cache, fit.probe, 5).scores(x)
    np.testing.assert_allclose(np.cov(scores.numpy().T, bias=True), np.eye(5), atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 8, D])
def test_a_random_subspace_has_the_rank_and_the_energy_of_the_binding_part(cache, fit, rank):
    moments = Moments.of(cache, fit.probe)
    x, _ = rows_of(cache, "train")
    binding = bk.binding_subspace(cache, fit.probe, rank)
    energy = float(binding.part(x).square().sum(1).mean())
    assert binding.energy(moments) == pytest.approx(energy, rel=1e-9)
    drawn = [bk.binding_subspace(cache, fit.probe, rank, "random", seed) for seed in (0, 0, 1)]
    for random in drawn:
        np.testing.assert_allclose(random.readers.T @ random.readers, np.eye(rank), atol=1e-9)
        assert float(random.part(x).square().sum(1).mean()) == pytest.approx(energy, rel=1e-3)
    assert torch.equal(drawn[0].readers, drawn[1].readers)
    assert rank == D or not torch.allclose(drawn[0].readers @ drawn[0].readers.T, drawn[2].readers @ drawn[2].readers.T)


@pytest.mark.parametrize("end", ["least", "most"])
def test_the_most_and_the_least_energy_that_there_is_can_be_had(end):
    """Over six decades of variance, as deep layers have them."""
    values = torch.logspace(-4, 2, 64, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    moments = Moments(torch.zeros(64, dtype=torch.float64), (vectors * values) @ vectors.T)
    chosen = vectors[:, :5] if end == "least" else vectors[:, -5:]
    own = Subspace(chosen, chosen, moments.mean)
    random = random_like(own, moments, seed=0)
    assert own.energy(moments) == pytest.approx(float(values[:5].sum() if end == "least" else values[-5:].sum()))
    assert random.energy(moments) == pytest.approx(own.energy(moments), rel=0.01)
    np.testing.assert_allclose(random.readers.T @ random.readers, np.eye(5), atol=1e-9)


# --- comparing ------------------------------------------------------------------------------------------------


def test_the_same_twice_is_one_subspace(cache, fit):
    table = bk.compare_subspaces({"one": (cache, fit.probe), "two": (cache, fit.probe)}, K)
    row = table.iloc[0]
    assert len(table) == 1 and (row["first"], row["second"], row["rank"]) == ("one", "two", K)
    assert row["overlap"] == pytest.approx(1) and row["agreement"] == pytest.approx(1)
    assert row["overlap_chance"] == pytest.approx(K / D)
    assert row["agreement_chance"] < 0.8
    _, instances = rows_of(cache, "test")
    assert row["n_patches"] == len(instances)


def test_one_code_in_other_directions_agrees_without_overlap(cache, fit):
    """Layer 1 has the code of layer 0 in orthogonal directions; layer 2 has it in the same ones."""
    fitted = {f"layer {k}": (cache, probe_of(coded_form(k), fit.probe, k)) for k in CODED}
    table = bk.compare_subspaces(fitted, K).set_index(["first", "second"])
    assert list(table.index) == [("layer 0", "layer 1"), ("layer 0", "layer 2"), ("layer 1", "layer 2")]
    assert table["overlap"]["layer 0", "layer 1"] < 0.01
    assert table["overlap"]["layer 1", "layer 2"] < 0.01
    assert table["overlap"]["layer 0", "layer 2"] > 0.99
    assert (table["agreement"] > 0.95).all()
    assert (table["agreement_chance"] < 0.8).all()


def test_agreement_is_that_of_canonical_correlations(cache, fit):
    """Scores of noise in other directions: by whitening and a singular value decomposition."""
    forms = [torch.outer(BASIS[:, k], BASIS[:, k]) + 2 * torch.outer(BASIS[:, 1], BASIS[:, k]) for k in (10, 12)]
    probes = [probe_of((form + form.T) / 2, fit.probe) for form in forms]
    row = bk.compare_subspaces({"a": (cache, probes[0]), "b": (cache, probes[1])}, 2).iloc[0]
    x, _ = rows_of(cache, "test")
    whitened = []
    for probe in probes:
        scores = bk.binding_subspace(cache, probe, 2).scores(x).numpy()
        scores = scores - scores.mean(0)
        whitened.append(scores @ scipy.linalg.inv(scipy.linalg.sqrtm(scores.T @ scores)))
    expected = np.linalg.svd(whitened[0].T @ whitened[1], compute_uv=False)
    assert row["agreement"] == pytest.approx((expected**2).mean(), abs=1e-6)
    assert 0.3 < row["agreement"] < 0.7, "one direction of two is shared"


def test_random_subspaces_overlap_by_their_share_of_the_width():
    moments = Moments(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64))
    own = Subspace(torch.eye(D, K, dtype=torch.float64), torch.eye(D, K, dtype=torch.float64), moments.mean)
    found = [random_like(own, moments, seed).readers for seed in range(60)]
    overlaps = [_alike(found[k], found[k + 1], centred=False) for k in range(0, 60, 2)]
    assert np.mean(overlaps) == pytest.approx(K / D, abs=0.03)


def test_models_of_other_weights_share_no_directions_but_may_agree(cache, fit, tmp_path):
    other = bk.cache_activations(CodedBackbone("twin", weights_digest="1" * 64), PlantedScenes(30), tmp_path)
    probe = probe_of(coded_form(1), fit.probe, 1)
    probe.fitted_on |= {"weights_digest": "1" * 64, "backbone": "twin"}
    row = bk.compare_subspaces({"a": (cache, fit.probe), "b": (other, probe)}, K, n_random=0).iloc[0]
    assert math.isnan(row["overlap"]) and math.isnan(row["overlap_chance"]) and math.isnan(row["agreement_chance"])
    assert row["agreement"] > 0.9


class Renamed(PlantedScenes):
    """Of other pictures, so that no patch is shared."""

    uri = "renamed:"

    def __init__(self, n_scenes):
        super().__init__(n_scenes)
        self.ids = tuple(f"renamed-{k:03d}" for k in range(n_scenes))


def test_what_cannot_be_asked_is_named(cache, fit, tmp_path):
    linear = bk.fit_probe(cache, 0, "linear", protocol=BRIEF).probe
    for ask in (
        lambda probe: bk.binding_subspace(cache, probe, 2),
        lambda probe: bk.binding_spectrum(cache, probe),
        lambda probe: bk.rank_curve(cache, probe, [2]),
        lambda probe: bk.compare_subspaces({"a": (cache, probe), "b": (cache, probe)}, 2),
    ):
        with pytest.raises(ProbeError, match="the linear probe is no quadratic form, so it has no subspace"):
            ask(linear)
    with pytest.raises(InvalidParameterError, match=f"rank is at most {D}, the width of the activations, got {D + 1}"):
        bk.binding_subspace(cache, fit.probe, D + 1)
    with pytest.raises(InvalidParameterError, match="rank is at least 1, got 0"):
        bk.binding_subspace(cache, fit.probe, 0)
    with pytest.raises(InvalidParameterError, match="unknown axes 'best'; choose one of binding, eigenvalues"):
        bk.binding_subspace(cache, fit.probe, 2, "best")
    for ranks in ([], [D + 1]):
        with pytest.raises(InvalidParameterError, match=f"ranks has no number from 1 to {D}"):
            bk.rank_curve(cache, fit.probe, ranks)
    with pytest.raises(InvalidParameterError, match="give at least two fits"):
        bk.compare_subspaces({"a": (cache, fit.probe)}, 2)
    renamed = bk.cache_activations(CodedBackbone(), Renamed(12), tmp_path, dtype="float32")
    with pytest.raises(InvalidParameterError, match="a and b share 0 judged patches, too few to compare 2 directions"):
        bk.compare_subspaces({"a": (cache, fit.probe), "b": (renamed, fit.probe)}, 2)
    other = bk.cache_activations(CodedBackbone("x", weights_digest="2" * 64), Renamed(12), tmp_path / "other")
    with pytest.raises(ProbeMismatchError, match="was fitted on planted"):
        bk.binding_subspace(other, fit.probe, 2)
