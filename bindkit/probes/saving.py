"""Fitted probes on disk: weights as safetensors, and JSON that says what they are."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bindkit.arguments import read_path
from bindkit.errors import ProbeError
from bindkit.files import parse_json, sha256_of, write_bytes, write_json
from bindkit.probes.base import Probe
from bindkit.probes.registry import PROBES, make_probe

FORMAT = 3
"""Version of a saved probe's directory. Version 1 had neither options nor temperature, version 2 no scale."""


def save_probe(probe: Probe, directory: str | Path) -> Path:
    """Write ``probe.safetensors`` and ``probe.json`` (what it was fitted on); the JSON comes last and seals both."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / "probe.json"
    record.unlink(missing_ok=True)
    weights = directory / "probe.safetensors"
    write_bytes(weights, save({name: value.detach().cpu().contiguous() for name, value in probe.state_dict().items()}))
    shape = {"probe": probe.kind, "d_model": probe.d_model, "options": probe.options}
    shape |= {"scale": probe.scale, "temperature": probe.temperature}
    write_json(record, {"format": FORMAT, **shape, "sha256": sha256_of(weights), "fitted_on": probe.fitted_on})
    return directory


def load_probe(directory: str | Path, d_model: int | None = None, layer: int | None = None) -> Probe:
    """Read a fitted probe.

    Parameters
    ----------
    directory : path
        As written by ``fit.save(directory)``.
    d_model, layer : int, optional
        Width and layer that the probe will be asked to judge; checked against what it was fitted on.

    Returns
    -------
    Probe
        In evaluation mode, on the CPU, with ``fitted_on`` filled.

    Raises
    ------
    ProbeError
        No probe there, an unknown kind or format, or weights that are not those that were saved.
    ProbeMismatchError
        Another width or layer.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = save_probe(make_probe("linear", d_model=4), directory)
    ...     load_probe(directory, d_model=4).kind
    'linear'
    """
    directory = read_path(directory, "a probe's directory")
    try:
        description = parse_json((directory / "probe.json").read_text(encoding="utf-8"))
        kind, width, digest = description["probe"], description["d_model"], description["sha256"]
        version, fitted_on = description["format"], description["fitted_on"]
        options = description.get("options", {})
        scale, temperature = (float(description.get(name, 1)) for name in ("scale", "temperature"))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ProbeError(
            f"{directory} holds no readable probe.json ({cause}); give a directory that fit.save() wrote"
        ) from cause
    if version not in range(1, FORMAT + 1):
        raise ProbeError(f"{directory} has probe format {version}, this bindkit reads {FORMAT}; fit it again or update")
    if kind not in PROBES:
        raise ProbeError(f"{directory} holds a {kind!r} probe, which is not registered; there are {', '.join(PROBES)}")
    weights = directory / "probe.safetensors"
    try:
        probe = make_probe(kind, width, **options)
        if sha256_of(weights) != digest:
            raise ProbeError(f"{weights} is not the file that was saved (its digest differs); fit the probe again")
        probe.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError, TypeError) as cause:
        raise ProbeError(f"{weights} cannot be read ({cause}); fit the probe again") from cause
    probe.fitted_on, probe.scale, probe.temperature = fitted_on, scale, temperature
    if d_model is not None:
        probe.check_fits(d_model, layer)
    elif layer is not None:
        probe.check_fits(probe.d_model, layer)
    return probe.eval()
