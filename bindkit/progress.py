"""Progress bars for long work: tqdm's, drawn as text where a batch run asks for it.

A bar shows the rate and the remaining time. In JupyterLab it is a widget; papermill runs set
``BINDKIT_PROGRESS=text`` so that no widget state lands in executed notebooks; ``BINDKIT_PROGRESS=off`` is silent.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any


def progress(total: int, description: str, unit: str, initial: int = 0) -> Any:
    """Open a tqdm bar over `total` steps of `unit`; use as a context manager and call ``bar.update(n)``."""
    style = os.environ.get("BINDKIT_PROGRESS", "auto")
    if style == "auto":
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(total=total, desc=description, unit=f" {unit}", initial=initial, disable=style == "off", leave=False)


def show_messages(level: int = logging.INFO) -> None:
    """Show what bindkit says of its work (sizes announced, work resumed or skipped) on standard error.

    >>> show_messages()
    """
    logger = logging.getLogger("bindkit")
    logger.setLevel(level)
    if not any(getattr(handler, "is_bindkit", False) for handler in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.is_bindkit = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
