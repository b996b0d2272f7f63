"""Interrupted anywhere, by SIGKILL or by a failing disk, a run goes on and ends with the same bytes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cache_fakes import ExactBackbone, ExactScenes, all_bytes, thirds

import bindkit as bk
from bindkit.cache import cache_activations, sizing
from bindkit.errors import DiskSpaceError, WorkspaceBusyError
from bindkit.scenes import Split

# Runs in a process of its own, so that forking happens before any thread exists. Child number k is killed at its k-th
# step on disk (half a write, before or after a flush or a rename), until one child ends unharmed.
DRIVER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from cache_fakes import ExactBackbone, ExactScenes, thirds
from bindkit.cache import cache_activations, sizing
from bindkit.scenes import Split
import bindkit.files

def die_at(fatal):
    steps = 0
    def step():
        nonlocal steps
        if steps == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
    real_fsync, real_replace, real_open = os.fsync, Path.replace, Path.open
    class Halved:
        def __init__(self, stream): self.stream = stream
        def __enter__(self): return self
        def __exit__(self, *error): self.stream.close()
        def __getattr__(self, name): return getattr(self.stream, name)
        def write(self, content):
            half = len(content) // 2
            self.stream.write(content[:half]); self.stream.flush(); step()
            self.stream.write(content[half:])
    def opened(path, mode="r", *more, **options):
        stream = real_open(path, mode, *more, **options)
        return Halved(stream) if "w" in mode and "partial" in path.name else stream
    def fsync(descriptor): real_fsync(descriptor); step()
    def replace(path, target): step(); found = real_replace(path, target); step(); return found
    Path.open, os.fsync, Path.replace = opened, fsync, replace

sizing._LARGEST_SHARD = 2
root, stride = Path(sys.argv[1]), int(sys.argv[2])
for k in range(0, 10_000, stride):
    child = os.fork()
    if child == 0:
        die_at(k)
        cache_activations(ExactBackbone(), ExactScenes(), root=root / str(k), patches_per_scene=11, workers=k % 2,
                          split=Split(**vars(thirds(7))))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.WEXITSTATUS(status) == 0, status
        break
print(k)
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_LARGEST_SHARD", 2)


def run(root: Path, **options: Any) -> bk.ActivationCache:
    split = Split(**vars(thirds(7)))
    return cache_activations(
        options.pop("backbone", None) or ExactBackbone(),
        ExactScenes(),
        root=root,
        patches_per_scene=11,
        split=split,
        **options,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL, which this system does not have")
def test_killed_at_any_step_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "killed"), "11"],
        env=os.environ | {"PYTHONPATH": paths, "BINDKIT_PROGRESS": "off"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert driver.returncode == 0, driver.stderr
    roots = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.name))
    assert len(roots) >= 10
    leftovers, reused = set(), 0
    for root in roots:
        place = root / "exact" / "exact"
        leftovers |= {file.suffix for file in place.rglob("*.partial")}
        backbone = ExactBackbone()
        cache = run(root, backbone=backbone)
        reused += len(backbone.batches) < 5
        assert all_bytes(cache.path) == whole
        assert cache.verify() == []
    assert leftovers == {".partial"}  # kills did hit half-written files
    assert reused > 3  # and finished shards were not computed again


def count_steps(monkeypatch: pytest.MonkeyPatch, fail_at: int, error: int) -> list[int]:
    """Make the `fail_at`-th write, flush or rename fail."""
    steps = [0]

    def step() -> None:
        steps[0] += 1
        if steps[0] - 1 == fail_at:
            raise OSError(error, os.strerror(error))

    real_fsync, real_replace, real_open = os.fsync, Path.replace, Path.open

    def opened(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if "w" in mode and path.name.endswith(".partial"):
            step()
        return real_open(path, mode, *more, **options)

    def fsync(descriptor: int) -> None:
        step()
        real_fsync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        step()
        return real_replace(path, target)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replaced)
    return steps


def test_a_disk_that_fills_up_at_any_step_loses_nothing(tmp_path: Path) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    fail_at, failures = 0, 0
    while True:
        root = tmp_path / str(fail_at)
        with pytest.MonkeyPatch.context() as patch:
            count_steps(patch, fail_at, errno.ENOSPC if fail_at % 2 else errno.EDQUOT)
            try:
                run(root, workers=0)
                break
            except DiskSpaceError as error:
                assert "disk is full" in str(error) and "make the same call again" in str(error)
        failures += 1
        place = root / "exact" / "exact"
        assert not list(place.rglob("*.partial"))
        if (place / "manifest.json").exists():
            listed = bk.ActivationCache.open(place)
            assert not [item for item in listed.verify() if "foreign" not in item.reason]
        assert all_bytes(run(root).path) == whole
        fail_at += 5
    assert failures >= 10


def test_any_other_failure_of_the_disk_passes_through_and_resumes(tmp_path: Path) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    with pytest.MonkeyPatch.context() as patch:
        count_steps(patch, 30, errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            run(tmp_path / "a")
    assert all_bytes(run(tmp_path / "a").path) == whole


def test_an_error_of_the_model_keeps_the_shards_before_it(tmp_path: Path) -> None:
    whole = all_bytes(run(tmp_path / "whole").path)
    backbone = ExactBackbone()
    honest = backbone.activations

    def stops(windows: Any, layers: Any) -> Any:
        if len(backbone.batches) == 3:
            raise KeyboardInterrupt
        return honest(windows, layers)

    backbone.activations = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", backbone=backbone)
    unfinished = bk.ActivationCache.open(tmp_path / "a" / "exact" / "exact")
    assert not unfinished.is_complete and unfinished.layers == ()
    with pytest.raises(bk.errors.CacheError, match="not finished"):
        unfinished.labels("train")
    rest = ExactBackbone()
    assert all_bytes(run(tmp_path / "a", backbone=rest).path) == whole
    assert len(rest.batches) == 2


def test_a_resumed_run_keeps_the_batch_size_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = run(tmp_path, layers=[0], windows_per_batch=3)
    run(tmp_path, layers=[0, 1])
    assert bk.ActivationCache.open(cache.path).manifest.making.windows_per_batch == 3


def test_two_processes_do_not_write_one_cache(tmp_path: Path) -> None:
    place = tmp_path / "exact" / "exact"
    place.mkdir(parents=True)
    lock = str(place / ".lock")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from filelock import FileLock\nwith FileLock({lock!r}):\n print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceBusyError, match="another process is writing"):
            run(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        cache = run(tmp_path)  # a lock dies with its holder
    finally:
        holder.kill()
        holder.wait()
    assert cache.verify() == []


def test_a_complete_cache_is_read_while_another_process_holds_it(tmp_path: Path) -> None:
    from bindkit.cache.writing import exclusive

    cache = run(tmp_path)
    with exclusive(cache.path):
        assert run(tmp_path).layers == cache.layers
