"""What the next block makes of a layer's activations: its query, key and value maps, and its attention weights.

Also one page about any model: what it is, how it sees scenes, what was checked, and what of this can be asked of it.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bindkit.backbones.families import BIAS, ROTATION, family_of_type
from bindkit.backbones.loading import Backbone, Unchecked, read_model
from bindkit.errors import ContractError, LayerError

_QUERIES, _KEYS, _VALUES = ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")
"""Last parts of the names that the families of transformers give to their maps."""

_NORMS = ("norm1", "layernorm_before", "layer_norm1")
"""Names that they give to the layer norm in front of the attention; some register it behind the attention."""

_ALIKE = 1e-3
"""Share of the largest value that maps may differ from what a block computes: rounding, and no more."""


@dataclass(frozen=True)
class AttentionMaps:
    """Query, key and value maps of one transformer block with the layer norm that they look through.

    Biases are zero where the block has none. Each head owns ``d_model / n_heads`` rows, one after the other.
    """

    norm_weight: Float[Tensor, " d_model"]
    norm_bias: Float[Tensor, " d_model"]
    norm_epsilon: float
    query_weight: Float[Tensor, "d_model d_model"]
    query_bias: Float[Tensor, " d_model"]
    key_weight: Float[Tensor, "d_model d_model"]
    key_bias: Float[Tensor, " d_model"]
    value_weight: Float[Tensor, "d_model d_model"]
    value_bias: Float[Tensor, " d_model"]
    n_heads: int
    adds: str = ""
    """What the model puts on top of them, or of their products; "" if nothing."""

    def read(self, x: Float[Tensor, "*row d_model"], which: str) -> Float[Tensor, "*row d_model"]:
        """Queries, keys or values of activations: ``"query"``, ``"key"`` or ``"value"``, all heads side by side."""
        normed = nn.functional.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias, self.norm_epsilon)
        return normed @ getattr(self, f"{which}_weight").T + getattr(self, f"{which}_bias")

    def by_head(self, x: Float[Tensor, "*row d_model"], which: str) -> Float[Tensor, "head *row d_head"]:
        """The same, head by head."""
        return self.read(x, which).unflatten(-1, (self.n_heads, -1)).movedim(-2, 0)

    def products(self, x: Float[Tensor, "patch d_model"]) -> Float[Tensor, "head patch patch"]:
        """Queries times keys over the root of the head's width: what the softmax is taken of."""
        queries, keys = self.by_head(x, "query"), self.by_head(x, "key")
        return queries @ keys.mT / queries.shape[2] ** 0.5


def attention_maps(backbone: Backbone, layer: int) -> AttentionMaps:
    """Take the query, key and value maps of the block after a layer (0-based, not the last), and the norm before them.

    Rotations (DINOv3) and position biases (BEiT) that a block adds to queries and keys are not in them. Raises
    LayerError for the last layer or one that the backbone does not have, ContractError if the block has no such maps,
    maps of another width, or no layer norm in front of them; for timm's models and one's own also if they are not what
    the block is seen to compute.
    """
    backbone.resolve_layers([layer])
    if layer + 1 >= backbone.n_layers:
        raise LayerError(
            f"layer {layer} is the last of {backbone.name}: no further layer's queries and keys read it; ask for "
            f"self_attention at layers 0 to {backbone.n_layers - 2}"
        )
    block = backbone.tower.blocks[layer + 1]
    where = f"block {layer + 1} of {backbone.name}"
    width = backbone.d_model
    holders = [module for module in block.modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    if len(holders) == 1:  # as timm has it: one map for all three
        fused: Any = holders[0]
        weights += fused.qkv.weight.chunk(3)
        bias = fused.qkv.bias
        biases += [getattr(fused, f"{one}_bias", None) for one in "qkv"] if bias is None else bias.chunk(3)
    for names in () if weights else (_QUERIES, _KEYS, _VALUES):
        found = [
            module
            for name, module in block.named_modules()
            if name.rpartition(".")[2] in names and isinstance(module, nn.Linear)
        ]
        if len(found) != 1:
            raise ContractError(f"{where} should have one linear map called {' or '.join(names)}, it has {len(found)}")
        weights.append(found[0].weight)
        biases.append(found[0].bias)
    for weight in weights:
        if weight.shape != (width, width):
            raise ContractError(
                f"{where} maps {weight.shape[1]} dimensions to {weight.shape[0]} for its queries, keys or "
                f"values, expected {width} to {width}; self_attention cannot be asked of this model"
            )
    norms = [child for name, child in block.named_children() if name in _NORMS]
    if len(norms) != 1 or not isinstance(norms[0], nn.LayerNorm):
        got = ", ".join(type(child).__name__ for child in norms) or "none"
        raise ContractError(
            f"{where} should have one layer norm called {' or '.join(_NORMS)} in front of its attention, got {got}, so "
            "what its queries and keys look at is not known"
        )
    if backbone.tower.shape.n_heads is None:
        raise ContractError(f"{where} does not say how many heads it has, so its queries and keys cannot be told apart")
    ones, zeros = torch.ones(width), torch.zeros(width)
    parts = [_plain(part, zeros) for pair in zip(weights, biases, strict=True) for part in pair]
    norm: Any = norms[0]
    family = family_of_type(backbone.family)
    maps = AttentionMaps(
        *(_plain(norm.weight, ones), _plain(norm.bias, zeros), float(norm.eps)),
        *(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]),
        n_heads=backbone.tower.shape.n_heads,
        adds=family.adds,
    )
    if not family.is_known or family.is_timms:
        require_as_computed(backbone, layer, maps, family.adds, where)
    return maps


def require_as_computed(backbone: Backbone, layer: int, maps: AttentionMaps, adds: str, where: str) -> None:
    """Hold maps to what the block itself computes. Of families in transformers' rows, tests have shown it.

    Norms behind the attention, heads in another order, normalised queries, another scale and masks would give wrong
    maps or products without a word. `adds` is what the family is known to put on top.
    """
    side = backbone.geometry.window
    window = torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    activations, seen = _attending(backbone, window, layer)
    n_patches, x = backbone.layout.grid.n_patches, activations[0].cpu()
    given = {"query": seen.query, "key": seen.key, "value": seen.value}
    for which, seen_by_it in given.items():
        own, read = seen_by_it[0, :, -n_patches:].float().cpu(), maps.by_head(x, which)
        if adds == ROTATION and which != "value":  # which leaves lengths as they are
            own, read = own.norm(dim=-1), read.norm(dim=-1)
        if own.shape != read.shape or (own - read).abs().amax() > _ALIKE * own.abs().amax():
            raise ContractError(
                f"the {which} map of {where} and the norm in front of it do not give the {which} vectors that its "
                "attention takes (a norm behind it, or normalised queries?); self_attention cannot be asked of it"
            )
    usual = seen.query.shape[-1] ** -0.5
    if not math.isclose(seen.scale or usual, usual, rel_tol=1e-6) or (seen.mask is not None and adds != BIAS):
        raise ContractError(
            f"{where} scales or masks the products of its queries and keys in a way of its own, so that queries and "
            'keys alone are not what it attends by; its weights can be asked for (measure="weight")'
        )


def _plain(weight: Tensor | None, otherwise: Tensor) -> Tensor:
    return (otherwise if weight is None else weight).detach().float().cpu()


@dataclass(frozen=True)
class _Attended:
    """What a block gave to its attention: [window, head, token, d_head], and what is added to the products."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float | None

    @classmethod
    def of_call(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> _Attended:
        """Of the arguments of `scaled_dot_product_attention`."""
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        return cls(query, key, value, attn_mask, scale)

    def weights(self) -> Float[Tensor, "window head token token"]:
        """The softmax that multiplies the values, float32."""
        scale = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        products = self.query.float() @ self.key.float().mT * scale
        if self.mask is not None and self.mask.dtype == torch.bool:
            products = products.masked_fill(~self.mask, -torch.inf)
        elif self.mask is not None:
            products = products + self.mask
        return products.softmax(-1)


class _Looking(TorchFunctionMode):
    """Keeps the arguments of `scaled_dot_product_attention`, which transformers and timm call, while it is `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.calls = False, list[_Attended]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on and func is nn.functional.scaled_dot_product_attention:
            self.calls.append(_Attended.of_call(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _attending(
    backbone: Backbone, windows: UInt8[Tensor, "window height width 3"], layer: int
) -> tuple[Float[Tensor, "window patch d_model"], _Attended]:
    """A layer's activations, and what the attention of the block after it was given. Raises ContractError."""
    looking, model = _Looking(), backbone.tower.model
    with contextlib.ExitStack() as stack:
        block: nn.Module = backbone.tower.blocks[layer + 1]
        stack.callback(block.register_forward_pre_hook(lambda *_: setattr(looking, "on", True)).remove)
        for config in {id(one): one for module in model.modules() if (one := getattr(module, "config", None))}.values():
            if getattr(config, "_attn_implementation", "sdpa") != "sdpa":  # the setting is read in every pass
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = "sdpa"
        stack.enter_context(looking)
        activations = backbone.activations(windows, [layer, layer + 1])[layer]
    n_tokens = backbone.layout.grid.n_patches + backbone.layout.n_prefix
    if len(looking.calls) != 1 or looking.calls[0].query.shape[-2] != n_tokens:
        raise ContractError(
            f"block {layer + 1} of {backbone.name} ({type(model).__name__}) does not say its attention "
            f"weights: it called torch's scaled_dot_product_attention {len(looking.calls)} times, expected once for "
            f'{n_tokens} tokens; take its queries and keys (measure="logit"), or another family'
        )
    return activations, looking.calls[0]


def attention_weights(
    backbone: Backbone, windows: UInt8[Tensor, "window height width 3"], layer: int
) -> tuple[Float[Tensor, "window patch d_model"], Float[Tensor, "window head patch patch"]]:
    """A layer's activations, and how the block after it attends: the model's own weights, rotations and biases in them.

    Row i is the patch that looks, as in ``softmax(q_i . k_j)`` over all tokens; what goes to prefix tokens is left out,
    so that rows add up to less than 1 where there are any. Raises LayerError for the last layer, ContractError if the
    block does not say its weights.
    """
    (layer,) = backbone.resolve_layers([layer])
    if layer + 1 >= backbone.n_layers:
        raise LayerError(f"layer {layer} is the last of {backbone.name}: no further layer attends to it")
    n_patches = backbone.layout.grid.n_patches
    activations, attended = _attending(backbone, windows, layer)
    return activations, attended.weights()[:, :, -n_patches:, -n_patches:]


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
