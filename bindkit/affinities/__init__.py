"""Affinities of one image: every patch against every other, whole images stitched from their windows."""
