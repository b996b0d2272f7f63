"""Formats of scenes in files, small ones together; `bindkit.scenes.opening.FORMATS` lists them."""
