"""Formats of scenes in files, one file a format; `bindkit.scenes.opening.FORMATS` lists them."""
