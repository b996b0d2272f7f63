"""One page about any model: what it is, how it sees scenes, what was checked, and what can be asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bindkit.backbones.attention import attention_maps, attention_weights
from bindkit.backbones.families import family_of_type
from bindkit.backbones.loading import Backbone, Unchecked, read_model
from bindkit.errors import ContractError, LayerError


@dataclass(frozen=True)
class ContractReport:
    """What a model is and what was checked on it; ``str(report)`` is a page for people.

    Attributes
    ----------
    model : Unchecked
        As it was read.
    backbone : Backbone or None
        As `load_backbone` gives it; None if the check failed.
    failure : str
        What the check saw; empty if it passed.
    """

    model: Unchecked
    backbone: Backbone | None
    failure: str = ""

    @property
    def n_layers(self) -> int | None:
        """Number of blocks; None where neither the config nor the model says."""
        return self.model.shape.n_layers if self.backbone is None else self.backbone.n_layers

    def __str__(self) -> str:
        of, shape, geometry, layers = self.model, self.model.shape, self.model.geometry, self.n_layers
        n_prefix = shape.n_prefix if self.backbone is None else self.backbone.layout.n_prefix
        fixed, grid, normalised = family_of_type(shape.family).fixed_window, geometry.grid, of.preprocessing
        n_parameters = sum(parameter.numel() for parameter in of.model.parameters())
        lines = [
            f"{of.name}: {'fails' if self.backbone is None else 'passes'} the contract check",
            f"  family        {shape.family}",
            f"  objective     {of.objective}",
            f"  revision      {of.revision or '-'}",
            f"  layers        {'unknown' if layers is None else f'{layers} (0 to {layers - 1})'}",
            f"  width         {shape.d_model}",
            f"  parameters    {n_parameters:,}",
            f"  patch         {geometry.patch_size} px",
            f"  prefix tokens {'unknown' if n_prefix is None else n_prefix}",
            f"  window        {geometry.window} px ({grid.rows} x {grid.cols} patches); "
            f"short side {geometry.short_side} px",
            f"  other windows {'no' if fixed else f'multiples of {geometry.patch_size} px'}; its own is "
            f"{shape.image_size} px",
            f"  normalisation mean {_numbers(normalised.mean)}, std {_numbers(normalised.std)}, "
            f"{normalised.resample}; {normalised.source}",
        ]
        if self.backbone is None:
            return "\n".join([*lines, f"  failed        {self.failure}"])
        lines += [f"  {what:<13} {said}" for what, said in can_be_asked(self.backbone).items()]
        return "\n".join([*lines, "  checked", *(f"  - {check}" for check in self.backbone.checks)])


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def can_be_asked(backbone: Backbone) -> dict[str, str]:
    """Whether queries, keys and values, and attention weights, can be asked of a backbone, tried at its first layer."""
    side = backbone.geometry.window
    window = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    adds = family_of_type(backbone.family).adds
    said = {}
    for what, ask, yes in (
        ("queries, keys", lambda: attention_maps(backbone, 0), f"available, without {adds}" if adds else "available"),
        ("attention", lambda: attention_weights(backbone, window, 0), "available"),
    ):
        try:
            ask()
            said[what] = yes
        except (ContractError, LayerError) as error:
            said[what] = f"not available: {error}"
    return said


def check_backbone(name: str, **options: Any) -> ContractReport:
    """Read a model with the options of `load_backbone`, check it, and report what it is and what was seen.

    A model that fails the contract check is reported, too. Raises as `load_backbone` for one that cannot be read.
    """
    model = read_model(name, **options)
    try:
        return ContractReport(model, model.checked())
    except ContractError as error:
        return ContractReport(model, None, str(error))
