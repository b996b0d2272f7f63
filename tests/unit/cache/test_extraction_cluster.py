"""Workers of a Dask cluster fill a cache with the same bytes, also when one of them is killed midway."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_fakes import ExactBackbone, ExactScenes, all_bytes, thirds

import bindkit as bk
from bindkit.cache import cache_activations, sizing
from bindkit.cache.cluster import _Order
from bindkit.errors import BackboneError, NonFiniteActivationsError
from bindkit.scenes import Split

distributed = pytest.importorskip("distributed", reason="needs bindkit[cluster]")
N = 25


class SlowScenes(ExactScenes):
    def __getitem__(self, position: int) -> Any:
        time.sleep(0.1)
        return super().__getitem__(position)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    here = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=None, env={"PYTHONPATH": here}
        ) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_LARGEST_SHARD", 2)


def run(root: Path, **options: Any) -> bk.ActivationCache:
    backbone, split = options.pop("backbone", None) or ExactBackbone(), Split(**vars(thirds(N)))
    return cache_activations(backbone, SlowScenes(N), root, patches_per_scene=11, split=split, **options)


def test_a_killed_worker_costs_its_shard_only_and_changes_no_byte(tmp_path: Path, client: Any) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    pids = list(client.run(os.getpid).values())
    records = tmp_path / "a" / "exact" / "exact" / ".work"

    def kill_one() -> None:
        while len(list(records.glob("*.json"))) < 3:
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    cache = run(tmp_path / "a", client=client)
    killer.join()
    assert all_bytes(cache.path) == whole and cache.verify() == []
    assert not set(pids) <= set(client.run(os.getpid).values())  # one of them is gone


def test_a_real_backbone_is_loaded_by_name_on_every_worker(tmp_path: Path, client: Any) -> None:
    scenes = bk.open_scenes("synthetic:n=9,seed=4,size=80x80")
    backbone = bk.load_backbone("bindkit/scenes-motion", device="cpu")
    here = cache_activations(backbone, scenes, tmp_path / "here", layers=[1])
    there = cache_activations(backbone, scenes, tmp_path / "there", layers=[1], client=client)
    assert there.shard_digests().keys() == here.shard_digests().keys()
    first, second = (cache.activations("train", 1).take(range(50)) for cache in (here, there))
    # Workers run torch with another number of threads, which may change the last bits.
    assert (first - second).abs().max() < 1e-3 * first.abs().max()


def test_another_backbone_on_a_worker_is_refused(tmp_path: Path) -> None:
    backbone = bk.load_backbone("random-init:vit")
    told = backbone.describe() | {"weights_digest": "00"}
    with pytest.raises(BackboneError, match="weights_digest: this call has '00', the worker has"):
        _Order({}, told).here()


def test_an_error_of_a_worker_is_raised_here(tmp_path: Path, client: Any) -> None:
    poisoned = ExactBackbone()
    poisoned.poison = {1: float("nan")}
    with pytest.raises(NonFiniteActivationsError, match=r"gave nan for scene scene-.* at layer 1"):
        run(tmp_path, client=client, backbone=poisoned)
    assert run(tmp_path).verify() == []
