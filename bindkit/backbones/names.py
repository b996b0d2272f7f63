"""What the name of a backbone says, and what lies behind it on this machine; nothing is loaded here.

A hub id, a directory, ``bindkit/NAME`` for the tiny ViTs that come with bindkit (pretrained on synthetic scenes), and
``random-init:NAME[,seed=0]``: untrained, of a small embedded architecture that needs no download, or the *twin* of any
other backbone, with its config and preprocessing and fresh weights. ``timm:NAME`` for a model of timm, ``NAME`` or
``MODULE:NAME`` for one that `register_backbone` made known.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from bindkit.errors import BackboneError, InvalidParameterError
from bindkit.files import RememberedDigests, parse_json

logger = logging.getLogger(__name__)

EMBEDDED = ("dinov2", "vit")
ASSETS = Path(__file__).parent / "assets"
"""Holds one Hugging Face directory for each backbone that comes with bindkit, with its model card."""

TIMM, _RANDOM_INIT, _SHIPPED = "timm:", "random-init:", "bindkit/"
_IN_A_MODULE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):[\w.-]+", re.ASCII)
_SETTINGS = re.compile(r"(config|preprocessor_config|processor_config)\.json")
_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?")


@dataclass(frozen=True)
class RandomInit:
    """What to build: an embedded architecture or a checkpoint to be the twin of, and the seed of the weights."""

    source: str
    seed: int

    @property
    def is_embedded(self) -> bool:
        """Whether the architecture comes with bindkit, so that nothing has to be read."""
        return self.source in EMBEDDED


def parse_random_init(name: str) -> RandomInit | None:
    """Read ``random-init:NAME[,seed=N]``; None for any other name. Raises InvalidParameterError if it is misspelt."""
    if not name.startswith(_RANDOM_INIT):
        return None
    source, _, option = name.removeprefix(_RANDOM_INIT).partition(",seed=")
    misspelt = ",seed=" in name and not re.fullmatch(r"\d{1,18}", option)
    if not source.strip() or re.search(r",\w+=", source) or misspelt:
        raise InvalidParameterError(
            f"cannot read {name!r}; write random-init:NAME or random-init:NAME,seed=0, where NAME is "
            f"{' or '.join(EMBEDDED)} (embedded), a hub id or a model directory"
        )
    return RandomInit(source.strip(), int(option or 0))


def shipped_names() -> tuple[str, ...]:
    """Names of all backbones that come with this bindkit."""
    return tuple(sorted(_SHIPPED + path.parent.name for path in ASSETS.glob("*/config.json")))


def directory_of(name: str) -> str:
    """The directory behind a shipped name or one that begins with ``~``; any other name as it is.

    Raises BackboneError for a ``bindkit/`` name that is not shipped. A directory of that name from where one stands
    passes.
    """
    if name.startswith("~"):
        return str(Path(name).expanduser())
    if not name.startswith(_SHIPPED) or Path(name).is_dir():
        return name
    if name not in shipped_names():
        raise BackboneError(
            f"bindkit comes with no backbone {name!r}; it has {', '.join(shipped_names()) or 'none (install it again)'}"
        )
    return str(ASSETS / name.removeprefix(_SHIPPED))


def module_of(name: str) -> str | None:
    """The module of ``MODULE:NAME``; None for any other name. What lies in a directory of that name has its own."""
    found = _IN_A_MODULE.fullmatch(name)
    return None if found is None or name.startswith(TIMM) or Path(name).is_dir() else found[1]


def require_place(name: str) -> None:
    """Refuse what can be neither a directory nor a hub id, without asking the hub. Raises BackboneError."""
    if not name.strip():
        raise BackboneError("a backbone needs a name: a hub id, a local directory or random-init:NAME")
    if Path(name).is_dir():
        return
    if name.startswith((".", "~")) or Path(name).is_absolute():
        raise BackboneError(
            f"{name} is no directory; give a hub id or the directory that holds the model's config.json"
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise BackboneError(f"{name!r} is no directory here and no hub id such as owner/model: {error}") from error


def depth_and_patch(name: str) -> tuple[int | None, int | None]:
    """Number of layers and side of a patch in pixels, read from a config on this machine.

    None where there is no config here, or it does not say. Raises BackboneError for what can be no name of a backbone.
    """
    if name.startswith(TIMM) or module_of(name):
        return None, None
    directory = directory_of(name)
    require_place(directory)
    try:
        config = parse_json((Path(directory) / "config.json").read_text(encoding="utf-8"))
        vision = config.get("vision_config") or config
        found = [vision.get(key) for key in ("num_hidden_layers", "patch_size")]
    except (OSError, ValueError, AttributeError):
        return None, None
    depth, patch = (number if type(number) is int and number > 0 else None for number in found)
    return depth, patch


def contents_of_backbone(name: str, digests: RememberedDigests | None = None) -> dict[str, str]:
    """Name of each file that `load_backbone` reads -> its SHA-256 in hex; of a hub model ``{"revision": commit}``.

    An untrained twin reads no weights. Nothing is told of an embedded architecture, of a hub model that is not on this
    machine, and of a backbone that a notebook registered: none has files here. Of ``MODULE:NAME`` it is the module's.
    """
    known = RememberedDigests() if digests is None else digests
    untrained = parse_random_init(name)
    if untrained is not None and untrained.is_embedded:
        return {}
    source = (name if untrained is None else untrained.source).removeprefix(TIMM)
    if module := module_of(source):
        try:
            file = getattr(find_spec(module), "origin", None)
        except Exception as error:  # it imports what the module lies in
            raise BackboneError(
                f"{name}: the module {module} cannot be found ({type(error).__name__}: {error})"
            ) from error
        logger.warning(
            "%s: what weights it loads is seen when it is loaded alone; after a change run with --force", name
        )
        return {file: known.of(Path(file))} if file else {}
    directory = Path(directory_of(source))
    if not directory.is_dir():
        revision = _revision_here(source)
        return {"revision": revision} if revision else {}
    read = [
        file
        for file in sorted(directory.iterdir())
        if _SETTINGS.fullmatch(file.name) or (untrained is None and _WEIGHTS.fullmatch(file.name))
    ]
    found = {file.name: known.of(file) for file in read}
    known.keep()
    return found


def _revision_here(name: str) -> str | None:
    """The commit of a hub model that lies in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that a hub takes
        return None
    # HOME/models--NAME/snapshots/COMMIT/config.json
    return Path(config).parent.name if isinstance(config, str) else None
