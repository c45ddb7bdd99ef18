"""Every annotation with a shape is checked while the tests run (jaxtyping and beartype)."""

from jaxtyping import install_import_hook

install_import_hook("reground_jax", "beartype.beartype")
