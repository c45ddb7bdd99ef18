"""Training on the package's own networks: an autoencoder, text-to-image, and GLIGEN's grounding.

`reground-jax train` (cli/train.py) is the way in.
"""
