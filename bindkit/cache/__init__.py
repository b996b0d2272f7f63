"""Activations and patch labels of one backbone on one scene set: computed by `cache_activations`, kept on disk.

On disk, below ``root/slug(scenes)/slug(backbone)/``::

    manifest.json                            what was measured and the digest of every file
    train/labels/00000.safetensors           labels of the rows, rows per scene, digests of the scenes' pixels
    train/layer_00/00000.safetensors         activations [rows, d_model]
    train/layer_00/00001.safetensors         ...

A shard is a run of consecutive scenes of a split. Rows are ragged: a scene has as many rows as patches were drawn
from it, and a skipped scene has none; nothing is ever padded. Files of activations are safetensors; those of int8 hold
``scales`` [rows] as well (`bindkit.cache.encoding` says how to read them). While a cache is filled, ``.work`` holds
records of finished shards and locks of those in work.
"""

from bindkit.cache.extraction import cache_activations
from bindkit.cache.sizing import estimate_bytes
from bindkit.cache.store import ActivationCache, require_cache
from bindkit.cache.verifying import compare_with_model

__all__ = ["ActivationCache", "cache_activations", "compare_with_model", "estimate_bytes", "require_cache"]
