"""What an objective is: a model to train, a loss on a batch of scenes, and a directory that holds both.

All objectives train one architecture, whose sizes stand here and in `bindkit.pretraining.training_scenes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bindkit.arguments import require_kind
from bindkit.backbones.checkpoint import fill_positions, quiet, seeded
from bindkit.backbones.preprocessing import IMAGENET
from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.files import parse_json, write_bytes, write_json
from bindkit.pretraining.training_scenes import PATCH, SIDE, SceneBatch, TrainingScenes

WIDTH, LAYERS, HEADS = 112, 6, 4

POSITION_SCALE = 0.05
"""Position embeddings start at this share of the sine-cosine ones: as faint as the usual random ones (standard
deviation 0.02 to 0.04), so that an untrained twin hardly knows where its patches lie, but smooth."""

VISION_SETTINGS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
    "image_size": SIDE,
    "position_embedding_scale": POSITION_SCALE,
}
"""Settings of the encoder in the words that all four families share."""

OBJECTIVE_FILE = "objective.json"
HEADS_FILE = "heads.safetensors"

OBJECTIVES: dict[str, type[Objective]] = {}
"""Name -> objective; each module of `bindkit.pretraining` that holds one adds it."""


class Objective(nn.Module, ABC):
    """A model with what its training needs beside it (decoder, heads, teacher).

    ::

        objective = OBJECTIVES["mae"](seed=0)
        loss = objective(pool.batch(64, generator), generator)
        bk.load_backbone(str(objective.write("runs/mae/final")))    # a Hugging Face directory

    `seed` is of the starting weights; `settings` are options of the objective, plain values, kept in the directory.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    """As ``objective`` in tables of results."""
    supervision: ClassVar[str]
    """What the loss is told besides the pictures, as a model card says it."""
    needs_clips: ClassVar[bool] = False
    """Whether scenes must have a second frame."""
    learning_rate: ClassVar[float] = 1e-3
    defaults: ClassVar[dict[str, Any]] = {}
    vision_part: ClassVar[str] = ""
    """Attribute of the model that is its vision encoder; empty if the model is nothing else."""
    head_parts: ClassVar[dict[str, str]] = {}
    """What the loss needs beside the saved model: name in `HEADS_FILE` -> attribute of the objective."""

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        super().__init__()
        if unknown := sorted(set(settings) - set(self.defaults)):
            has = ", ".join(f"{name}={value!r}" for name, value in self.defaults.items()) or "none"
            raise InvalidParameterError(f"the objective {self.name} has no option {', '.join(unknown)}; it has {has}")
        self.settings = {**self.defaults, **settings}
        with seeded(seed):
            # Any: transformers' models have methods of their own, which nn.Module's annotations hide.
            self.model: Any = self._build()
        fill_positions(self.vision, POSITION_SCALE)
        for parameter in self.vision.parameters():
            parameter.requires_grad_(True)

    @abstractmethod
    def _build(self) -> nn.Module:
        """The transformers model that is saved; its weights depend on torch's seed alone."""

    @abstractmethod
    def forward(self, batch: SceneBatch, generator: torch.Generator) -> Float[Tensor, ""]:
        """The loss of a batch; all that is random comes from the generator."""

    def require_clips(self, pool: TrainingScenes) -> None:
        """Refuse scenes that were drawn without what the loss needs. Raises InvalidParameterError."""
        if self.needs_clips and pool.moving is None:
            raise InvalidParameterError(
                f"the objective {self.name} needs clips; draw them with TrainingScenes.open(uri, clips=True)"
            )

    def after_step(self, progress: float) -> None:
        """What follows an optimiser's step, such as moving a teacher; `progress` runs from 0 to 1."""

    def saved_model(self) -> Any:
        """The model whose weights go into the directory."""
        return self.model

    @property
    def vision(self) -> nn.Module:
        """The vision encoder within the model."""
        return self.model.get_submodule(self.vision_part)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def n_parameters(self) -> int:
        """Parameters of the vision encoder."""
        return sum(parameter.numel() for parameter in self.vision.parameters())

    def heads(self) -> dict[str, Tensor]:
        """Tensors of `head_parts`, by the names that they have in `HEADS_FILE`."""
        own = self.state_dict()
        return {written: own[name] for written, name in self._head_names().items()}

    def set_heads(self, heads: dict[str, Tensor]) -> None:
        """Take what `heads` gave. Raises KeyError where one is missing."""
        self.load_state_dict({name: heads[written] for written, name in self._head_names().items()}, strict=False)

    def _head_names(self) -> dict[str, str]:
        return {
            written + name.removeprefix(part): name
            for written, part in self.head_parts.items()
            for name in self.state_dict()
            if name == part or name.startswith(f"{part}.")
        }

    def write(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write a Hugging Face directory (config, weights, preprocessing) with the heads beside it; returns it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        model = self.saved_model()
        weights, heads = (
            {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}
            for tensors in (model.state_dict(), self.heads())
        )
        with quiet():
            model.save_pretrained(directory, state_dict=weights, safe_serialization=True)
        preprocessing = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": SIDE, "width": SIDE},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGENET.mean),
            "image_std": list(IMAGENET.std),
        }
        write_json(directory / "preprocessor_config.json", preprocessing)
        if heads:
            write_bytes(directory / HEADS_FILE, save(heads))
        write_json(directory / OBJECTIVE_FILE, {"format": 1, "objective": self.name, "settings": self.settings})
        return directory


def register(objective: type[Objective]) -> type[Objective]:
    """Class decorator that makes an objective known by its name."""
    OBJECTIVES[objective.name] = objective
    return objective


def make_objective(name: str, seed: int = 0, **settings: Any) -> Objective:
    """Build an objective by name. Raises InvalidParameterError for a name or an option that does not exist."""
    require_kind(name, str, f"an objective is one of {', '.join(sorted(OBJECTIVES))}")
    if name not in OBJECTIVES:
        raise InvalidParameterError(f"unknown objective {name!r}; choose one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name](seed, **settings)


def read_objective(directory: str | Path) -> Objective:
    """Read back what `Objective.write` wrote, in evaluation mode and float32, so that its own loss can be computed."""
    directory = Path(directory)
    try:
        described = parse_json((directory / OBJECTIVE_FILE).read_text(encoding="utf-8"))
        objective = make_objective(described["objective"], **described["settings"])
    except (OSError, ValueError, KeyError, TypeError, InvalidParameterError) as error:
        raise BackboneError(
            f"{directory} holds no readable {OBJECTIVE_FILE} ({error}); give a directory that pretrain() wrote"
        ) from error
    try:
        # Through transformers, which writes some families' weights under other names than its modules have.
        kind: Any = type(objective.saved_model())
        with quiet():
            model, report = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        # A class may have parts that the objective goes without (ViT's pooler), but the objective lacks none.
        lacking = set(report["missing_keys"]) & set(objective.saved_model().state_dict())
        if lacking:
            raise BackboneError(f"{directory} lacks the weights {', '.join(sorted(lacking)[:5])}; pretrain again")
        objective.saved_model().load_state_dict(model.state_dict(), strict=False)
        if (directory / HEADS_FILE).exists():
            heads = load_file(directory / HEADS_FILE)
            objective.set_heads({name: tensor.float() for name, tensor in heads.items()})
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise BackboneError(f"the weights in {directory} cannot be read ({error}); pretrain again") from error
    return objective.eval()


def objective_loss(
    directory: str | Path, scenes: str | TrainingScenes, seed: int = 0, scenes_per_batch: int = 64
) -> float:
    """An objective's own loss on scenes that training never saw, averaged over scenes.

    `scenes` are a synthetic URI with a measuring seed, or drawn already; `seed` is of masks and crops. Contrastive
    losses depend on `scenes_per_batch`: a caption is told from those of one batch.
    """
    objective = read_objective(directory)
    pool = (
        scenes if isinstance(scenes, TrainingScenes) else TrainingScenes.held_out(scenes, clips=objective.needs_clips)
    )
    objective.require_clips(pool)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    with torch.inference_mode():
        for batch in pool.in_order(scenes_per_batch):
            total += float(objective(batch, generator)) * len(batch.images)
    return total / len(pool)
