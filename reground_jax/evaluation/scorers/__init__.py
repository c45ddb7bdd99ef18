"""Scorers of any images, a file each."""
