"""Training on the package's own networks: an autoencoder, text-to-image, and GLIGEN's grounding.

python -m reground_jax.training autoencoder|text_to_image|grounding --config FILE.json --out DIR
"""
