"""Views: figures, the explorer in a notebook, and the page that opens anywhere."""
