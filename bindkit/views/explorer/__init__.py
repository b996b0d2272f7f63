"""The explorer: click a patch of an image in a notebook and see which others a probe takes to be of the same object."""

from bindkit.views.explorer.widget import AffinityExplorer

__all__ = ["AffinityExplorer"]
