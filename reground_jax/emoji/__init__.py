"""A small world of emoji pictograms, on which the shipped model is trained and measured."""
