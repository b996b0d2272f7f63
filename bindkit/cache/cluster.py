"""Shards computed by the workers of a Dask cluster, each with a backbone of its own.

Caches lie where all workers write (a shared file system). A worker that dies is replaced or its shards go to others;
what it had finished stays. One worker a GPU, for instance of Slurm (``pip install bindkit[cluster] dask-jobqueue``)::

    from dask.distributed import Client
    from dask_jobqueue import SLURMCluster

    cluster = SLURMCluster(
        cores=8, processes=1, memory="64GB", walltime="04:00:00", job_extra_directives=["--gres=gpu:1"]
    )
    cluster.scale(jobs=8)
    cache = bk.cache_activations(backbone, scenes, root="/shared/cache", client=Client(cluster))

The backbone is loaded by its name on every worker, on a GPU where there is one, and must be the same there: the same
weights, by their digest. Weights are not sent.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from bindkit.backbones.loading import Backbone
from bindkit.backbones.sources import ActivationSource, Control, source_of
from bindkit.cache.computing import Job, Task, compute_shards
from bindkit.cache.manifest import Making, Manifest
from bindkit.errors import BackboneError, CacheMismatchError
from bindkit.files import differences

RETRIES = 3
"""Times that a shard is tried again, besides being given to another worker where one dies."""

_one_at_a_time = threading.Lock()
"""A worker may have several threads; hooks on one model must not mix what these threads ask of it."""


@dataclass(frozen=True)
class _Order:
    """What a worker needs to know; of a backbone or a control what it says of itself, any other source as it is."""

    job: Mapping[str, Any]  # all but its backbone
    source: Mapping[str, Any] | ActivationSource

    @classmethod
    def of(cls, job: Job) -> _Order:
        rest = {field.name: getattr(job, field.name) for field in fields(job) if field.name != "backbone"}
        return cls(rest, job.backbone.describe() if isinstance(job.backbone, Backbone | Control) else job.backbone)

    def here(self) -> Job:
        """The job with the backbone of this worker. Raises BackboneError where it is another."""
        source = _loaded(json.dumps(self.source)) if isinstance(self.source, Mapping) else self.source
        if isinstance(self.source, Mapping) and (differing := differences(self.source, source.describe(), _SIDES)):
            raise BackboneError("a worker has another backbone than this call:\n  " + "\n  ".join(differing))
        return Job(backbone=source, **self.job)


_SIDES = ("this call", "the worker")


@lru_cache(maxsize=1)
def _loaded(described: str) -> ActivationSource:
    return source_of(json.loads(described))


def making_there(client: Any, job: Job) -> Making:
    """What the workers compute with, as one of them says."""
    return client.submit(_making, _Order.of(job), pure=False).result()


def _making(order: _Order) -> Making:
    with _one_at_a_time:
        return order.here().making(None)


def compute_there(client: Any, job: Job, tasks: Sequence[Task], bar: Any) -> None:
    """Have shards computed, and say so as they are finished. An error of a worker is raised here."""
    from distributed import as_completed

    order = client.scatter(_Order.of(job), broadcast=True)
    positions_of = {
        client.submit(_compute, order, task.place, retries=RETRIES, pure=False): task.positions for task in tasks
    }
    for future in as_completed(list(positions_of)):
        future.result()
        bar.update(len(positions_of[future]))


def _compute(order: _Order, place: tuple[str, int]) -> None:
    with _one_at_a_time:
        job = order.here()
        manifest = Manifest.read(job.path)
        if differing := differences(manifest.making.fields(), replace(job, elsewhere=None).making(manifest).fields()):
            raise CacheMismatchError(
                "this worker computes otherwise than the one that was asked first:\n  " + "\n  ".join(differing)
            )
        compute_shards(job, manifest, {place})
