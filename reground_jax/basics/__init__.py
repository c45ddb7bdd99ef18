"""Plain Python that any room may use; it knows nothing of images, models or JAX."""
