"""A small world of emoji pictograms, used to train and evaluate the built-in model."""
