"""`Pipeline`: a model on devices, called with layouts. It loads, checks, pads and converts.

What runs on the devices is in `programs.py`, a batch in progress in `session.py`.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Unpack, overload

import jax
import numpy as np
from jaxtyping import Array, Float, Float32
from PIL import Image

from reground_jax.conditioning import Conditioning, Texts
from reground_jax.config import ModelConfig
from reground_jax.devices import Device, Mapper
from reground_jax.generate import generate
from reground_jax.hardware import Hardware
from reground_jax.layout import Layout
from reground_jax.model import Model, Params, read_model
from reground_jax.networks.attention import Backend
from reground_jax.programs import Programs
from reground_jax.request import (
    CallFields,
    Output,
    Request,
    check_layout,
    check_layouts,
    check_model,
)
from reground_jax.sampling.gate import Gamma
from reground_jax.session import Session
from reground_jax.settings import Settings


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A model placed on devices. `Pipeline.load` makes one; calling it makes images."""

    programs: Programs
    params: Params  # of all networks, on every device, in the programs' dtype
    texts: Texts
    info: dict[str, Any]  # facts about the checkpoint: source, checksum, sizes
    name: str = "model"  # the name it was loaded by
    recommended: Settings = Settings()  # the default settings of a call

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        devices: Sequence[Device] | None = None,
        attention: Backend | str | None = None,
        mapper: Mapper | str = "shard_map",
        cache: str | os.PathLike[str] | None = None,
    ) -> "Pipeline":
        """A pipeline from a model directory, a diffusers folder or a Hub id, tried in this order.

        Diffusers folders and Hub ids are converted once, into the folder `cache`, by default
        $XDG_CACHE_HOME/reground-jax, or else ~/.cache/reground-jax. (Compiled programs are cached
        in JAX's own `jax_compilation_cache_dir`.) dtype ("float32", "bfloat16"), devices, attention
        and mapper are passed to `Hardware.choose`; the default is all devices of this process.
        Raises ValueError or OSError saying what is wrong with `name`.
        """
        hardware = Hardware.choose(devices, dtype=dtype, attention=attention, mapper=mapper)
        from reground_jax.convert.locate import model_directory  # reads files in many forms

        model = read_model(model_directory(name, cache=cache), place=hardware.place)
        return cls._on(hardware, model, str(name))

    @classmethod
    def from_model(
        cls,
        model: Model,
        *,
        dtype: str = "float32",
        devices: Sequence[Device] | None = None,
        attention: Backend | str | None = None,
        mapper: Mapper | str = "shard_map",
        name: str = "model",
    ) -> "Pipeline":
        """A pipeline from a model in memory, whose arrays are cast to `dtype` and placed.

        Arrays that are already on the devices in `dtype` are used as is. name: for `repr`.
        """
        hardware = Hardware.choose(devices, dtype=dtype, attention=attention, mapper=mapper)
        return cls._on(hardware, model, name)

    @classmethod
    def _on(cls, hardware: Hardware, model: Model, name: str) -> "Pipeline":
        return cls(
            programs=Programs(model.config, hardware),
            params=jax.tree.map(hardware.place, model.params),
            texts=Texts(model.tokenizer_json, model.config.text_encoder.tokenizer),
            info=model.info,
            name=name,
            recommended=Settings(**model.recommended),
        )

    @property
    def config(self) -> ModelConfig:
        return self.programs.config

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.programs.hardware.devices

    @property
    def dtype(self) -> str:
        return self.programs.hardware.dtype

    def __repr__(self) -> str:
        side = self.config.side
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params)) / 1e6
        what = f"{self.name}, {side}x{side}, {count:.2f} M parameters, {self.dtype}"
        return f"Pipeline({what}, {len(self.devices)} x {self.devices[0].platform})"

    def __deepcopy__(self, memo: Any = None) -> "Pipeline":
        return self  # immutable

    __copy__ = __deepcopy__

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pipeline cannot be pickled: its arrays and programs belong to this process's "
            "devices; pass its name, and call Pipeline.load(name) in the other process"
        )

    @overload
    def __call__(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        *,
        output: Literal["pil"] = "pil",
        **keywords: Unpack[CallFields],
    ) -> list[Image.Image]: ...

    @overload
    def __call__(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        *,
        output: Literal["numpy", "latents"],
        **keywords: Unpack[CallFields],
    ) -> Float32[np.ndarray, "B H W C"]: ...

    def __call__(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        *,
        output: Output | str = "pil",
        **keywords: Unpack[CallFields],
    ) -> Any:
        """One image per layout.

        settings: by default, those recommended by the model. Fields may also be given as keywords,
        which take precedence: wiring, gamma, num_steps, guidance_scale, guidance_interval, solver,
        eta, height, width, max_boxes, paste ... (see `Settings`).
        seeds: one per image, 0..2**32-1; by default 0, 1, 2, ... One layout may take a single int.
        latents: unit normal initial latents [B, h, w, C] float32, instead of the seeds' noise.
        output: "pil", "numpy" ([B, H, W, 3] float32 in 0..1) or "latents" ([B, h, w, C] float32).
        batch_size: images per device at a time; lists of any length are padded to it, so a
        different length does not recompile. progress: True for a progress bar, or a function called
        after every step with (batch, number of batches, steps done in this batch).
        Raises ValueError, before compiling anything, for what is not supported, and TypeError for
        an unknown keyword; both say what to write instead. NaN or infinity in an image (the
        arithmetic overflowed) is a ValueError for "pil" and a warning for arrays.
        """
        request = self._request("a pipeline", layouts, settings, output, keywords)
        (images,) = generate(self.programs, self.params, self.texts, request, [request.settings])
        return images

    @overload
    def sweep(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        *,
        gammas: Sequence[float | Sequence[float]] | None = None,
        couplings: Sequence[Any] | None = None,
        output: Literal["pil"] = "pil",
        **keywords: Unpack[CallFields],
    ) -> dict[Any, list[Image.Image]]: ...

    @overload
    def sweep(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        *,
        gammas: Sequence[float | Sequence[float]] | None = None,
        couplings: Sequence[Any] | None = None,
        output: Literal["numpy", "latents"],
        **keywords: Unpack[CallFields],
    ) -> dict[Any, Float32[np.ndarray, "B H W C"]]: ...

    def sweep(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        *,
        gammas: Sequence[Gamma | Sequence[float]] | None = None,
        couplings: Sequence[Any] | None = None,
        output: Output | str = "pil",
        **keywords: Unpack[CallFields],
    ) -> dict[Any, Any]:
        """The results of calls that differ only in gamma, in coupling, or in both.

        By gamma; by coupling, under the wiring "coupled"; or, if both are given, by (coupling,
        gamma). Keys are as `Settings` has them; other arguments are as in a call. Steps shared by
        several results run only once: gamma 0, 0.1 .. 1 take 6.5 times the steps of one run, not
        11. progress: counts only the steps that are run.
        """
        lists: dict[str, Sequence[Any]] = {}
        for field, name, values in (
            ("coupling", "couplings", couplings), ("gamma", "gammas", gammas),
        ):  # fmt: skip
            if field in keywords and values is not None:
                raise TypeError(f"sweep has {name}=[...], so it takes no {field!r} of its own")
            if isinstance(values, (int, float)):
                raise ValueError(f"{name} is {values}: give a list of them, {name}=[{values}]")
            if values is not None and not len(values):
                raise ValueError(f"{name} is empty: give at least one {field} to sweep over")
            if values is not None:
                lists[field] = values
        if not lists:
            raise TypeError("a sweep needs gammas=[...], couplings=[...], or both")
        request = self._request("sweep", layouts, settings, output, keywords)
        chosen: dict[Any, Settings] = {}
        for values in itertools.product(*lists.values()):
            fields: dict[str, Any] = dict(zip(lists, values, strict=True))
            variant = dataclasses.replace(request.settings, **fields)
            check_model(self.config, variant)
            keys = [getattr(variant, field) for field in lists]
            chosen[tuple(keys) if len(keys) > 1 else keys[0]] = variant
        images = generate(self.programs, self.params, self.texts, request, list(chosen.values()))
        return dict(zip(chosen, images, strict=True))

    def session(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings | None = None,
        **keywords: Unpack[CallFields],
    ) -> Session:
        """One batch at step 0, sized a multiple of the number of devices; raises as a call does."""
        request = self._request("session", layouts, settings, "latents", keywords)
        return Session(
            self.programs, self.params,
            self.encode(request.layouts, request.settings), request.settings, request.seeds,
            latents=request.latents,
        )  # fmt: skip

    def encode(
        self, layouts: Sequence[Layout] | Layout, settings: Settings | None = None
    ) -> Conditioning:
        """Texts, boxes and pictures as arrays on the host; each distinct one is encoded once.

        settings: by default, those recommended by the model; read are the size, `max_boxes` and the
        attention guidance. Raises ValueError for a layout that the model does not take, for an
        empty list, for phrases that the guidance does not find, and for pictures that cannot be
        read.
        """
        given = check_layouts(layouts)
        for layout in given:
            check_layout(self.config, layout)
        chosen = self.recommended if settings is None else settings
        return self.programs.encode(self.params, self.texts, given, settings=chosen)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float32[Array, "B H W 3"]:
        """Images in 0..1, clipped. Raises ValueError unless the devices divide B evenly."""
        return self.programs.decode(self.params, latents)

    def _request(self, function: str, layouts, settings, output, keywords) -> Request:
        base = self.recommended if settings is None else settings
        request = Request.of(function, self.programs, layouts, base, output, keywords)
        if (guidance := request.settings.attention_guidance) is not None:  # raises, if at all, now
            boxes, missing = request.settings.max_boxes, guidance.missing
            self.texts.words(request.layouts, max_boxes=boxes, missing=missing)
        return request
