"""Another autoencoder than a checkpoint's own, or one for a checkpoint without."""

from pathlib import Path

from reground_jax.config import ModelConfig, VAEConfig

from . import configs, single_file
from .keys import normalize
from .ldm import LDM_PREFIXES, rename
from .rules import read_json
from .sources import Located, TensorFile, open_folder, open_tensors, resolve_vae

Autoencoder = tuple[VAEConfig, dict[str, Located]]  # tensors by diffusers name


def gather_autoencoder(source: str | Path) -> Autoencoder:
    """The config and tensors of an autoencoder.

    source: a diffusers AutoencoderKL, or a model with one; a single file of Stable Diffusion; a
    file of its autoencoder alone, by the original names, whose latents have Stable Diffusion's
    scale; or a Hub id. Raises ValueError for anything else.
    """
    path = resolve_vae(source)
    if path.is_dir():
        folder = vae_folder(path)
        config = configs.vae_config(read_json(folder / "config.json"))
        file = open_folder(folder)
        return config, {normalize("vae", name): Located(file, name) for name in file.keys()}
    file = open_tensors(path)
    prefix = vae_prefix(file)
    shapes = file.shapes()
    config = single_file.with_scale(single_file.vae_from_shapes(shapes, prefix), file)
    whole = ModelConfig(vae=config)
    return config, {
        normalize("vae", rename("vae", name.removeprefix(prefix), whole)): Located(file, name)
        for name in file.keys()
        if name.startswith(prefix)
    }


def vae_folder(path: Path) -> Path:
    """The autoencoder's folder in a diffusers model, or `path` itself."""
    return path / "vae" if (path / "vae" / "config.json").is_file() else path


def vae_prefix(file: TensorFile) -> str:
    """What stands before the autoencoder's names in a single file. Raises ValueError."""
    for prefix in (LDM_PREFIXES["vae"], ""):
        if any(name.startswith(f"{prefix}encoder.down.0.") for name in file.keys()):
            return prefix
    raise ValueError(
        f"{file.name} has no autoencoder by the original names ({LDM_PREFIXES['vae']}encoder.*): "
        "for one by diffusers' names, pass its folder, with its config.json"
    )
