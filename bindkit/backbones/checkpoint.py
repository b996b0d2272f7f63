"""Read checkpoints from a hub or a directory: config, preprocessing and weights, with errors that say what to do.

Code from a checkpoint's repository is never run (``trust_remote_code`` is always off).
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bindkit.backbones.families import Family, family_of_type
from bindkit.backbones.positions import start_positions
from bindkit.backbones.preprocessing import Preprocessing, read_preprocessing
from bindkit.backbones.shape import vision_config_of
from bindkit.backbones.shipped import require_place
from bindkit.errors import BackboneError

logger = logging.getLogger(__name__)

# Parts beside the residual stream that checkpoints may lack: poolers, attention-pooling heads, mask tokens.
_UNUSED = re.compile(r"(^|\.)(pooler|head|mask_token)(\.|$)")
_VISION_PARTS = ("vision_model", "vision_tower", "visual", "vision_encoder", "image_encoder")

# What configs carry of how a model was run once. An attention that is always there is part of the last bits, and stays.
_ATTENTIONS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_THERE = (None, "eager", "sdpa")
_HABITS = (
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
    *("use_flash_attention_2", "_flash_attn_2_enabled", "_attn_implementation_autoset"),
)


def read_config(name: str, revision: str | None = None) -> Any:
    """Read a checkpoint's config.

    Raises
    ------
    BackboneError
        If `name` is neither a model directory nor a model of the hub, or its architecture is unknown.
    """
    require_place(name)
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    with quiet(), _explained(name, "config"):
        said, _ = PretrainedConfig.get_config_dict(name, revision=revision)
        settings, habits = without_habits(said)
        if not habits or said.get("model_type") not in CONFIG_MAPPING:
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        logger.info(
            "%s: its config says how it was run once (%s); that is left aside, and an attention that is there is taken",
            name,
            ", ".join(habits),
        )
        return CONFIG_MAPPING[said["model_type"]].from_dict(settings)


def without_habits(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config, its parts included, without what says how a model was run and not what it is; and what that was.

    >>> without_habits({"vision_config": {"attn_implementation": "flash_attention_2", "hidden_size": 32}})
    ({'vision_config': {'hidden_size': 32}}, ['vision_config.attn_implementation = flash_attention_2'])
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


def find_preprocessing(name: str, config: Any, revision: str | None = None) -> Preprocessing:
    """Read a checkpoint's own preprocessing.

    Raises
    ------
    BackboneError
        If the checkpoint comes without preprocessing settings.
    """
    from transformers.utils import cached_file

    for file in ("preprocessor_config.json", "processor_config.json"):
        with quiet(), _explained(name, file):
            path = cached_file(
                name,
                file,
                revision=getattr(config, "_commit_hash", None) or revision,
                _raise_exceptions_for_missing_entries=False,
            )
        if path is not None:
            return read_preprocessing(Path(path))
    raise BackboneError(
        f"{name} has no preprocessor_config.json, so how its images were normalised is unknown; add the file that "
        'belongs to the checkpoint, or say normalization="imagenet" to use the mean and std of ImageNet'
    )


def load_weights(name: str, config: Any, revision: str | None = None) -> nn.Module:
    """Load the vision encoder of a checkpoint in float32, on the CPU, in evaluation mode.

    Raises
    ------
    BackboneError
        If files are missing or damaged, or the checkpoint lacks weights of the encoder: transformers would fill
        those with random numbers and only warn.
    """
    arguments = {
        "revision": getattr(config, "_commit_hash", None) or revision,
        "output_loading_info": True,
        "dtype": torch.float32,
        "trust_remote_code": False,
    }
    family = family_of_type(config.model_type)
    if family is not None:
        vision_config = vision_config_of(config)
        model_class = _class_of(family)
        with quiet(), _explained(name, "weights"):
            model, report = model_class.from_pretrained(
                name, config=vision_config, **arguments, **family.model_arguments
            )
        prefix = ""
    else:
        from transformers import AutoModel

        with quiet(), _explained(name, "weights"):
            whole, report = AutoModel.from_pretrained(name, config=config, **arguments)
        prefix, model = _vision_part(whole, name)
    _require_weights(name, report, prefix, getattr(config, "transformers_version", None))
    return model.eval().requires_grad_(False)


def build_untrained(name: str, config: Any) -> nn.Module:
    """Make the vision encoder of a config with the weights that its architecture starts training from.

    Raises
    ------
    BackboneError
        If the architecture is unknown to transformers or is no vision model.
    """
    family = family_of_type(config.model_type)
    with quiet(), _explained(name, "config"):
        if family is not None:
            model = _class_of(family)(vision_config_of(config), **family.model_arguments)
        else:
            from transformers import AutoModel

            model = AutoModel.from_config(config, trust_remote_code=False)
    if family is None:
        _, model = _vision_part(model, name)
    start_positions(model, config)
    return model.float().eval().requires_grad_(False)


def _class_of(family: Family) -> Any:
    import transformers

    try:
        return getattr(transformers, family.model_class)
    except (AttributeError, ImportError) as error:
        raise BackboneError(
            f"transformers {transformers.__version__} has no {family.model_class}; install a newer version"
        ) from error


def _vision_part(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Return the vision encoder of a model of an unknown family, and the prefix of its weights' names."""
    for part in _VISION_PARTS:
        inner = getattr(model, part, None)
        if isinstance(inner, nn.Module) and getattr(inner, "main_input_name", "pixel_values") == "pixel_values":
            return f"{part}.", inner
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise BackboneError(
            f"{name} is a {type(model).__name__}, which takes {getattr(model, 'main_input_name', '?')} and no images; "
            "choose a vision transformer"
        )
    return "", model


def _require_weights(name: str, report: dict[str, Any], prefix: str, written_by: str | None) -> None:
    mismatched = {entry[0] for entry in report.get("mismatched_keys", ())}
    absent = sorted(
        key for key in {*report["missing_keys"], *mismatched} if key.startswith(prefix) and not _UNUSED.search(key)
    )
    if absent:
        import transformers

        shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise BackboneError(
            f"the checkpoint {name} lacks {len(absent)} weights of its vision encoder, which would be random numbers: "
            f"{shown}. Check that config.json and the weights belong together, that transformers "
            f"{transformers.__version__} is no older than the one that wrote them ({written_by or 'unknown'}), or "
            "download the checkpoint again"
        )
    if report.get("unexpected_keys"):
        logger.debug("%s: weights left unused: %s", name, ", ".join(sorted(report["unexpected_keys"])))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and bars of transformers: bindkit checks what they warn of. Downloads keep their bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars, download_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
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
                from huggingface_hub.utils import disable_progress_bars

                disable_progress_bars()


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
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
    kinds = {type(link).__name__ for link in _chain(error)}
    text = " ".join(str(link) for link in _chain(error)).lower()
    if "GatedRepoError" in kinds or "gated" in text:
        return f"Accept the terms on the page of {name}, then log in with `huggingface-cli login` (or `hf auth login`)"
    if "trust_remote_code" in text:
        return "It needs code from its own repository, which bindkit never runs; choose a checkpoint without"
    if Path(name).is_dir():
        files = ", ".join(sorted(path.name for path in Path(name).iterdir())[:8]) or "nothing"
        if "SafetensorError" in kinds or "corrupt" in text:
            return f"The file is damaged or cut short: copy or download it again; {name} holds {files}"
        return (
            f"The directory should hold config.json, model.safetensors and preprocessor_config.json that belong "
            f"together and that the installed transformers knows; it holds {files}"
        )
    if "SafetensorError" in kinds:
        return "The downloaded file is damaged: delete it from the hub cache (HF_HOME) and load it again"
    if "RevisionNotFoundError" in kinds:
        return "Give a branch, tag or commit that the model has as revision, or leave it out"
    if kinds & {"RepositoryNotFoundError", "HFValidationError"} or "not a valid model identifier" in text:
        return (
            "Check the spelling (owner/model); for a private model log in with `huggingface-cli login`; "
            "for a local model give its directory"
        )
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"} or (
        "connect" in text
    ):
        return (
            "The hub cannot be reached: go online, point HF_HOME to a cache that holds the model, "
            "or give a local directory"
        )
    return "Check that the name is a vision transformer that the installed transformers knows"


def _chain(error: BaseException) -> Iterable[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
