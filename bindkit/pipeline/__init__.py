"""The pipeline: the numbered notebooks as one batch, and the workspace that it fills."""
