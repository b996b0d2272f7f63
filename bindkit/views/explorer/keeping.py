"""What the explorer keeps of an image: activations in 16 bits, and a store that forgets what was used longest ago.

>>> import torch
>>> activations = torch.tensor([[300.0, 1.0], [302.0, -1.0]])
>>> kept = KeptActivations.of(activations)
>>> kept.codes.dtype, bool((kept.restored() - activations).abs().max() < 1e-4)
(torch.int16, True)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

import torch
from jaxtyping import Float, Int16
from torch import Tensor

_STEPS = 65_535
"""Steps between the least and the greatest value of a dimension."""


@dataclass(frozen=True)
class KeptActivations:
    """Activations of one image and layer, each dimension in 65,535 steps between its extremes over the patches.

    Half the bytes of float32, and unlike float16 no worse where a dimension is far from zero, as the massive
    activations of large ViTs are: an entry is off by half a step at most.

    Attributes
    ----------
    codes : int16 tensor of shape (patch, d_model)
    middle, step : float32 tensors of shape (d_model,)
        A value is ``middle + step * code``.
    """

    codes: Int16[Tensor, "patch d_model"]
    middle: Float[Tensor, " d_model"]
    step: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, activations: Float[Tensor, "patch d_model"]) -> KeptActivations:
        """Keep finite activations."""
        low, high = activations.amin(0).double(), activations.amax(0).double()
        middle, step = (low + high) / 2, (high - low) / _STEPS
        codes = (activations - middle.float()) / step.clamp(min=torch.finfo(torch.float32).tiny).float()
        return cls(codes.round().clamp(-32_768, 32_767).to(torch.int16), middle.float(), step.float())

    def restored(self) -> Float[Tensor, "patch d_model"]:
        """The activations as float32."""
        return self.codes.float() * self.step + self.middle

    @property
    def n_bytes(self) -> int:
        """Memory that they take."""
        return _bytes_of(self.codes, self.middle, self.step)


@runtime_checkable
class Sized(Protocol):
    """What the store asks of what it holds."""

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        ...


Kept = TypeVar("Kept", bound=Sized)


class Store:
    """Holds what was computed up to a number of bytes; what was used longest ago is forgotten first.

    All stores of a process share that memory: ipywidgets keeps every explorer that was ever made, and the one in use
    may take from those that are not.

    Parameters
    ----------
    limit : int
        Bytes. What was put in last stays even if it alone is larger.
    """

    _all: ClassVar[WeakSet[Store]] = WeakSet()
    _clock: ClassVar[Iterator[int]] = count()

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[Hashable, tuple[int, Sized]] = OrderedDict()
        self.n_bytes = 0
        self._all.add(self)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What is held under a key, made now if it is not held."""
        if key not in self._held:
            self.put(key, make())
        found: Any = self._held.pop(key)[1]
        self._held[key] = (next(self._clock), found)
        return found

    def put(self, key: Hashable, value: Sized) -> None:
        """Hold a value, and forget others, of any store, until all fit."""
        self.drop(key)
        self._held[key] = (next(self._clock), value)
        self.n_bytes += value.n_bytes
        while sum(store.n_bytes for store in self._all) > self.limit:
            oldest = min((store for store in self._all if store._held), key=Store._last_use)
            if oldest is self and len(self._held) == 1:
                break
            oldest.drop(next(iter(oldest._held)))

    def _last_use(self) -> int:
        """When what was used longest ago was used."""
        return next(iter(self._held.values()))[0]

    def drop(self, key: Hashable) -> None:
        """Forget one value, if it is held."""
        if key in self._held:
            self.n_bytes -= self._held.pop(key)[1].n_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self.n_bytes = 0


def _bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
