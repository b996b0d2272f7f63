"""Compose ``figures/overview.png``, the README's picture, from the figures of a finished run.

bindkit run --workspace workspace && python figures/overview.py workspace
"""

import sys
from pathlib import Path

from PIL import Image

PARTS = ("01_patch_labels", "04_auroc_by_layer")


def main(workspace: str) -> None:
    """Put the parts below one another."""
    pictures = [Image.open(Path(workspace) / "figures" / f"{name}.png").convert("RGB") for name in PARTS]
    width = pictures[0].width
    scaled = [picture.resize((width, picture.height * width // picture.width)) for picture in pictures]
    page = Image.new("RGB", (width, sum(picture.height for picture in scaled)), "white")
    top = 0
    for picture in scaled:
        page.paste(picture, (0, top))
        top += picture.height
    page.resize((page.width * 3 // 5, page.height * 3 // 5), Image.Resampling.LANCZOS).quantize(256).save(
        Path(__file__).with_name("overview.png"), optimize=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
