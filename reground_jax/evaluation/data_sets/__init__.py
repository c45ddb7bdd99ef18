"""Data sets that people have files of, as sets of cases."""
