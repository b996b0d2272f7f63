"""A probe of one's own whose class can be made anew, as a notebook's cell that is run again makes it."""

from contextlib import contextmanager

import torch

from bindkit.probes import PROBES, Probe, register_probe


class Odd:
    """A factor of which nobody can say whether it is the same as before."""

    def __mul__(self, products):
        return products


@contextmanager
def probe_mine():
    """Gives a function that registers `mine`, which multiplies products of two patches by a factor."""

    def register(factor):
        @register_probe("mine")
        class Mine(Probe):
            def __init__(self, d_model):
                super().__init__(d_model)
                self.bias = torch.nn.Parameter(torch.zeros(()))

            def pairwise(self, x, y):
                return factor * (x @ y.mT) + self.bias

    try:
        yield register
    finally:
        PROBES.pop("mine", None)
