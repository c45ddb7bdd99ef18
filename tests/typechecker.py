"""Beartype as the tests' jaxtyping hook applies it: a whole number will do for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
