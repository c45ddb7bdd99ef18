"""The way back: a model in the formats of diffusers, ComfyUI and GLIGEN's own code.

    Model -> tensors by the form's names (`keys`, `ldm`), configs (`foreign_configs`) -> files

Every parameter becomes the tensors that it was built from, bit for bit.
"""

from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import ml_dtypes
import numpy as np

from reground_jax.basics.atomic import aside, publish, write_json
from reground_jax.basics.fields import check_name
from reground_jax.model import Model, read_model
from reground_jax.sampling.schedule import alphas_cumprod
from reground_jax.storage.checkpoint import flatten
from reground_jax.version import __version__

from . import safetensors
from .conversion import DTYPES
from .first_conv import LEAVES as FIRST_CONV
from .foreign_configs import PIPELINES, diffusers_fields, linear_projections, original_fields
from .keys import leaves_of
from .ldm import original_names
from .passing import is_finite
from .tokenizer_files import with_last_end, write_tokenizer

Form = Literal["diffusers", "adapter", "gligen"]
FORMS: tuple[Form, ...] = ("diffusers", "adapter", "gligen")
# Prefixes and file names of a diffusers folder.
PREFIXES = {"text_encoder": "text_model.", "image_encoder": "vision_model."}
WEIGHTS = {"text_encoder": "model", "image_encoder": "model"}
PIXELS = {"image_mean": [0.48145466, 0.4578275, 0.40821073],
          "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip

Arrays = dict[str, np.ndarray]  # by torch name


def export(
    model: str | Path, destination: str | Path, form: Form | str, *, dtype: str | None = None
) -> list[Path]:
    """Writes a model directory in another format, and returns the files.

    form: "diffusers", a folder for `StableDiffusionGLIGENPipeline.from_pretrained` (or the
    text-image pipeline); "adapter", one safetensors file of fusers and position net by the original
    names, for ComfyUI; "gligen", a folder with a checkpoint for GLIGEN's own code, which needs
    torch. dtype: float32, float16 or bfloat16 (default: as stored). Nothing is left behind by an
    error. Raises ValueError for a model that the form cannot hold, FileExistsError if `destination`
    exists.
    """
    check_name("form", form, FORMS)
    if dtype is not None:
        check_name("dtype", dtype, tuple(DTYPES))
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination} already exists: choose another path, or remove it")
    write = {"diffusers": _diffusers, "adapter": _adapter, "gligen": _gligen}[form]
    found = read_model(model)
    with aside(destination) as part:
        write(found, part, None if dtype is None else DTYPES[dtype])
        publish(part, destination)
    inside = sorted(destination.rglob("*")) if destination.is_dir() else [destination]
    return [path for path in inside if path.is_file()]


def _tensors(model: Model, dtype: np.dtype | None) -> dict[str, Arrays]:
    """The tensors of each network by diffusers name, with the shapes that they have there."""
    found: dict[str, Arrays] = {}
    given = dict(flatten(model.params))
    for leaf in leaves_of({path: array.shape for path, array in given.items()}):
        network = found.setdefault(leaf.path.split("/")[0], {})
        network |= zip(leaf.sources, leaf.split(np.asarray(given[leaf.path])), strict=True)
    if dtype is not None:
        found = {
            network: {name: _cast(name, array, dtype) for name, array in arrays.items()}
            for network, arrays in found.items()
        }
    return _shaped(model, found)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not is_finite(cast):
        raise ValueError(
            f"{name} has NaN, or values too large for {dtype}: use --dtype bfloat16 or float32"
        )
    return cast


def _shaped(model: Model, tensors: dict[str, Arrays]) -> dict[str, Arrays]:
    """Those of 1x1 convolutions with four axes, as they have in every form."""
    ends = [".conv_shortcut.weight", "quant_conv.weight"]
    if not linear_projections(model.config.unet):
        ends += [".proj_in.weight", ".proj_out.weight"]
    return {
        network: {
            name: _as_convolution(array) if name.endswith((*ends,)) else array
            for name, array in arrays.items()
        }
        for network, arrays in tensors.items()
    }


def _as_convolution(array: np.ndarray) -> np.ndarray:
    return array[..., None, None] if array.ndim == 2 else array


# ---- diffusers


def _diffusers(model: Model, folder: Path, dtype: np.dtype | None) -> None:
    model = with_last_end(model)
    fields = diffusers_fields(model.config)
    tensors = _tensors(model, dtype)
    for part, config in fields.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        write_json(folder / part / name, config, indent=2)
    for part, arrays in tensors.items():
        prefix, stem = PREFIXES.get(part, ""), WEIGHTS.get(part, "diffusion_pytorch_model")
        arrays = {_prefixed(prefix, name): array for name, array in arrays.items()}
        safetensors.write(folder / part / f"{stem}.safetensors", arrays, {"format": "pt"})
    tokenizer = write_tokenizer(folder / "tokenizer", model)
    kind = str(model.config.unet.grounding)
    index: dict[str, Any] = {
        "_class_name": PIPELINES[kind],
        "_diffusers_version": fields["unet"]["_diffusers_version"],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", fields["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if (image := model.config.image_encoder) is not None:
        write_tokenizer(folder / "processor", model)
        side = image.image_size
        pixels = PIXELS | {
            "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor",
            "crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side},
            "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
            "do_rescale": True, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255,
        }  # fmt: skip
        write_json(folder / "processor" / "preprocessor_config.json", pixels, indent=2)
        index |= {
            "processor": ["transformers", "CLIPProcessor"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "image_project": ["stable_diffusion", "CLIPImageProjection"],
        }
    write_json(folder / "model_index.json", index, indent=2)


def _prefixed(prefix: str, name: str) -> str:
    """The projection of an image encoder stands beside its transformer."""
    return name if name.startswith("visual_projection.") else prefix + name


# ---- the original layout


def _original(model: Model, network: str, arrays: Arrays) -> Arrays:
    """By the original names; the autoencoder's attention consists of convolutions there."""
    back = original_names(network, arrays, model.config)
    named = {back[name]: array for name, array in arrays.items()}
    if network == "vae":
        return {n: _as_convolution(a) if ".attn_1." in n else a for n, a in named.items()}
    return named


def _adapter(model: Model, file: Path, dtype: np.dtype | None) -> None:
    unet = model.config.unet
    if unet.grounding != "text" or unet.inpainting:
        raise ValueError(
            f"the form adapter is for models of kind text that make whole images; this one is of "
            f"kind {unet.grounding}{', for inpainting' * unet.inpainting}: use the form gligen"
        )
    arrays = _original(model, "unet", _tensors(model, dtype)["unet"])
    own = {n: a for n, a in arrays.items() if ".fuser." in n or n.startswith("position_net.")}
    made = {"reground_jax": __version__, "base": str(model.info.get("source", "unknown"))}
    safetensors.write(file, own, {"format": "pt"} | made)


def _gligen(model: Model, folder: Path, dtype: np.dtype | None) -> None:
    """diffusion_pytorch_model.bin as on the Hub, and what GLIGEN keeps in files beside it."""
    torch = _torch()
    tensors = _tensors(model, dtype)
    first_conv = {
        leaf: tensors["unet"].pop(name)
        for leaf in FIRST_CONV
        if (name := f"first_conv.{leaf}") in tensors["unet"]
    }
    parts = ("unet", "vae", "text_encoder")
    named = {part: _original(model, part, tensors[part]) for part in parts}
    unet, text = (
        {name: array.shape for name, array in named[part].items()}
        for part in ("unet", "text_encoder")
    )
    fields = original_fields(model.config, unet, text)
    positions = np.arange(model.config.text_encoder.network.max_length)[None]
    named["text_encoder"]["transformer.text_model.embeddings.position_ids"] = positions

    def as_torch(arrays: Arrays) -> dict[str, Any]:
        return {name: _tensor(array, torch) for name, array in arrays.items()}

    checkpoint = {
        "model": as_torch(named["unet"]),
        "autoencoder": as_torch(named["vae"]),
        "text_encoder": as_torch(named["text_encoder"]),
        "diffusion": as_torch(noise_tables(alphas_cumprod(model.config.schedule))),
        "config_dict": {"_content": fields, "_metadata": None},
    }
    folder.mkdir()
    torch.save(checkpoint, folder / "diffusion_pytorch_model.bin")
    if first_conv:
        torch.save(as_torch(first_conv), folder / "SD_input_conv_weight_bias.pth")
    if "image_project" in tensors:
        matrix = tensors["image_project"]["project.weight"].T
        torch.save(_tensor(matrix, torch), folder / "projection_matrix")


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "the form gligen needs torch, which is not installed: pip install "
            "'reground-jax[verify]'"
        ) from error
    return torch


def _tensor(array: np.ndarray, torch: Any) -> Any:
    array = np.array(array, order="C")  # torch wants memory that it may write to
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def noise_tables(kept: np.ndarray) -> Arrays:
    """What GLIGEN's code stores of its noise schedule, from the cumulative products of alphas.

    Source: `ldm/models/diffusion/ddpm.py`, register_schedule.
    """
    before = np.append(1.0, kept[:-1])
    alphas = kept / before
    betas = 1 - alphas
    variance = betas * (1 - before) / (1 - kept)
    tables = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "log_one_minus_alphas_cumprod": np.log(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - kept),
        "posterior_mean_coef2": (1 - before) * np.sqrt(alphas) / (1 - kept),
    }
    return {name: table.astype(np.float32) for name, table in tables.items()}
