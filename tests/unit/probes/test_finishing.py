"""Probes of one's own reach what scipy's optimiser reaches on the very same pairs, on caches of shipped backbones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu
from torch import nn

import bindkit as bk
from bindkit.errors import NonFiniteActivationsError
from bindkit.probes import PROBES, Probe, register_probe
from bindkit.probes.fitting import Training, fit_probe
from bindkit.probes.judging import TASKS
from bindkit.probes.layers import LayerPatches, TrainingPairs
from bindkit.probes.protocols import PAPER, STRICT

README_SCENES = "synthetic:n=400,seed=0,size=80x80,twins=1"


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """The scenes of bindkit/README.md as `bindkit/scenes-motion` sees them: its own probe once came out wrong here."""
    cache = bk.cache_activations(
        bk.load_backbone("bindkit/scenes-motion"),
        bk.open_scenes(README_SCENES),
        root=tmp_path_factory.mktemp("readme"),
        layers=[1, 3, 5],
    )
    return {layer: LayerPatches(cache, layer) for layer in (1, 3, 5)}


@pytest.fixture(autouse=True)
def own():
    """Registers a class as `mine`."""
    yield lambda probe_class, **changes: register_probe("mine")(type("Mine", (probe_class,), changes))
    PROBES.pop("mine", None)


class SumOfProducts(Probe):
    """bindkit/README.md's own example."""

    def __init__(self, d_model):
        super().__init__(d_model)
        self.factor = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def pairwise(self, x, y):
        return self.factor * (x @ y.mT) + self.bias

    @staticmethod
    def features(x, y):
        """For the independent check: the logit is these times the weights, plus offset."""
        return np.sum(x * y, 1, keepdims=True)

    has_offset = True


class StartedAtMinusOne(SumOfProducts):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.factor.data.fill_(-1.0)


class OtherNames(SumOfProducts):
    """One vector of both, and none is called bias."""

    def __init__(self, d_model):
        Probe.__init__(self, d_model)
        self.line = nn.Parameter(torch.tensor([1.0, 0.0]))

    def pairwise(self, x, y):
        return self.line[0] * (x @ y.mT) + self.line[1]


class FactorOnly(SumOfProducts):
    has_offset = False

    def __init__(self, d_model):
        Probe.__init__(self, d_model)
        self.factor = nn.Parameter(torch.ones(()))

    def pairwise(self, x, y):
        return self.factor * (x @ y.mT)


class Weighted(SumOfProducts):
    """A weight for each dimension."""

    def __init__(self, d_model):
        Probe.__init__(self, d_model)
        self.weights = nn.Parameter(torch.ones(d_model))
        self.start = nn.Parameter(torch.zeros(()))

    def pairwise(self, x, y):
        return (x * self.weights) @ y.mT + self.start

    @staticmethod
    def features(x, y):
        return x * y


class Distance(SumOfProducts):
    """Near in activations is one object."""

    def pairwise(self, x, y):
        return -self.factor * (x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :] - 2 * x @ y.mT) + (
            self.bias
        )

    @staticmethod
    def features(x, y):
        return np.sum((x - y) ** 2, 1, keepdims=True)


CONVEX = (SumOfProducts, StartedAtMinusOne, OtherNames, FactorOnly, Weighted, Distance)


def pairs_of(patches, split):
    """Both activations and the answer of every judged pair, by plain loops over scenes."""
    left, right, same = [], [], []
    for batch in patches.splits[split].judged():
        for scene in range(len(batch.scenes)):
            i, j = np.nonzero(batch.counted[scene].numpy())
            x = batch.activations[scene].double().numpy()
            for column, found in ((left, x[i]), (right, x[j]), (same, batch.same[scene].numpy()[i, j])):
                column.append(found)
    return np.concatenate(left), np.concatenate(right), np.concatenate(same).astype(float)


def best_by_scipy(patches, probe_class):
    """Lowest training loss of the formula, and its AUROC on the judged pairs: BFGS on features of one size."""
    x, y, same = pairs_of(patches, "train")
    length = np.sqrt(np.mean(np.sum(x**2, 1)))
    found = probe_class.features(x / length, y / length)
    # Without an offset nothing may be taken off, or it would have one.
    middle, size = (found.mean(0), found.std(0)) if probe_class.has_offset else (0.0, found.std(0))
    design = (found - middle) / size
    if probe_class.has_offset:
        design = np.column_stack([design, np.ones(len(design))])

    def loss(weights):
        logits = design @ weights
        slope = design.T @ (expit(logits) - same) / len(same)
        return np.mean(np.logaddexp(0, logits) - same * logits), slope

    starts = np.random.default_rng(0).normal(size=(5 if design.shape[1] < 9 else 1, design.shape[1]))
    best = min((minimize(loss, start, jac=True, method="BFGS") for start in starts), key=lambda tried: tried.fun)
    x, y, same = pairs_of(patches, patches.judged_split)
    judged = probe_class.features(x / length, y / length)
    scores, n_same = ((judged - middle) / size) @ best.x[: judged.shape[1]], same.sum()
    rank_sum = mannwhitneyu(scores[same > 0], scores[same == 0], method="asymptotic").statistic
    return best.fun, rank_sum / (n_same * (len(same) - n_same))


def loss_of(probe, patches, split="train"):
    """Mean loss of a fitted probe over every judged pair of a split."""
    total = count = 0.0
    for batch in patches.splits[split].judged():
        logits, same = probe(batch.activations)[batch.counted].double(), batch.same[batch.counted].double()
        total += float(nn.functional.binary_cross_entropy_with_logits(logits, same, reduction="sum"))
        count += len(same)
    return total / count


@pytest.mark.parametrize("probe_class", CONVEX, ids=lambda probe_class: probe_class.__name__)
def test_a_convex_probe_reaches_the_optimum_on_a_real_cache(layers, own, caplog, probe_class):
    """Whatever units it is trained in."""
    loss, auroc = best_by_scipy(layers[3], probe_class)
    for trained_in in ("normed", "raw"):
        own(probe_class, trained_in=trained_in)
        fit = fit_probe(layers[3], probe="mine")
        assert loss_of(fit.probe, layers[3]) == pytest.approx(loss, abs=1e-4)
        assert fit.metrics["auroc"] == pytest.approx(auroc, abs=0.002)
        assert "has not settled:" not in caplog.text


@pytest.mark.parametrize("layer", [1, 3, 5])
def test_readmes_own_probe_ranks_pairs_as_the_dot_product_does(layers, own, layer):
    """It ended upside down: AUROC 0.171, 0.304 and 0.389."""
    own(SumOfProducts)
    fit, plain = (fit_probe(layers[layer], probe=name) for name in ("mine", "dot_product"))
    assert float(fit.probe.factor) > 0
    assert fit.metrics["auroc"] == pytest.approx(plain.metrics["auroc"], abs=1e-3)
    assert fit.metrics["auroc"] > 0.6


class TwoLayers(Probe):
    """Products of what a small hidden layer says; not convex."""

    def __init__(self, d_model):
        super().__init__(d_model)
        self.hidden = nn.Linear(d_model, 8)
        self.factor, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def pairwise(self, x, y):
        return self.factor * (self.hidden(x).relu() @ self.hidden(y).relu().mT) + self.bias


@pytest.mark.parametrize("trained_in", ["normed", "raw"])
def test_two_layers_are_at_least_as_good_as_the_dot_product(layers, own, trained_in):
    own(TwoLayers, trained_in=trained_in)
    fit, plain = (fit_probe(layers[3], probe=name) for name in ("mine", "dot_product"))
    assert fit.metrics["auroc"] > plain.metrics["auroc"]


QUICK = replace(STRICT, epochs=2, min_steps=20)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return bk.cache_activations(PlantedBackbone(), PlantedScenes(40), root=tmp_path_factory.mktemp("planted"))


def test_shipped_probes_are_trained_as_before(planted):
    shipped = ["linear", "softmax", "dot_product", "quadratic"]
    for name in shipped:
        assert [entry["epoch"] for entry in fit_probe(planted, 2, name, protocol=QUICK).history][-2:] == [0, 1]


@pytest.mark.parametrize("protocol", [PAPER, STRICT], ids=lambda rules: rules.name)
def test_a_fit_that_has_not_settled_is_said_under_every_protocol(planted, own, caplog, monkeypatch, protocol):
    own(SumOfProducts)
    monkeypatch.setattr("bindkit.probes.fitting._ROUNDS", 1)
    monkeypatch.setattr("bindkit.probes.layers._ITERATIONS", 1)
    fit = fit_probe(planted, 1, "mine", protocol=protocol)
    assert "the mine probe on layer 1 of planted has not settled" in caplog.text
    if protocol is PAPER:
        assert "take the protocol strict" in caplog.text
        assert len(fit.history) == PAPER.epochs, "the reference's training to the letter"


@pytest.mark.parametrize(("epochs", "settles"), [(60, False), (600, True)])
def test_under_paper_the_warning_is_right(planted, own, caplog, epochs, settles):
    """Trained long enough it is where scipy ends, and nothing is said; else it is not, and that is said."""
    own(SumOfProducts)
    rules = replace(PAPER, name="long", epochs=epochs, learning_rate=0.3, decay_every=epochs // 3, keep="loss")
    patches = LayerPatches(planted, 1, rules)
    probe = fit_probe(patches, probe="mine").probe
    lowest, _ = best_by_scipy(patches, SumOfProducts)
    assert bool(loss_of(probe, patches) < 1.02 * lowest) is settles
    assert ("has not settled:" not in caplog.text) is settles


def test_weight_decay_pulls_a_probe_of_ones_own_to_its_end_as_well(planted, own, caplog):
    """What it descends is the loss and half the decay times the squares, whose slope is what Adam's decay adds."""
    own(SumOfProducts)
    found = {}
    for decay in (0.0, 0.1):
        patches = LayerPatches(planted, 1, replace(STRICT, weight_decay=decay))
        training = Training.begin("mine", TASKS["pairwise"], patches, 0)
        pairs = TrainingPairs(patches.splits["train"], training.task, 0, training.loss, training.logits)
        parameters = {
            name: torch.tensor(value, requires_grad=True) for name, value in (("factor", 0.2), ("bias", -3.0))
        }
        found[decay] = *pairs.loss(parameters), fit_probe(patches, probe="mine").probe
    (plain, slope, free), (pulled, steeper, held) = found.values()
    assert pulled == pytest.approx(plain + 0.05 * (0.2**2 + 3**2))
    assert (steeper - slope).tolist() == pytest.approx([0.1 * 0.2, 0.1 * -3.0])
    assert abs(float(held.bias)) < 0.5 * abs(float(free.bias))
    assert "has not settled:" not in caplog.text


def test_a_probe_that_found_nothing_is_said(planted, own, caplog):
    """Of a formula that can say nothing of pairs; not of labels of other scenes, which nothing can be found in."""

    class AnyPair(SumOfProducts):
        def pairwise(self, x, y):
            return self.factor * (x @ y.mT).sign() ** 2 + self.bias

    own(AnyPair)
    fit_probe(planted, 1, "mine", protocol=QUICK)
    assert "has learnt next to nothing" in caplog.text
    caplog.clear()
    fit_probe(planted, 1, "mine", "shuffled_labels", protocol=QUICK)
    assert "has learnt next to nothing" not in caplog.text


def test_training_that_went_astray_has_its_name(planted, own):
    class Bursts(SumOfProducts):
        def pairwise(self, x, y):
            return (self.factor * 1e3 * (x @ y.mT)).exp() + self.bias

    own(Bursts)
    with pytest.raises(NonFiniteActivationsError, match="the training loss of the mine probe"):
        fit_probe(planted, 1, "mine", protocol=QUICK)


def test_good_units_are_those_of_every_pairs_own_gradient(planted, own):
    """In them the gradients of the logits have the identity as second moment: here by the formula, pair by pair."""
    own(Distance)
    patches = LayerPatches(planted, 1)
    training = Training.begin("mine", TASKS["pairwise"], patches, 0)
    pairs = TrainingPairs(patches.splits["train"], training.task, 0, training.loss, training.logits)
    units = pairs.good_units(training.parameters, 0)
    x, y, _ = pairs_of(patches, "train")
    gradients = np.column_stack([-np.sum((x - y) ** 2, 1) * training.probe.scale**2, np.ones(len(x))])
    second = units.T.numpy() @ (gradients.T @ gradients / len(gradients)) @ units.numpy()
    np.testing.assert_allclose(second, np.eye(2), atol=0.5)
