"""Read checkpoints from a hub or a directory: config, preprocessing and weights, with errors that say what to do.

Also how untrained encoders start: embedded architectures, seeded weights, and the positions of their patch grid.

Code from a checkpoint's repository is never run (``trust_remote_code`` is always off).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bindkit.backbones.families import EncoderShape, Opened, family_of_type, frozen, objective_of, vision_config_of
from bindkit.backbones.names import require_place
from bindkit.backbones.preprocessing import IMAGENET, Preprocessing, read_preprocessing
from bindkit.errors import BackboneError

logger = logging.getLogger(__name__)

# Parts beside the residual stream that checkpoints may lack: poolers, attention-pooling heads, mask tokens.
_UNUSED = re.compile(r"(^|\.)(pooler|head|mask_token)(\.|$)")
# Numbers that follow from the sizes, which older versions of transformers wrote down.
_BUFFERS = re.compile(r"(position_ids|relative_position_index|inv_freq)$")
_VISION_PARTS = ("vision_model", "vision_tower", "visual", "vision_encoder", "image_encoder")

# What configs carry of how a model was run once. An attention that is always there is part of the last bits, and stays.
_ATTENTIONS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_THERE = (None, "eager", "sdpa")
_HABITS = (
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
    *("use_flash_attention_2", "_flash_attn_2_enabled", "_attn_implementation_autoset"),
)

# A sign in the classes of an error, or in its words in lower case -> what to do.
_ANYWHERE = {
    r"\bGatedRepoError\b|gated": "Accept the terms on the page of {name}, then log in with `huggingface-cli login` "
    "(or `hf auth login`)",
    r"unknown model \(": "The installed timm has no such model; timm.list_models('*vit*', pretrained=True) names those "
    "that it has, a directory and hf-hub:OWNER/MODEL are taken too",
    "trust_remote_code": "It needs code from its own repository, which bindkit never runs; choose a checkpoint without",
}
_IN_A_DIRECTORY = {
    r"\bSafetensorError\b|corrupt": "The file is damaged or cut short: copy or download it again; {name} holds {files}",
    "": "The directory should hold config.json, model.safetensors and preprocessor_config.json that belong together "
    "and that the installed transformers knows; it holds {files}",
}
_ON_THE_HUB = {
    r"\bSafetensorError\b": "The downloaded file is damaged: delete it from the hub cache (HF_HOME) and load it again",
    r"\bRevisionNotFoundError\b": "Give a branch, tag or commit that the model has as revision, or leave it out",
    r"\b(RepositoryNotFoundError|HFValidationError)\b|not a valid model identifier": "Check the spelling (owner/model)"
    "; for a private model log in with `huggingface-cli login`; for a local model give its directory",
    r"\b(LocalEntryNotFoundError|OfflineModeIsEnabled|ConnectionError|ConnectError)\b|connect": "The hub cannot be "
    "reached: go online, point HF_HOME to a cache that holds the model, or give a local directory",
    "": "Check that the name is a vision transformer that the installed transformers knows",
}


_NOT_COMPUTING = frozenset(
    {"_name_or_path", "_commit_hash", "transformers_version", "architectures", "torch_dtype", "dtype", "auto_map"}
    | {"id2label", "label2id", "pretraining_objective"}
)


def open_checkpoint(name: str, revision: str | None) -> Opened:
    """Look up a hub id or a directory, in the layout of transformers. Raises BackboneError."""
    config, digest = read_config(name, revision)
    commit = getattr(config, "_commit_hash", None)
    at = commit or revision

    def build(seed: int | None) -> nn.Module:
        return load_weights(name, config, at) if seed is None else build_untrained(name, config, seed)

    shape = EncoderShape.of_config(name, config)
    return Opened(shape, objective_of(config), lambda: find_preprocessing(name, at), build, digest, commit)


def open_embedded(architecture: str) -> Opened:
    """An embedded architecture, which is always untrained."""
    config = embedded_config(architecture)
    shape = EncoderShape.of_config(architecture, config)
    return Opened(shape, "", lambda: IMAGENET, lambda seed: build_untrained(architecture, config, seed or 0))


def read_config(name: str, revision: str | None) -> tuple[Any, str]:
    """Read a checkpoint's config, and the digest of all in its file that a forward pass may depend on.

    Raises BackboneError if `name` is neither a model directory nor a model of the hub, or its architecture is unknown.
    """
    require_place(name)
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    with quiet(), explained(name, "config"):
        said, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        settings, habits = without_habits(said)
        computing = {key: value for key, value in settings.items() if key not in _NOT_COMPUTING}
        digest = hashlib.sha256(json.dumps(computing, sort_keys=True, default=str).encode()).hexdigest()
        if not habits or said.get("model_type") not in CONFIG_MAPPING:
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False), digest
        logger.info(
            "%s: its config says how it was run once (%s); that is left aside, and an attention that is there is taken",
            name,
            ", ".join(habits),
        )
        return CONFIG_MAPPING[said["model_type"]].from_dict(settings), digest


def without_habits(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config, its parts included, without what says how a model was run and not what it is; and what that was.

    The latter as ``"vision_config.attn_implementation = flash_attention_2"``.
    """
    kept: dict[str, Any] = {}
    left: list[str] = []
    for key, value in settings.items():
        if key in _HABITS or (key in _ATTENTIONS and value not in _THERE):
            left.append(f"{key} = {value}")
        elif isinstance(value, Mapping):
            kept[key], inner = without_habits(value)
            left += [f"{key}.{habit}" for habit in inner]
        else:
            kept[key] = value
    return kept, left


def find_preprocessing(name: str, revision: str | None) -> Preprocessing:
    """Read a checkpoint's own preprocessing. Raises BackboneError if it comes without."""
    from transformers.utils import cached_file

    for file in ("preprocessor_config.json", "processor_config.json"):
        with quiet(), explained(name, file):
            path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return read_preprocessing(Path(path))
    raise BackboneError(
        f"{name} has no preprocessor_config.json, so how its images were normalised is unknown; add the file that "
        'belongs to the checkpoint, or say normalization="imagenet" to use the mean and std of ImageNet'
    )


def load_weights(name: str, config: Any, revision: str | None) -> nn.Module:
    """Load the vision encoder of a checkpoint in float32, on the CPU, in evaluation mode.

    Raises BackboneError if files are missing or damaged, or the checkpoint lacks weights of the encoder: transformers
    would fill those with random numbers and only warn.
    """
    import transformers

    model_class, config_of_class, arguments = _encoder_class(config)
    with quiet(), explained(name, "weights"):
        whole, report = model_class.from_pretrained(
            name,
            config=config_of_class,
            revision=revision,
            output_loading_info=True,
            dtype=torch.float32,
            trust_remote_code=False,
            **arguments,
        )
    prefix, model = _vision_part(whole, name, config)
    mismatched = {entry[0] for entry in report.get("mismatched_keys", ())}
    absent = sorted(
        key for key in {*report["missing_keys"], *mismatched} if key.startswith(prefix) and not _UNUSED.search(key)
    )
    if absent:
        shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise BackboneError(
            f"the checkpoint {name} lacks {len(absent)} weights of its vision encoder, which would be random numbers: "
            f"{shown}. Check that config.json and the weights belong together, that transformers "
            f"{transformers.__version__} is no older than the one that wrote them "
            f"({getattr(config, 'transformers_version', None) or 'unknown'}), or download the checkpoint again"
        )
    unused = sorted(report.get("unexpected_keys", ()))
    if unused:
        logger.debug("%s: weights left unused: %s", name, ", ".join(unused))
    parts = "|".join(re.escape(part) for part, _ in model.named_children() if part != "pooler")
    inner = re.compile(rf"({re.escape(whole.base_model_prefix)}\.)?{re.escape(prefix)}({parts})\.")
    foreign = [key for key in unused if inner.match(key) and not _BUFFERS.search(key) and not _UNUSED.search(key)]
    if foreign:
        raise BackboneError(
            f"the checkpoint {name} holds weights of its vision encoder that {type(model).__name__} of transformers "
            f"{transformers.__version__} has no place for: {', '.join(foreign[:5])}. It is another architecture than "
            "its config says, perhaps one with code of its own, which bindkit never runs; choose another checkpoint"
        )
    return frozen(model)


def build_untrained(name: str, config: Any, seed: int) -> nn.Module:
    """Make the vision encoder of a config as its architecture starts training; weights depend on the seed alone.

    Raises BackboneError if the architecture is unknown to transformers or is no vision model.
    """
    with seeded(seed):
        with quiet(), explained(name, "config"):
            model_class, config_of_class, arguments = _encoder_class(config)
            if family_of_type(config.model_type).is_known:
                model = model_class(config_of_class, **arguments)
            else:
                model = model_class.from_config(config, trust_remote_code=False)
        _, model = _vision_part(model, name, config)
        # transformers 5.23 leaves the positions of a new MAE at zero: it would not know where its patches lie.
        vision = vision_config_of(config)
        scale = getattr(vision, "position_embedding_scale", None)  # as bindkit's own tiny backbones carry it
        if scale is None and getattr(vision, "model_type", "") == "vit_mae":
            scale = 1.0
        if scale is not None:
            fill_positions(model, float(scale))
    return frozen(model)


def _encoder_class(config: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Class of transformers that reads a checkpoint of this config, the config that it takes, its further arguments."""
    import transformers

    family = family_of_type(config.model_type)
    try:
        model_class = getattr(transformers, family.model_class)
    except (AttributeError, ImportError) as error:
        raise BackboneError(
            f"transformers {transformers.__version__} gives no {family.model_class}; install a newer version, or, if "
            "torchvision is installed, one that fits torch (`python -c 'import torchvision'` says whether it does)"
        ) from error
    return model_class, vision_config_of(config) if family.is_known else config, family.model_arguments


def _vision_part(model: nn.Module, name: str, config: Any) -> tuple[str, nn.Module]:
    """The vision encoder of what `_encoder_class` gave, and the prefix of its weights' names."""
    if family_of_type(config.model_type).is_known:
        return "", model
    for part in _VISION_PARTS:
        inner = getattr(model, part, None)
        if isinstance(inner, nn.Module) and getattr(inner, "main_input_name", "pixel_values") == "pixel_values":
            return f"{part}.", inner
    taken = getattr(model, "main_input_name", "pixel_values")
    if taken != "pixel_values":
        raise BackboneError(
            f"{name} is a {type(model).__name__}, which takes {taken} and no images; choose a vision transformer"
        )
    return "", model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and bars of transformers: bindkit checks what they warn of. Downloads keep their bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars, download_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of downloads, too
    if download_bars:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
            if not download_bars:
                disable_progress_bars()


@contextlib.contextmanager
def explained(name: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises while reading `what` of a checkpoint into one BackboneError with a remedy."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # hub, file and format errors come from many libraries and share no base class
        cause = str(error).strip().splitlines()
        raise BackboneError(
            f"cannot read the {what} of {name}: {cause[0] if cause else type(error).__name__} "
            f"({type(error).__name__}). {_remedy(name, error)}"
        ) from error


def _remedy(name: str, error: BaseException) -> str:
    classes, words = "", ""
    link: BaseException | None = error
    while link is not None:
        classes, words = f"{classes} {type(link).__name__}", f"{words} {link}"
        link = link.__cause__ or link.__context__
    here = Path(name).is_dir()
    files = ", ".join(sorted(path.name for path in Path(name).iterdir())[:8]) if here else ""
    signs = _ANYWHERE | (_IN_A_DIRECTORY if here else _ON_THE_HUB)
    remedy = next(text for sign, text in signs.items() if re.search(sign, f"{classes}\n{words.lower()}"))
    return remedy.format(name=name, files=files or "nothing")


# Small enough for a laptop: 6 layers of width 128 over 14 x 14 patches of 8 px.
_SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 112,
}
_PLACES = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")


def embedded_config(architecture: str) -> Any:
    """Config of an embedded architecture, ``"dinov2"`` or ``"vit"``."""
    import transformers

    if architecture == "dinov2":
        return transformers.Dinov2Config(**_SMALL, mlp_ratio=4)
    return transformers.ViTConfig(**_SMALL, intermediate_size=4 * _SMALL["hidden_size"])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and put its state back afterwards; CUDA generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def sine_cosine_positions(rows: int, cols: int, width: int) -> Float[Tensor, "patch width"]:
    """The embedding of He et al. (MAE, 2022, as published code has it): column in the first half, row in the second.

    Each half holds sines, then cosines, of ``position / 10000**(k / (width / 4))``. Raises BackboneError for a width
    that is no multiple of four.
    """
    if width % 4:
        raise BackboneError(f"sine-cosine positions need a width that is a multiple of four, got {width}")
    # Python's own sine: torch's differs in the last bit from one process to the next, and so would an untrained twin.
    rates = [1.0 / 10000 ** (k / (width / 4)) for k in range(width // 4)]

    def along(n_positions: int) -> Tensor:
        angles = [[position * rate for rate in rates] for position in range(n_positions)]
        return torch.tensor([[*map(math.sin, row), *map(math.cos, row)] for row in angles], dtype=torch.float32)

    return torch.cat([along(cols).repeat(rows, 1), along(rows).repeat_interleave(cols, 0)], dim=1)


def position_embeddings(model: nn.Module) -> nn.Parameter:
    """An encoder's position embeddings, prefix tokens included where they have one. Raises BackboneError for none."""
    found = [weight for name, weight in model.named_parameters() if name.endswith(_PLACES)]
    if len(found) != 1:
        raise BackboneError(
            f"{type(model).__name__} keeps its position embeddings in none of {', '.join(_PLACES)}; name another model"
        )
    return found[0]


def fill_positions(model: nn.Module, scale: float) -> None:
    """Set a new encoder's position embeddings to `scale` times the sine-cosine ones, those of prefix tokens to zero."""
    embeddings = position_embeddings(model)
    weight = embeddings.data.view(-1, embeddings.shape[-1])
    side = int((weight.shape[0]) ** 0.5)
    patches = sine_cosine_positions(side, side, weight.shape[1])
    weight.zero_()
    weight[-len(patches) :] = scale * patches
