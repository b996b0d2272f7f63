"""Analyses: when binding emerges in training, and what each difficulty of a scene costs."""
