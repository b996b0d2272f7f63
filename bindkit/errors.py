"""Every error that a caller of bindkit can cause, by name.

One base class, so that ``except BindkitError`` catches all of them and nothing else. Each message says
what was got, what was expected and what to do about it.
"""

from __future__ import annotations


class BindkitError(Exception):
    """Base of every named error of bindkit."""


# --- arguments and configuration
class InvalidParameterError(BindkitError, ValueError):
    """A value outside what a parameter takes (a negative count, an unreadable URI, an unknown option)."""


class UnknownParameterError(BindkitError, ValueError):
    """A notebook or pipeline was given a parameter that it does not have."""


class WorkspaceMismatchError(BindkitError):
    """A workspace holds a run of another configuration; the differing settings are named."""


class WorkspaceStepMissingError(BindkitError):
    """A notebook needs what an earlier one leaves in the workspace, and it is not there."""


class WorkspaceBusyError(BindkitError):
    """Another process is writing to this cache or workspace right now."""


class NotebookFailedError(BindkitError):
    """A notebook of the pipeline stopped with an error; names the notebook, the cell and the cause."""


# --- scenes
class SceneSetError(BindkitError):
    """A scene set cannot be opened: not a dataset directory, no usable scene in it, an unknown format."""


class BrokenSceneError(BindkitError):
    """One scene cannot be read: a missing or damaged file, a mask of another size than its image."""


class UnsafePickleError(SceneSetError):
    """An index file asks the unpickler for something other than plain containers, strings and arrays."""


class EmptySplitError(BindkitError):
    """A split that is needed holds no scene, or no scene with enough labelled patches."""


# --- geometry and backbones
class GeometryError(BindkitError, ValueError):
    """Sizes that do not fit: a window that is no multiple of the patch, an image smaller than a window."""


class BackboneError(BindkitError):
    """A backbone cannot be loaded: unknown name, damaged checkpoint, missing preprocessing."""


class ContractError(BackboneError):
    """A model loads but does not behave as a ViT: a perturbed patch does not move exactly its own token."""


class LayerError(BindkitError, ValueError):
    """A layer that the backbone, the cache or the probe does not have."""


# --- cache
class CacheError(BindkitError):
    """A cache cannot be opened: no manifest, an unreadable manifest, an unknown format version."""


class CacheMismatchError(CacheError):
    """A cache at this place was made with other settings; the differing fields are named."""


class CacheDamagedError(CacheError):
    """Shards are missing, cut short or changed on disk; each one is named."""


class DiskSpaceError(CacheError, OSError):
    """Too little free disk space for what is about to be written (or the disk filled up on the way)."""


class NonFiniteActivationsError(BindkitError, ValueError):
    """A backbone gave NaN or infinite activations, or values that the cache's dtype cannot hold."""


class ConstantActivationsError(BindkitError, ValueError):
    """All patches have the same activation, so that there is nothing for a probe to read."""


class OneAnswerError(BindkitError, ValueError):
    """All training pairs have the same answer (one object per scene, or no two patches on one), or no class labels."""


# --- probes
class ProbeError(BindkitError, ValueError):
    """An unknown probe or task, or a probe directory that cannot be read."""


class ProbeMismatchError(ProbeError):
    """A probe was fitted for another width, layer or backbone than it is asked to judge."""
