"""Plain Python that any part may use; it knows nothing about images, models or JAX."""
