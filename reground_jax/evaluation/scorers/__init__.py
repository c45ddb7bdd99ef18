"""Scorers for images of any data set, one file each."""
