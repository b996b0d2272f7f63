"""Compose ``figures/overview.png``, the README's picture, from the figures of a finished run.

bindkit run --workspace workspace && python figures/overview.py workspace
"""

import sys
from pathlib import Path

from PIL import Image

ABOVE, BELOW = "01_patch_labels", ("04_auroc_by_layer", "04_twins_auroc_by_layer")


def main(workspace: str) -> None:
    """Put the scene above and the two curves side by side below it."""
    figures = Path(workspace) / "figures"
    scene, *curves = (Image.open(figures / f"{name}.png").convert("RGB") for name in (ABOVE, *BELOW))
    half = scene.width // 2
    curves = [curve.resize((half, curve.height * half // curve.width), Image.Resampling.LANCZOS) for curve in curves]
    page = Image.new("RGB", (scene.width, scene.height + curves[0].height), "white")
    page.paste(scene, (0, 0))
    for column, curve in enumerate(curves):
        page.paste(curve, (column * half, scene.height))
    small = page.resize((page.width * 3 // 4, page.height * 3 // 4), Image.Resampling.LANCZOS)
    small.quantize(256).save(Path(__file__).with_name("overview.png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
