"""Several processes fill one cache together: the same bytes, whoever does what, also when one of them is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cache_fakes import ExactBackbone, ExactScenes, all_bytes, thirds

import bindkit as bk
from bindkit.cache import cache_activations, sizing, writing
from bindkit.errors import CacheMismatchError, InvalidParameterError, WorkspaceBusyError
from bindkit.scenes import Split

WORKER = """
import sys, time
from pathlib import Path
from cache_fakes import ExactBackbone, ExactScenes, thirds
from bindkit.cache import cache_activations, computing, sizing
from bindkit.scenes import Split

sizing._LARGEST_SHARD, computing._LOOK_AGAIN = 2, 0.01
class Slow(ExactBackbone):
    def activations(self, windows, layers):
        time.sleep(float(sys.argv[2]))
        return super().activations(windows, layers)
backbone = Slow()
print("ready", flush=True)
input()
cache_activations(backbone, ExactScenes(N), root=Path(sys.argv[1]), patches_per_scene=11, workers=0,
                  split=Split(**vars(thirds(N))))
print(len(backbone.batches), flush=True)
"""
N = 25


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_LARGEST_SHARD", 2)


def run(root: Path, **options: Any) -> bk.ActivationCache:
    backbone = options.pop("backbone", None) or ExactBackbone()
    split = Split(**vars(thirds(N)))
    return cache_activations(backbone, ExactScenes(N), root, patches_per_scene=11, split=split, workers=0, **options)


def start(root: Path, pause: float) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER.replace("N)", f"{N})"), str(root), str(pause)],
        env=os.environ | {"PYTHONPATH": paths, "BINDKIT_PROGRESS": "off"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_share_the_shards_and_each_is_computed_once(tmp_path: Path) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    workers = [start(tmp_path / "a", 0.2) for _ in range(3)]
    for worker in workers:
        go(worker)
    outcomes = [worker.communicate(timeout=100) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outcomes
    batches = [int(out) for out, _ in outcomes]
    assert sum(batches) == 14 and sum(count > 0 for count in batches) >= 2
    assert all_bytes(tmp_path / "a" / "exact" / "exact") == whole


def test_killed_at_random_moments_the_others_go_on(tmp_path: Path) -> None:
    """Two at a time, one of which is killed after a while; and again until one ends."""
    whole, chance = all_bytes(run(tmp_path / "whole").path), random.Random(0)
    for trial in range(2):
        root, killed = tmp_path / str(trial), 0
        survivor, victim = start(root, 0.5), start(root, 0.05)
        go(survivor)
        while survivor.poll() is None:
            go(victim)
            time.sleep(chance.uniform(0.0, 0.4))
            if victim.poll() is None:
                victim.send_signal(signal.SIGKILL)
                killed += 1
            victim.communicate()
            victim = start(root, 0.05)
        victim.kill()
        victim.communicate()
        assert survivor.returncode == 0, survivor.communicate()
        survivor.communicate()
        assert killed > 0
        cache = run(root)  # a victim may have been killed while it sealed the finished cache
        assert all_bytes(cache.path) == whole and cache.verify() == []


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_together_make_the_whole_in_any_order(tmp_path: Path, world_size: int) -> None:
    whole = run(tmp_path / "whole")
    for rank in reversed(range(world_size)):
        backbone = ExactBackbone()
        cache = run(tmp_path / "a", share=(rank, world_size), backbone=backbone)
        assert 14 // world_size <= len(backbone.batches) <= 14 // world_size + 1
        assert cache.is_complete == (rank == 0)
    assert all_bytes(cache.path) == all_bytes(whole.path)
    backbone = ExactBackbone()
    assert run(tmp_path / "a", share=(1, 2), backbone=backbone).is_complete and not backbone.batches


def test_an_unfinished_cache_is_opened_with_what_is_there(tmp_path: Path) -> None:
    run(tmp_path, share=(0, 2))
    cache = bk.ActivationCache.open(tmp_path / "exact" / "exact")
    assert 0 < len(cache.shard_digests()) < 14 * 4 and cache.verify() == []


def test_a_record_that_was_damaged_has_its_shard_computed_again(tmp_path: Path) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    cache = run(tmp_path / "a", share=(0, 2))
    for place, record in enumerate(sorted((cache.path / ".work").glob("*.json"))[:3]):
        content = record.read_bytes()
        record.write_bytes((b"", content[:-9], content.replace(b'"rows": 2', b'"rows": 3'))[place])
    assert all_bytes(run(tmp_path / "a").path) == whole


def test_others_do_not_join_with_other_settings(tmp_path: Path) -> None:
    run(tmp_path, share=(0, 2))
    path = tmp_path / "exact" / "exact"
    with pytest.raises(CacheMismatchError, match="seed: the cache has 0, this call has 3"):
        run(tmp_path, seed=3)
    lock = writing.claim(path, "train", 1)
    assert lock is not None and writing.claim(path, "train", 1) is None
    with pytest.raises(WorkspaceBusyError, match="another process is writing"):
        run(tmp_path, changed="recompute", backbone=ExactBackbone(digest="bb"))
    with pytest.raises(WorkspaceBusyError):
        damaged = next(path.rglob("*.safetensors"))
        damaged.write_bytes(b"")
        bk.ActivationCache.open(path).repair()
    lock.release()
    assert run(tmp_path).verify() == []


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_shares_that_there_are_not(tmp_path: Path, share: tuple[int, int]) -> None:
    with pytest.raises(InvalidParameterError, match="counts from 0"):
        run(tmp_path, share=share)


def test_a_layer_that_another_process_adds_meanwhile_is_not_forgotten(tmp_path: Path) -> None:
    """While the first shards are computed for one layer, the last gets another layer from somebody else."""
    backbone, other = ExactBackbone(), ExactBackbone()
    honest = backbone.activations

    def interrupted(windows: Any, layers: Any) -> Any:
        if len(backbone.batches) == 1:
            run(tmp_path, layers=[1], share=(13, 14), backbone=other)
        return honest(windows, layers)

    backbone.activations = interrupted  # type: ignore[method-assign]
    cache = run(tmp_path, layers=[0], backbone=backbone)
    assert other.batches
    assert [sorted(record.layers) for _, _, record in cache.manifest.records()] == [[0]] * 13 + [[0, 1]]
    assert cache.verify() == []
