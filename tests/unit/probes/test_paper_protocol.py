"""The paper protocol is the reference algorithm to the letter: a plainly written loop stands beside it.

The loop is written from the description of Li, Salehi, Ungar & Kording's choices alone: scene by scene, pair by pair.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from planted import PlantedBackbone, PlantedScenes
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from bindkit.cache import cache_activations
from bindkit.probes import AttentionMaps, load_probe, make_probe
from bindkit.probes.batches import SplitPatches
from bindkit.probes.fitting import fit_probe
from bindkit.probes.judging import TASKS, judge_split, own_figures, validate
from bindkit.probes.layers import LayerPatches
from bindkit.probes.protocols import PAPER, STRICT

CPU = torch.device("cpu")
D = 24
PROBES = (
    *("linear", "diag_quadratic", "quadratic", "quadratic_fixed_rank", "softmax"),
    *("cosine_similarity", "dot_product", "self_attention"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return cache_activations(PlantedBackbone(), PlantedScenes(24), root=tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def batch(cache):
    patches = SplitPatches(cache, "train", 2, PAPER, CPU)
    drawn = patches.draw(torch.arange(len(patches)), torch.Generator().manual_seed(0))
    assert drawn.activations.shape[1] == 64
    assert (drawn.instances == 0).any(), "unlabelled patches take part"
    return drawn


def maps():
    generator = torch.Generator().manual_seed(4)
    vectors = [torch.randn(D, generator=generator) for _ in range(4)]
    squares = [torch.randn(D, D, generator=generator) / 5 for _ in range(2)]
    queries_and_keys = squares[0], vectors[2], squares[1], vectors[3]
    return AttentionMaps(vectors[0], vectors[1], 1e-6, *queries_and_keys, squares[0], vectors[2], n_heads=3)


def reference_probe(name, seed=0):
    options = PAPER.options_of(name)
    if name == "self_attention":
        return make_probe(name, D, seed, n_heads=3, norm_epsilon=1e-6, **options).take(maps())
    return make_probe(name, D, seed, **options)


class OneLayerAtBothPatches(torch.nn.Module):
    """The reference's linear probe, from the start of ours: one nn.Linear, whose output is added at both patches."""

    kind = "linear"

    def __init__(self, probe):
        super().__init__()
        self.layer = torch.nn.Linear(D, 1)
        with torch.no_grad():
            self.layer.weight.copy_(probe.weight[None])
            self.layer.bias.fill_(float(probe.bias))


def plain_probe(name, seed=0):
    """What the plain loop trains."""
    probe = reference_probe(name, seed)
    return OneLayerAtBothPatches(probe) if name == "linear" else probe


def plain_logits(probe, x):
    """``[n, n]`` logits of one scene's patches ``[n, d]``, every pair expanded as the reference does."""
    n, d = x.shape
    first, second = x[:, None, :].expand(n, n, d), x[None, :, :].expand(n, n, d)
    if probe.kind == "linear":
        return (probe.layer(first) + probe.layer(second)).squeeze(-1)
    if probe.kind == "diag_quadratic":
        return (first * second * probe.weight).sum(-1) + probe.bias
    if probe.kind in ("quadratic", "quadratic_fixed_rank"):
        weight = probe.weight if probe.kind == "quadratic" else probe.first.T @ probe.second
        form = (weight + weight.T) / 2 / math.sqrt(d)
        return torch.stack([torch.stack([x[i] @ form @ x[j] for j in range(n)]) for i in range(n)]) + probe.bias
    if probe.kind == "softmax":
        shares = torch.softmax(x @ probe.weight.T + probe.bias, dim=1)
        return (shares[:, None, :] * shares[None, :, :]).sum(-1)
    if probe.kind == "cosine_similarity":
        return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1)) + probe.bias
    if probe.kind == "dot_product":
        return (first * second).sum(-1) + probe.bias
    m = maps()  # fed with the block's raw output
    queries, keys = x @ m.query_weight.T + m.query_bias, x @ m.key_weight.T + m.key_bias
    return (queries[:, None, :] * keys[None, :, :]).sum(-1) / math.sqrt(d) + probe.bias


def plain_pairwise(probe, activations, instances):
    """Loss over all N x N entries of all scenes, and accuracy over i < j, unlabelled being one more object."""
    logits, targets, right = [], [], []
    for x, labels in zip(activations, instances, strict=True):
        scores = plain_logits(probe, x)
        same = labels[:, None] == labels[None, :]
        logits.append(scores.reshape(-1))
        targets.append(same.reshape(-1).float())
        n = len(x)
        right += [bool((scores[i, j] > 0) == same[i, j]) for i in range(n) for j in range(i + 1, n)]
    return bce(torch.cat(logits), torch.cat(targets)), sum(right) / len(right)


@pytest.mark.parametrize("name", PROBES)
def test_loss_and_accuracy_of_a_batch_are_those_of_the_plain_loop(batch, name):
    probe = reference_probe(name)
    few = slice(0, 3)
    part = replace(
        batch,
        **{
            field: getattr(batch, field)[few]
            for field in ("activations", "instances", "classes", "corners", "window", "present", "positions", "scenes")
        },
    )
    loss, accuracy = plain_pairwise(plain_probe(name), part.activations, part.instances)
    ours = TASKS["pairwise"].loss(probe, part)
    assert ours.item() == pytest.approx(loss.item(), abs=1e-5, rel=1e-5)
    right = ((probe.says_same(part.activations, probe(part.activations)) == part.same) & part.counted).sum()
    assert float(right / part.counted.sum()) == pytest.approx(accuracy, abs=1e-5)
    if name == "softmax":
        assert accuracy == pytest.approx(float(part.same[part.counted].float().mean())), "it calls every pair the same"


@pytest.mark.parametrize("name", PROBES)
def test_validation_and_judged_figures_are_those_of_the_plain_loop(cache, name):
    patches = SplitPatches(cache, "validation", 2, PAPER, CPU)
    probe = reference_probe(name)
    (judged,) = patches.judged()
    with torch.no_grad():
        loss, accuracy = plain_pairwise(plain_probe(name), judged.activations, judged.instances)
    assert validate(probe, TASKS["pairwise"], patches) == pytest.approx((float(loss), accuracy), abs=1e-5)
    figures = judge_split(probe, patches)
    assert figures["accuracy"] == pytest.approx(accuracy, abs=1e-5)
    assert figures["n_pairs"] == len(patches) * 64 * 63 // 2


def test_the_diagonal_and_both_orders_are_in_the_loss(batch):
    probe = reference_probe("quadratic")
    logits = probe(batch.activations)
    upper = torch.ones(64, 64, dtype=torch.bool).triu(1).expand_as(logits)
    without = bce(logits[upper], batch.same[upper].float())
    assert abs((TASKS["pairwise"].loss(probe, batch) - without).item()) > 1e-3


def plain_pair_loss(probe, batch):
    return torch.stack([bce(plain_logits(probe, x), (i[:, None] == i[None, :]).float())
                        for x, i in zip(batch.activations, batch.instances, strict=True)]).mean()  # fmt: skip


def plain_class_loss(probe, batch):
    rows = zip(batch.activations.flatten(0, 1), batch.classes.flatten().tolist(), strict=True)
    logits = [(probe.weight @ x + probe.bias, wanted) for x, wanted in rows]
    return torch.stack([torch.logsumexp(row, 0) - row[wanted] for row, wanted in logits]).mean()


def plain_identity_loss(probe, batch, on_class=2, on_mask=5, on_dice=5, on_nothing=0.1):
    """Scene by scene: every pair of query and object costed, the cheapest assignment's costs averaged over objects."""
    matched, background = [], []
    for x, instances in zip(batch.activations, batch.instances, strict=True):
        logits = (x @ probe.weight.T + probe.bias).T
        wanted = [(instances == k).float() for k in sorted(set(instances.tolist()) - {0})]
        costs = []
        for row in logits[1:]:
            said = row.sigmoid()
            dice = [1 - (2 * (said * w).sum() + 1) / (said.sum() + w.sum() + 1) for w in wanted]
            costs.append([on_mask * bce(row, w) + on_dice * d for w, d in zip(wanted, dice, strict=True)])
        found = linear_sum_assignment(np.array([[float(cost) for cost in row] for row in costs]))
        matched += [costs[query][number] for query, number in zip(*found, strict=True)]
        ground = (instances == 0).float()
        background.append(bce(logits[0], ground, weight=on_nothing * ground + 1 - ground))
    return on_class * torch.stack(background).mean() + torch.stack(matched).mean()


PLAIN_LOSSES = {
    "pairwise": plain_pair_loss,
    "shuffled_labels": plain_pair_loss,
    "pointwise_class": plain_class_loss,
    "pointwise_identity": plain_identity_loss,
}


def plain_accuracy(probe, batch, pointwise):
    """Over pairs i < j of each scene, patch by patch where the task is."""
    right = []
    for x, labels in zip(batch.activations, batch.instances.tolist(), strict=True):
        if pointwise:
            likeliest = (x @ probe.weight.T + probe.bias).argmax(1)
            said = (likeliest[:, None] == likeliest[None, :]).tolist()
        else:
            said = (plain_logits(probe, x) > 0).tolist()
        n = len(x)
        right += [said[i][j] == (labels[i] == labels[j]) for i in range(n) for j in range(i + 1, n)]
    return sum(right) / len(right)


OTHER_FIELDS = {
    "weight_decay=0.3": {"weight_decay": 0.3},
    "epochs=3,learning_rate=0.05,decay_every=1,decay=0.5": {"lr": 0.05, "step_size": 1, "gamma": 0.5, "epochs": 3},
}
OTHER_WEIGHTS = {"on_class": 1.5, "on_mask": 3, "on_dice": 0.5, "on_nothing": 0.7}


@pytest.mark.parametrize(
    ("name", "task", "text", "other"),
    [(name, "pairwise", "", {}) for name in PROBES]
    + [("linear", "pointwise_class", "", {}), ("linear", "pointwise_identity", "", {})]
    + [("linear", "shuffled_labels", "", {}), ("quadratic", "shuffled_labels", "", {})]
    + [(name, "pairwise", text, other) for name in ("linear", "diag_quadratic") for text, other in OTHER_FIELDS.items()]
    + [("linear", "pointwise_identity", "n_queries=9,weight_decay=0.3", OTHER_WEIGHTS | {"weight_decay": 0.3})],
)  # fmt: skip
def test_training_is_adam_with_its_schedule_on_the_same_batches(cache, name, task, text, other):
    """Also where fields of the protocol are set in text."""
    weights = {key: value for key, value in other.items() if key.startswith("on_")}
    said = ["paper,epochs=4" if "epochs" not in text else "paper", "scenes_per_step=4"]
    said += [] if "decay_every" in text else ["decay_every=2"]
    said += ["class_weight=1.5,mask_weight=3,dice_weight=0.5,no_object_weight=0.7"] if weights else []
    patches = LayerPatches(cache, 2, ",".join([*said, *filter(None, [text])]), attention=maps)
    fit = fit_probe(patches, probe=name, task=task, seed=5)
    assert len(fit.history) == other.get("epochs", 4)
    train, validation = patches.splits["train"], patches.splits["validation"]
    pointwise = task.startswith("pointwise")
    probe = TASKS[task].make_probe("linear", train, 5, cache.class_names) if pointwise else plain_probe(name, 5)
    if task == "pointwise_identity":
        assert len(probe.weight) == (10 if "n_queries" in text else 101)
    rate, decay = other.get("lr", 1e-3), other.get("weight_decay", 0.0)
    optimiser = torch.optim.Adam(probe.parameters(), lr=rate, weight_decay=decay)
    steps = {"step_size": other.get("step_size", 2), "gamma": other.get("gamma", 0.2)}
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, **steps)
    generator = torch.Generator().manual_seed(5)
    loss_of, best, kept = partial(PLAIN_LOSSES[task], **weights), -1.0, None
    (judged,) = validation.judged()
    judged = validation.shuffled(judged) if task == "shuffled_labels" else judged
    for epoch in range(other.get("epochs", 4)):
        losses = []
        for scenes in torch.randperm(len(train), generator=generator).split(4):
            drawn = train.draw(scenes, generator)
            drawn = train.shuffled(drawn) if task == "shuffled_labels" else drawn
            loss = loss_of(probe, drawn)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        schedule.step()
        assert len(losses) >= 3
        with torch.no_grad():
            loss, accuracy = float(loss_of(probe, judged)), plain_accuracy(probe, judged, pointwise)
        assert fit.history[epoch]["train_loss"] == pytest.approx(np.mean(losses), abs=1e-5, rel=1e-6)
        assert fit.history[epoch]["validation_loss"] == pytest.approx(loss, abs=1e-5, rel=1e-6)
        assert fit.history[epoch]["validation_accuracy"] == pytest.approx(accuracy, abs=1e-5)
        if accuracy > best:
            best, kept = accuracy, {key: value.detach().clone() for key, value in probe.named_parameters()}
    learned = dict(fit.probe.named_parameters())
    for key, value in kept.items():
        found = learned[key.removeprefix("layer.")]
        assert torch.allclose(found, value.reshape(found.shape), atol=1e-5), key


@pytest.mark.parametrize("name", ["linear", "self_attention"])
def test_a_probe_fitted_under_paper_comes_back_from_disk_as_it_was_fitted(cache, name, tmp_path):
    patches = LayerPatches(cache, 1, replace(PAPER, epochs=1), attention=maps)
    fit = fit_probe(patches, probe=name)
    again = load_probe(fit.save(tmp_path))
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), fit.probe(x))
    assert not torch.allclose(fit.probe(x), make_like_strict(fit.probe)(x)), "which is another function under strict"


def make_like_strict(probe):
    options = {key: value for key, value in probe.options.items() if key not in PAPER.options_of(probe.kind)}
    found = make_probe(probe.kind, D, **options)
    found.load_state_dict(probe.state_dict())
    return found


def test_strict_probes_say_nothing_of_what_only_paper_does():
    for kind in ("linear", "self_attention"):
        assert not make_probe(kind, D, **STRICT.options_of(kind)).options.keys() & STRICT.options_of(kind).keys()


def test_pointwise_class_is_cross_entropy_over_patches_and_equal_classes_over_pairs(cache, batch):
    patches = LayerPatches(cache, 2, PAPER)
    task = TASKS["pointwise_class"]
    probe = task.make_probe("linear", patches.splits["train"], 0, [1, 2, 3])
    total, count, right = 0.0, 0, []
    hits = 0
    for x, classes, instances in zip(batch.activations, batch.classes, batch.instances, strict=True):
        logits = x @ probe.weight.T + probe.bias
        for row, wanted in zip(logits, classes.tolist(), strict=True):
            total -= float(row[wanted] - torch.logsumexp(row, 0))
            count += 1
        said = logits.argmax(1).tolist()
        hits += sum(a == b for a, b in zip(said, classes.tolist(), strict=True))
        n = len(x)
        right += [(said[i] == said[j]) == bool(instances[i] == instances[j]) for i in range(n) for j in range(i + 1, n)]
    assert float(task.loss(probe, batch)) == pytest.approx(total / count, abs=1e-5)
    says = probe.says_same(batch.activations, probe(batch.activations))
    ours = float(((says == batch.same) & batch.counted).sum() / batch.counted.sum())
    assert ours == pytest.approx(sum(right) / len(right), abs=1e-5)
    assert own_figures(task, [(probe, batch)])["class_accuracy"] == pytest.approx(hits / count)


def reference_count(said, wanted, scenes):
    """Entry by entry of every scene's N x N, the diagonal and both orders: equal answers against equal truths."""
    right = [
        (said[s][i] == said[s][j]) == (wanted[s][i] == wanted[s][j])
        for s in range(scenes)
        for i in range(len(said[s]))
        for j in range(len(said[s]))
    ]
    return sum(right) / len(right)


@pytest.mark.parametrize("task", ["pointwise_class", "pointwise_identity"])
def test_the_references_own_figure_counts_the_diagonal_and_equal_truths(cache, task):
    fit = fit_probe(LayerPatches(cache, 1, replace(PAPER, epochs=2)), probe="linear", task=task)
    patches = SplitPatches(cache, fit.split, 1, PAPER, CPU)
    (judged,) = patches.judged()
    with torch.no_grad():
        said = (judged.activations @ fit.probe.weight.T + fit.probe.bias).argmax(-1).tolist()
    truth = judged.classes if task == "pointwise_class" else judged.instances
    ours = fit.metrics["reference_accuracy"]
    assert ours == pytest.approx(reference_count(said, truth.tolist(), len(said)), abs=1e-9)
    n = len(said[0])
    if task == "pointwise_identity":  # the same pairs and truths but for the diagonal, which is always right
        assert ours == pytest.approx(((n - 1) * fit.metrics["accuracy"] + 1) / n, abs=1e-9)
    else:
        assert abs(ours - ((n - 1) * fit.metrics["accuracy"] + 1) / n) > 1e-3, "classes are no objects"
    assert fit.row()["reference_accuracy"] == ours


def test_the_references_own_figure_leaves_out_patches_that_a_scene_lacks(cache):
    patches = LayerPatches(cache, 1, PAPER)
    (judged,) = patches.splits["validation"].judged()
    probe = TASKS["pointwise_identity"].make_probe("linear", patches.splits["train"], 0, [])
    present = judged.present.clone()
    present[0, 10:] = False
    part = replace(judged, present=present)
    with torch.no_grad():
        said = (part.activations @ probe.weight.T + probe.bias).argmax(-1)
    rows = range(len(said))
    kept = [[labels[row][present[row]].tolist() for row in rows] for labels in (said, part.instances)]
    found = own_figures(TASKS["pointwise_identity"], [(probe, part)])["reference_accuracy"]
    assert found == pytest.approx(reference_count(*kept, len(said)), abs=1e-9)


def test_tasks_that_the_reference_judges_as_we_do_have_no_second_figure(cache):
    fit = fit_probe(cache, 1, "linear", protocol=replace(PAPER, epochs=1))
    assert math.isnan(fit.row()["reference_accuracy"])


def mask_loss(logits, wanted):
    return float(
        np.mean([max(v, 0) - v * t + math.log1p(math.exp(-abs(v))) for v, t in zip(logits, wanted, strict=True)])
    )


def dice_loss(logits, wanted):
    said = [1 / (1 + math.exp(-v)) for v in logits]
    both = sum(s * t for s, t in zip(said, wanted, strict=True))
    return 1 - (2 * both + 1) / (sum(said) + sum(wanted) + 1)


@pytest.mark.parametrize("weights", [(2, 5, 5, 0.1), (1, 0, 3, 0.5), (0, 2, 0.5, 1), (3, 1, 1, 0)], ids=str)
def test_pointwise_identity_matches_queries_to_objects_scene_by_scene(batch, weights):
    names = ("class_weight", "mask_weight", "dice_weight", "no_object_weight")
    on_class, on_mask, on_dice, on_nothing = weights
    batch = replace(batch, protocol=replace(PAPER, **dict(zip(names, weights, strict=True))))
    task = TASKS["pointwise_identity"]
    probe = make_probe("identity_map", D, 1, n_queries=9)
    masks_total, n_masks, background, overlaps = 0.0, 0, [], []
    for x, instances in zip(batch.activations, batch.instances.tolist(), strict=True):
        logits = (x @ probe.weight.T + probe.bias).detach().double().T.tolist()
        objects = sorted(set(instances) - {0})
        wanted = [[float(k == label) for label in instances] for k in objects]
        cost = [[on_mask * mask_loss(row, w) + on_dice * dice_loss(row, w) for w in wanted] for row in logits[1:]]
        for query, number in zip(*linear_sum_assignment(np.array(cost)), strict=True):
            masks_total += cost[query][number]
            n_masks += 1
        entries = []
        for value, label in zip(logits[0], instances, strict=True):
            chance = 1 / (1 + math.exp(-value))
            entries.append(-on_nothing * math.log(chance) if label == 0 else -math.log(1 - chance))
        background.append(float(np.mean(entries)))
        said = np.array(logits).argmax(0)
        iou = [
            [((said == q) & (np.array(w) > 0)).sum() / ((said == q) | (np.array(w) > 0)).sum() for w in wanted]
            for q in range(1, 10)
        ]
        found = linear_sum_assignment(-np.array(iou))
        overlaps += [np.array(iou)[found].sum() / len(objects)] * len(objects)
    expected = on_class * np.mean(background) + masks_total / n_masks
    assert float(task.loss(probe, batch)) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert own_figures(task, [(probe, batch)])["matched_iou"] == pytest.approx(np.mean(overlaps), abs=1e-6)


def test_shuffled_labels_are_the_pairwise_loss_on_labels_of_other_patches(cache):
    patches = SplitPatches(cache, "validation", 2, PAPER, CPU)
    probe = reference_probe("quadratic")
    (plain,) = patches.judged()
    shuffled = patches.shuffled(plain)
    loss, accuracy = plain_pairwise(probe, shuffled.activations, shuffled.instances)
    ours = validate(probe, TASKS["shuffled_labels"], patches)
    assert ours == pytest.approx((float(loss), accuracy), abs=1e-5)
    assert ours[0] != pytest.approx(validate(probe, TASKS["pairwise"], patches)[0], abs=1e-4)
