"""Table, explorer and page choose one best layer, on the validation scenes, where the judged ones say another."""

import math

import pandas as pd
import pytest
from viewer_pages import photo, read_page

import bindkit as bk
from bindkit.probes import make_probe, save_probe
from bindkit.probes.protocols import accuracies_of, best_position
from bindkit.results.sweeping import probe_directory
from bindkit.results.tables import best_layers
from bindkit.views.explorer.sources import Shelf
from bindkit.views.viewer import spread_probes

CASES = {
    "5 against 3": ([[0.6, 0.7, 0.7, 0.8, 0.7, 0.9]], [[0.6, 0.7, 0.8, 0.9, 0.7, 0.7]], 5, "validation"),
    "2 against 0": ([[0.6, 0.7, 0.9, 0.8, 0.7, 0.6]], [[0.9, 0.7, 0.8, 0.7, 0.7, 0.7]], 2, "validation"),
    "equal: the lowest": ([[0.6, 0.9, 0.9, 0.8, 0.7, 0.9]], [[0.6, 0.7, 0.8, 0.9, 0.7, 0.7]], 1, "validation"),
    # Seed 0 alone would say layer 1.
    "two seeds": (
        [[0.6, 0.9, 0.8, 0.7, 0, 0], [0.6, 0.5, 0.8, 0.7, 0, 0]],
        [[0.9, 0, 0, 0, 0, 0]] * 2,
        2,
        "validation",
    ),
    "no validation": ([[None] * 6], [[0.6, 0.7, 0.8, 0.9, 0.7, 0.7]], 3, "test"),
    "one layer without": ([[None, 0.9, 0.9, 0.8, 0.7, 0.9]], [[0.6, 0.7, 0.8, 0.7, 0.9, 0.7]], 4, "test"),
}


@pytest.fixture(scope="module")
def backbone():
    return bk.load_backbone("bindkit/scenes-motion")


def planted(backbone, root, validated, judged):
    """Probes on disk as a sweep leaves them, and the rows of its table."""
    rows = []
    for seed in range(len(validated)):
        for layer in range(6):
            probe = make_probe("linear", backbone.d_model, seed).eval()
            row = {"backbone": backbone.name, "objective": "common-fate", "layer": layer, "probe": "linear"}
            row |= {"task": "pairwise", "protocol": "strict", "split": "test", "seed": seed}
            # Twins and AUROC say yet another layer: 0.
            metrics = {"accuracy": judged[seed][layer], "twins_auroc": 0.9 - layer / 10, "auroc": 0.9 - layer / 10}
            history = [{"validation_loss": loss, "validation_accuracy": validated[seed][layer]} for loss in (0.5, 0.4)]
            probe.fitted_on = row | {"weights_digest": backbone.weights_digest, "metrics": metrics, "history": history}
            save_probe(probe, probe_directory(root, row))
            rows.append(row | metrics | {"validation_accuracy": validated[seed][layer], "judged_pairs": "x"})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("case", CASES)
def test_table_explorer_and_page_agree(backbone, tmp_path, case):
    validated, judged, best, chosen_on = CASES[case]
    table = best_layers(planted(backbone, tmp_path, validated, judged))
    assert table[["layer", "chosen_on"]].values.tolist() == [[best, chosen_on]]
    assert Shelf(backbone, tmp_path).best_layer("linear") == best
    explorer = bk.AffinityExplorer(backbone, tmp_path, [photo(80, 80)])
    assert explorer.layer == best
    data, _ = read_page(bk.export_viewer(tmp_path / "page.html", backbone, tmp_path, [photo(80, 80)]))
    (shown,) = data["backbones"]
    assert (shown["layers"][shown["best"]]["layer"], shown["chosen_on"]) == (best, chosen_on)
    row = table.assign(seed=0).iloc[0].to_dict()
    places = [probe_directory(tmp_path, row | {"layer": layer}) for layer in range(6)]
    assert places[best] in spread_probes(places, 2)
    assert len(spread_probes(places, 2)) == 2
    if len(validated) == 1:
        some = [bk.load_probe(place) for place in places]
        data, _ = read_page(bk.export_viewer(tmp_path / "page.html", backbone, some, [photo(80, 80)]))
        assert data["backbones"][0]["best"] == best


def test_nothing_judged_has_no_best_and_equal_ones_count_as_equal():
    assert best_position([], []) == (None, False)
    assert best_position([math.nan], [math.nan]) == (None, False)
    assert best_position([0.5, 0.5 + 1e-12], [0.1, 0.9]) == (0, True)


def test_a_probe_says_its_validation_accuracy_itself_or_by_its_history():
    history = [
        {"validation_loss": 0.3, "validation_accuracy": 0.7},
        {"validation_loss": 0.4, "validation_accuracy": 0.8},
    ]
    assert accuracies_of({"protocol": "strict", "history": history}) == pytest.approx((0.7, math.nan), nan_ok=True)
    assert accuracies_of({"protocol": "paper", "history": history})[0] == 0.8
    assert math.isnan(accuracies_of({"protocol": "of one's own", "history": history})[0])
    said = {"protocol": "of one's own", "validation_accuracy": 0.75, "metrics": {"accuracy": 0.5}}
    assert accuracies_of(said) == (0.75, 0.5)
