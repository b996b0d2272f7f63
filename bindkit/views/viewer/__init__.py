"""The viewer: one self-contained page on which a click at a patch shows its affinity to every other patch."""

from bindkit.views.viewer.exporting import export_viewer
from bindkit.views.viewer.probe_choice import find_probes, spread, spread_probes

__all__ = ["export_viewer", "find_probes", "spread", "spread_probes"]
