"""Backbones: frozen pretrained ViTs, loaded from a hub or a directory and checked to the token.

>>> from bindkit.backbones import check_backbone
>>> print(check_backbone("random-init:dinov2"))  # doctest: +ELLIPSIS
random-init:dinov2: passes the contract check
...
"""

from __future__ import annotations

from bindkit.backbones.attention import ContractReport, attention_maps, check_backbone
from bindkit.backbones.loading import Backbone, load_backbone
from bindkit.backbones.own import register_backbone
from bindkit.backbones.preprocessing import Preprocessing

__all__ = [
    "Backbone",
    "ContractReport",
    "Preprocessing",
    "attention_maps",
    "check_backbone",
    "load_backbone",
    "register_backbone",
]
