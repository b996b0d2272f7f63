"""Compose ``figures/overview.png``, a picture of it all, from the figures of a finished run.

bindkit run --workspace workspace && python figures/overview.py workspace
"""

import sys
from pathlib import Path

from PIL import Image

ABOVE, BELOW = "05_affinity", ("04_matched_auroc_by_layer", "04_matched_twins_auroc_by_layer")


def main(workspace: str) -> None:
    """Put the affinities above and the two curves side by side below them."""
    figures = Path(workspace) / "figures"
    above, *curves = (Image.open(figures / f"{name}.png").convert("RGB") for name in (ABOVE, *BELOW))
    half = max(above.width // 2, 1000)
    curves = [curve.resize((half, curve.height * half // curve.width), Image.Resampling.LANCZOS) for curve in curves]
    page = Image.new("RGB", (2 * half, above.height + max(curve.height for curve in curves)), "white")
    page.paste(above, (half - above.width // 2, 0))
    for column, curve in enumerate(curves):
        page.paste(curve, (column * half, above.height))
    small = page.resize((page.width * 3 // 4, page.height * 3 // 4), Image.Resampling.LANCZOS)
    small.quantize(256, kmeans=3).save(Path(__file__).with_name("overview.png"), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
