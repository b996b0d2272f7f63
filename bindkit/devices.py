"""Where tensors live: the device that a name means here."""

from __future__ import annotations

import torch

from bindkit.errors import InvalidParameterError


def device_of(device: str | torch.device) -> torch.device:
    """The device of a name as torch has them; ``"auto"`` takes CUDA where there is one.

    >>> device_of("cpu")
    device(type='cpu')

    Raises
    ------
    InvalidParameterError
        For a name that torch does not know, or a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidParameterError(f'unknown device {device!r}; choose "auto", "cpu" or "cuda"') from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidParameterError(f'device {device!r} asks for a GPU and there is none; choose "auto" or "cpu"')
    return chosen
