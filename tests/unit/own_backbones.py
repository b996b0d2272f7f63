"""A ViT of somebody's own, plain torch, registered as the recipe says; tests import it by ``own_backbones:NAME``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import bindkit as bk

FACTS = {"patch_size": 8, "window": 32, "d_model": 16, "n_prefix": 1, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.4)}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        return x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MyViT(nn.Module):
    block = Block

    def __init__(self):
        super().__init__()
        self.stem, self.cls = nn.Conv2d(3, 16, 8, stride=8), nn.Parameter(torch.ones(1, 1, 16))
        self.blocks = nn.ModuleList([self.block() for _ in range(3)])

    def tokens(self, pixels):
        return self.stem(pixels).flatten(2).mT

    def forward(self, pixels):
        x = torch.cat([self.cls.expand(len(pixels), 1, 16), self.tokens(pixels)], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class OtherBlock(Block):
    """The same weights, and another computation."""

    def forward(self, x):
        return super().forward(x) * 1.5


class Rewritten(MyViT):
    block = OtherBlock


class Transposed(MyViT):
    def tokens(self, pixels):
        return self.stem(pixels).mT.flatten(2).mT


def trained(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


@bk.register_backbone("mine", **FACTS, n_heads=2, objective="colours")
def mine(untrained=False):
    return MyViT() if untrained else trained(MyViT, seed=7)


@bk.register_backbone("rewritten", **FACTS, n_heads=2)
def rewritten():
    return trained(Rewritten, seed=7)


@bk.register_backbone("transposed", **FACTS)
def transposed():
    return trained(Transposed)


@bk.register_backbone("without-heads", **FACTS, blocks="blocks")
def without_heads():
    return trained(MyViT)


@bk.register_backbone("no-module", **FACTS)
def no_module():
    return 3


@bk.register_backbone("broken", **FACTS)
def broken():
    raise FileNotFoundError("mine.pt")


@bk.register_backbone("elsewhere", **FACTS, blocks="encoder.layers")
def elsewhere():
    return trained(MyViT)
