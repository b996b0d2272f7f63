"""The page itself: template, style and script of this package put together with data into one file.

The file asks nothing of a network: a content security policy forbids it, and also forbids every script but the one that
is named by its digest, so that no text of a user can ever run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from bindkit.views.viewer.packing import STEP
from bindkit.views.viewer.text_bytes import ALPHABET

_SCRIPTS = ("unpacking.js", "drawing.js", "page.js")


def page_of(title: str, data: Mapping[str, Any], payloads: Mapping[str, str]) -> str:
    """Write the page.

    Parameters
    ----------
    title : str
        Any text.
    data : mapping
        What JSON can hold: images, backbones, layers.
    payloads : mapping
        Element id -> text of packed bytes (`bindkit.views.viewer.text_bytes`).
    """
    constants = f"const STEP = {STEP!r}, ALPHABET = {json.dumps(ALPHABET)};\n"
    script = '"use strict";\n(() => {\n' + constants + "\n".join(map(_part, _SCRIPTS)) + "\n})();\n"
    style = _part("page.css")
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    parts = {
        "policy": policy,
        "title": html.escape(title),
        "style": style,
        "data": safe_json(data),
        "payloads": "\n".join(
            f'<script type="text/plain" id="{name}">{text}</script>' for name, text in payloads.items()
        ),
        "script": script,
    }
    # In one pass, so that no text of a user is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _part("page.html"))


def safe_json(data: Any) -> str:
    r"""JSON that neither ends a script element nor breaks a line of one.

    >>> print(safe_json({"name": "</script>"}))
    {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (files("bindkit.views.viewer") / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
