"""Training of the package's own networks: autoencoder, text-to-image, and GLIGEN's grounding.

The entry point is `reground-jax train` (cli/train.py).
"""
