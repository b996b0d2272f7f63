"""Options of scenes in files, written behind the directory: ``folder:DIR,orientation=stored,void=255``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bindkit.errors import InvalidParameterError
from bindkit.scenes.decoding import MAX_PIXELS

OPTIONS = {
    "max_pixels": f"pixels of the largest picture that is read, default {MAX_PIXELS}",
    "orientation": "upright | stored: how pictures with an EXIF orientation lie on their masks, default upright unless "
    "only the pixels as stored have the mask's size",
    "soft": "allow: read masks that look smoothed, which are refused by default",
    "void": "ids that mean unlabelled, such as 255 or 254+255, default none",
}
VALUES = {
    "max_pixels": "[1-9][0-9]{0,14}",
    "orientation": "upright|stored",
    "soft": "allow",
    "void": r"[0-9]{1,15}(\+[0-9]{1,15})*",
}
ADE20K_OPTIONS = ("max_pixels", "orientation", "soft")


def split_directory(text: str, base: Path = Path()) -> tuple[str, list[str]]:
    """Part a directory from the options behind it; a directory may have commas and "=" in its name.

    >>> split_directory("no/such, directory,void=255")
    ('no/such, directory', ['void=255'])
    """
    pieces = text.split(",")
    n_options = next((n for n, piece in enumerate(reversed(pieces[1:])) if "=" not in piece), len(pieces) - 1)
    for end in range(len(pieces), len(pieces) - n_options - 1, -1):
        directory = ",".join(pieces[:end])
        if (base / Path(directory).expanduser()).is_dir():
            return directory, pieces[end:]
    end = len(pieces) - n_options
    return ",".join(pieces[:end]), pieces[end:]


@dataclass(frozen=True)
class ReadingOptions:
    """How the files of a scene are read; the fields are described in `OPTIONS`."""

    max_pixels: int = MAX_PIXELS
    orientation: str | None = None
    soft: bool = False
    void: tuple[int, ...] = ()

    @classmethod
    def parse(cls, items: Sequence[str], known: Sequence[str] = tuple(OPTIONS)) -> ReadingOptions:
        """Read ``NAME=VALUE`` items. Raises InvalidParameterError that lists the known options."""
        values: dict[str, str] = {}
        for item in items:
            name, _, value = item.strip().partition("=")
            if name not in known or name in values or not re.fullmatch(VALUES[name], value):
                fault = "is given twice" if name in values else "is not understood"
                listed = "; ".join(f"{option}: {OPTIONS[option]}" for option in known)
                raise InvalidParameterError(f"scenes in files: {name}={value} {fault}; the options are {listed}")
            values[name] = value
        return cls(
            max_pixels=int(values.get("max_pixels", MAX_PIXELS)),
            orientation=values.get("orientation"),
            soft="soft" in values,
            void=tuple(sorted({int(number) for number in re.findall("[0-9]+", values.get("void", ""))})),
        )

    def __str__(self) -> str:
        """What stands behind the directory in a normalised URI: the options that are not at their default, in order."""
        given = {
            "max_pixels": "" if self.max_pixels == MAX_PIXELS else str(self.max_pixels),
            "orientation": self.orientation or "",
            "soft": "allow" if self.soft else "",
            "void": "+".join(map(str, self.void)),
        }
        return "".join(f",{name}={value}" for name, value in given.items() if value)
