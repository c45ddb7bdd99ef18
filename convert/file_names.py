"""Chooses the files that a conversion needs by their names, in a folder or a repository."""

from collections.abc import Iterable
from pathlib import Path

IMAGE_PARTS = ("image_encoder", "image_project")  # of models grounded by reference images
# A folder's weights, in order of preference: full precision before fp16, safetensors before
# pickles, one file before shards.
STEMS = {
    "safetensors": ("diffusion_pytorch_model", "model"),
    "bin": ("diffusion_pytorch_model", "pytorch_model"),
}
EMBEDDINGS = ("learned_embeds.safetensors", "learned_embeds.bin")
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def pick_weights(names: Iterable[str], variant: str | None = None) -> str | None:
    """The first of `weight_names(variant)` among the file names, or None."""
    present = set(names)
    return next((name for name in weight_names(variant) if name in present), None)


def weight_names(variant: str | None = None) -> list[str]:
    """File names that weights can have, best first.

    A variant ("fp16") allows only that one; None prefers the plain files, and falls back to fp16.
    """
    names = []
    for form in (variant,) if variant else (None, "fp16"):
        dot = f".{form}" if form else ""
        for ending, stems in STEMS.items():
            names += [f"{stem}{dot}.{ending}" for stem in stems]
            names += [f"{stem}.{ending}.index{dot}.json" for stem in stems]
            if form:  # how older versions of diffusers named the index
                names += [f"{stem}{dot}.{ending}.index.json" for stem in stems]
    return names


def clip_files(names: list[str]) -> list[str]:
    """The files of a CLIP model: in a diffusers model's folders, or at the root of a repository."""
    parts = [f"{part}/" for part in IMAGE_PARTS if f"{part}/config.json" in names] or [""]
    found = [name for part in parts for name in _part_files(names, part)]
    if not any(Path(name).name != "config.json" for name in found):
        raise ValueError(f"it has no CLIP model: looked for {', '.join(weight_names())}")
    return found


def vae_files(names: list[str]) -> list[str]:
    """The files of an autoencoder: in a diffusers model's folder, or at the root."""
    found = _part_files(names, "vae/" if "vae/config.json" in names else "")
    if len(found) < 2:  # config and weights
        raise ValueError(f"it has no autoencoder: looked for {', '.join(weight_names())}")
    return found


def embedding_files(names: list[str]) -> list[str]:
    """The file of a textual inversion."""
    own = [name for name in EMBEDDINGS if name in names]
    return [own[0] if own else only_weights(names, "not one embedding: neither learned_embeds nor")]


def lora_files(names: list[str]) -> list[str]:
    """The file of a LoRA among those of a folder, and the config that peft puts beside it."""
    files = [name for name in names if "/" not in name]
    if PEFT_CONFIG not in files:
        return [
            only_weights(files, "not one LoRA: neither peft's folder (no adapter_config.json) nor")
        ]
    weights = [name for name in PEFT_WEIGHTS if name in files] or [only_weights(files, "not")]
    return [weights[0], PEFT_CONFIG]


def hub_files(names: list[str], variant: str | None = None) -> list[str]:
    """The files of a repository that a conversion needs."""
    if "unet/config.json" not in names:
        return [only_weights([name for name in names if "/" not in name])]
    wanted = [name for name in names if name == "model_index.json"]
    wanted += [name for name in names if name.split("/")[0] in ("scheduler", "tokenizer")]
    images = IMAGE_PARTS if any(name.startswith("image_project/") for name in names) else ()
    for part in ("unet", "vae", "text_encoder", *images):
        wanted += _part_files(names, f"{part}/", variant)
    return wanted


def _part_files(names: list[str], folder: str, variant: str | None = None) -> list[str]:
    """The config and the weights in a folder ("unet/", or "" for the root) of a repository."""
    inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    chosen = [name for name in inside if name == "config.json"]
    if picked := pick_weights(inside, variant):
        chosen.append(picked)
        if picked.endswith(".json"):  # an index: also its shards
            ending = "safetensors" if ".safetensors." in picked else "bin"
            chosen += [name for name in inside if "-of-" in name and name.endswith(ending)]
    return [folder + name for name in chosen]


def only_weights(
    names: list[str], otherwise: str = "neither a diffusers model (no unet/config.json) nor"
) -> str:
    """The only file of weights. otherwise: how the ValueError begins if there is not just one."""
    endings = (".safetensors", ".sft", ".bin", ".pth", ".ckpt")
    weights = [name for name in names if name.lower().endswith(endings)]
    if len(weights) != 1:
        raise ValueError(
            f"{otherwise} a single weight file, but "
            f"{some(weights) if weights else 'no weights at all'}; name the file itself"
        )
    return weights[0]


def some(names: Iterable[str], most: int = 20) -> str:
    """The first names in sorted order, for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "nothing") + more
