"""`Programs`: the compiled programs that turn layouts into images.

    ids           -> encode_texts -> TextEncoding
    Conditioning  -> prepare      -> Prepared
    seeds         -> start        -> State  -> advance -> State
    latents       -> decode       -> images

Parameters are arguments, so one set of programs serves a model, its copies with scaled gates, and
a trainer's running average.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Float32, Int, UInt32

from reground_jax.conditioning import Conditioning, ImageEncoder, Texts, encode
from reground_jax.config import ModelConfig
from reground_jax.devices import SPLIT, WHOLE, Mapped
from reground_jax.hardware import Hardware
from reground_jax.images import from_uint8
from reground_jax.layout import Layout
from reground_jax.model import Params, network
from reground_jax.networks.clip import TextEncoding
from reground_jax.networks.clip_vision import image_features
from reground_jax.networks.transformer import plain_without_fusers, reads_grounding
from reground_jax.networks.unet import Prepared, UNet
from reground_jax.packing import Known
from reground_jax.sampling.attention_guidance.guide import Guide
from reground_jax.sampling.loop import (
    ADVANCE_SPECS,
    PREPARE_SPECS,
    PREPARED_SPECS,
    Inpaint,
    Inputs,
    Program,
    advance,
    prepare,
)
from reground_jax.sampling.noise import initial_noise
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.sampling.solvers.plan import Plan, State
from reground_jax.settings import Settings, Wiring, wiring_name

# Texts and reference images per device at once; fixed, so other numbers of them do not recompile.
TEXT_CHUNK, IMAGE_CHUNK = 8, 4

# Held on CPU while a program of `advance` runs, in the whole process. With a thread pool of 2 (two
# cores, or NPROC=2), jaxlib 0.10.2 computes some rows wrong when sessions in several threads run
# it: in 3 of 3 trials; in none of 3 with pools of 3 and of 8. Copied inputs, no donation and no
# asynchronous dispatch do not help; noise and `prepare` are right. Which operation it is, is not
# known.
_ONE_ON_CPU = threading.Lock()


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of one model, each compiled on first use and kept as long as this object.

    Every method that runs one takes `params`, the parameters of all networks, placed by
    `Hardware.place`, and arrays whose first axis is a multiple of the number of devices.
    """

    config: ModelConfig
    hardware: Hardware
    # By name and static arguments. None refers to this object, so they are freed with it.
    _compiled: dict[Any, Mapped] = field(default_factory=dict, init=False, repr=False)
    _ahead: set[Any] = field(default_factory=set, init=False, repr=False)  # of `compile_ahead`

    def latent_shape(self, settings: Settings = Settings()) -> tuple[int, int, int]:  # noqa: B008
        """(h, w, C) for the settings' size, or for the checkpoint's own. Raises ValueError."""
        factor, own = self.config.vae.downsampling, self.config.side
        height, width = settings.height or own, settings.width or own
        for name, size in (("height", height), ("width", width)):
            if size % factor:
                raise ValueError(f"{name} is {size}: it must be a multiple of {factor}")
        return height // factor, width // factor, self.config.vae.latent_channels

    def unet(self, params: Params) -> UNet:
        """The U-Net as a module, for a custom loop; also works under jit."""
        return nnx.merge(network(self.config, "unet")[0], params["unet"])

    def plan(self, settings: Settings) -> Plan:
        """The solver's rows for this model's noise schedule, on the host."""
        return SOLVERS[settings.solver].plan(
            self.config.schedule, settings.num_steps, eta=settings.eta
        )

    def encode(
        self,
        params: Params,
        texts: Texts,
        layouts: Sequence[Layout],
        *,
        settings: Settings = Settings(),  # noqa: B008
    ) -> Conditioning:
        """Texts, boxes and pictures as arrays on the host; each distinct one is encoded once.

        Reads only the size, `max_boxes` and the attention guidance from `settings`. What a layout
        has for another kind of model is ignored (see `layout_kinds.check_kind`), and what it lacks
        becomes null tokens. Raises ValueError for a layout that has too many boxes, for an empty
        list, for phrases that the guidance does not find, and for pictures that cannot be read.
        """
        height, width, _ = self.latent_shape(settings)
        factor, guidance = self.config.vae.downsampling, settings.attention_guidance
        vision, images = self.config.image_encoder, None
        if vision is not None:
            run = functools.partial(self.encode_images, params)
            images = ImageEncoder(vision.image_size, run)
        return encode(
            layouts, texts, functools.partial(self.encode_ids, params), self.config,
            max_boxes=settings.max_boxes, size=(height * factor, width * factor), images=images,
            missing=None if guidance is None else guidance.missing,
        )  # fmt: skip

    def encode_ids(self, params: Params, ids: Int[np.ndarray, "n S"]) -> TextEncoding:
        """Any number of texts, in fixed-size chunks: float32 on the host, [n, S, E] and [n, E]."""
        run = functools.partial(self.text_program(), params["text_encoder"])
        return TextEncoding(*self._in_chunks(run, ids, TEXT_CHUNK))  # type: ignore[arg-type]

    def encode_images(
        self, params: Params, pixels: Float32[np.ndarray, "n S S 3"]
    ) -> Float32[np.ndarray, "n E"]:
        """The features of reference images, in fixed-size chunks; float32, on the host."""
        own = {name: params[name] for name in ("image_encoder", "image_project")}
        run = functools.partial(self.image_program(), own)
        return self._in_chunks(lambda chunk: (run(chunk),), pixels, IMAGE_CHUNK)[0]

    def _in_chunks(
        self, run: Callable[[np.ndarray], Iterable[Array]], rows: np.ndarray, per_device: int
    ) -> list[np.ndarray]:
        """The results of a program for any number of rows; one shape, so one compilation."""
        chunk = per_device * len(self.hardware.devices)
        padded = np.resize(rows, (-(-len(rows) // chunk) * chunk, *rows.shape[1:]))
        parts = [run(padded[at : at + chunk]) for at in range(0, len(padded), chunk)]
        host = [[np.asarray(array, np.float32) for array in part] for part in parts]
        return [np.concatenate(arrays)[: len(rows)] for arrays in zip(*host, strict=True)]

    def prepare(
        self,
        params: Params,
        conditioning: Conditioning,
        timesteps: Float32[ArrayLike, "M"],
        *,
        wiring: Wiring | str = "parallel",
        guided: bool = True,
    ) -> Prepared:
        """Everything that is the same at every step; see `UNet.prepare`. `guided`: 2 B samples."""
        wiring = wiring_name(wiring)
        check_grounded(self.config, wiring)
        self.hardware.check_batch("conditioning", len(conditioning.text))
        run = self.prepare_program(wiring, guided)
        return run(params["unet"], conditioning._replace(words=None, known=None), timesteps)

    def start(
        self,
        plan: Plan,
        settings: Settings,
        seeds: UInt32[np.ndarray, "B"],
        *,
        latents: Float[ArrayLike, "B h w C"] | None = None,
    ) -> State:
        """The solver's initial state, from the seeds' noise or from unit normal `latents`."""
        self.hardware.check_batch("seeds", len(seeds))
        shape = self.latent_shape(settings) if latents is None else None
        begin = seeds if latents is None else jnp.asarray(latents, jnp.float32)
        guide = self._guide(settings)
        latched = guide is not None and guide.latched
        return self._start_program(settings.solver, shape, latched)(begin, plan)

    def advance(
        self,
        params: Params,
        state: State,
        prepared: Prepared,
        inputs: Inputs,
        grounded_steps: int,
        start: int,
        stop: int,
        *,
        settings: Settings,
    ) -> State:
        """`state` after steps start..stop-1; donates the memory of `state`. On CPU, waits for it.

        The steps before `grounded_steps` run with fusers, the others without, whatever their gates.
        Reads only the wiring, the solver and whether it adds noise from `settings`.
        """
        switch = np.clip(grounded_steps, start, stop) if reads_grounding(settings.wiring) else start
        for grounded, begin, end in ((True, start, switch), (False, switch, stop)):
            if begin < end:
                run = self.advance_program(settings, grounded)
                own = prepared.for_steps(grounded)
                args = params["unet"], state, own, inputs, np.int32(begin), np.int32(end)
                if self.hardware.on_cpu:
                    with _ONE_ON_CPU:
                        state = jax.block_until_ready(run(*args))
                else:
                    state = run(*args)
        return state

    def compile_ahead(
        self,
        params: Params,
        state: State,
        needs: Iterable[tuple[Prepared, bool]],
        inputs: Inputs,
        *,
        settings: Settings,
    ) -> None:
        """Compiles what `advance` will run: for each (prepared, with fusers).

        Side by side, but not on CPU, whose compiler uses all cores for one program already.
        """
        calls = {}
        for prepared, grounded in needs:
            grounded = grounded and reads_grounding(settings.wiring)
            own = prepared.for_steps(grounded)
            args = params["unet"], state, own, inputs, np.int32(0), np.int32(0)
            shapes = tuple(jax.typeof(leaf) for leaf in jax.tree.leaves((own, state, inputs)))
            key = _advance_key(settings, grounded, self._guide(settings))
            calls[key, shapes] = (grounded, args)
        calls = {key: call for key, call in calls.items() if key not in self._ahead}
        if calls:
            with ThreadPoolExecutor(1 if self.hardware.on_cpu else len(calls)) as pool:
                list(pool.map(
                    lambda call: self.advance_program(settings, call[0]).lower(*call[1]).compile(),
                    calls.values(),
                ))  # fmt: skip
        self._ahead.update(calls)

    def known_part(self, params: Params, known: Known) -> Inpaint:
        """What the sampling loop keeps of the sources: the mean of their latents."""
        self.hardware.check_batch("sources", len(known.mask))
        return Inpaint(self.known_program()(params["vae"], known.pixels), known.mask)  # type: ignore[arg-type]

    def decode(self, params: Params, latents: Float[Array, "B h w C"]) -> Float32[Array, "B H W 3"]:
        """Images in 0..1, clipped."""
        self.hardware.check_batch("latents", len(latents))
        return self.decode_program()(params["vae"], latents)

    # The jitted functions themselves, to lower, inspect or time.

    def prepare_program(self, wiring: Wiring, guided: bool) -> Mapped:
        """(U-Net's params, conditioning, timesteps) -> Prepared"""
        run = functools.partial(
            prepare, network(self.config, "unet")[0], wiring=wiring, guided=guided,
            dtype=jnp.dtype(self.hardware.dtype), downsampling=self.config.vae.downsampling,
            # One product of width 4C saves kernel launches on GPU. On CPU it is slower than 3C plus
            # C, and on TPU its result is cut inside a tile of 128 lanes, and copied.
            pack=self.hardware.devices[0].platform == "gpu",
        )  # fmt: skip
        return self._program(("prepare", wiring, guided), run, PREPARE_SPECS, PREPARED_SPECS)

    def advance_program(self, settings: Settings, grounded: bool = True) -> Mapped:
        """(U-Net's params, state, prepared, inputs, start, stop) -> State

        grounded: with fusers. Without them, `prepared.for_steps(False)` is the argument, and all
        wirings that read the text share one program.
        """
        key = _advance_key(settings, grounded, self._guide(settings))
        _, wiring, solver, grounded, stochastic, guide = key
        graph, _ = network(self.config, "unet")
        program = Program(
            graph, wiring, SOLVERS[solver], self.hardware.attend, grounded, stochastic, guide
        )
        run = functools.partial(advance, program)
        return self._program(key, run, ADVANCE_SPECS, SPLIT, donate=(1,))

    # The functions compiled here must not refer to `self`.

    def text_program(self) -> Mapped:
        graph, dtype = network(self.config, "text_encoder")[0], jnp.dtype(self.hardware.dtype)

        def encode(params, ids):
            return nnx.merge(graph, params)(ids, dtype=dtype)

        return self._program(("text",), encode, (WHOLE, SPLIT), SPLIT)

    def image_program(self) -> Mapped:
        """({image_encoder, image_project}, images) -> features, in float32"""
        encoder, project = (
            network(self.config, name)[0] for name in ("image_encoder", "image_project")
        )
        dtype = jnp.dtype(self.hardware.dtype)

        def features(params, images):
            embeds = nnx.merge(encoder, params["image_encoder"])(images, dtype=dtype)
            kernel = nnx.merge(project, params["image_project"]).kernel[...]
            return image_features(embeds, kernel)

        return self._program(("images",), features, (WHOLE, SPLIT), SPLIT)

    def known_program(self) -> Mapped:
        """(VAE's params, pixels) -> scaled latents, in float32"""
        graph, dtype = network(self.config, "vae")[0], self.hardware.dtype
        attend = self.hardware.attend

        def latents(params, pixels):
            vae = nnx.merge(graph, params)
            images = from_uint8(pixels).astype(dtype)
            return vae.encode_in_chunks(images, attend=attend).astype(jnp.float32)

        return self._program(("known",), latents, (WHOLE, SPLIT), SPLIT)

    def _start_program(
        self, solver: str, shape: tuple[int, int, int] | None, latched: bool
    ) -> Mapped:
        """From seeds or, without a `shape`, from unit normal latents."""
        init = SOLVERS[solver].init

        def start(seeds, plan):
            state = init(seeds if shape is None else initial_noise(seeds, shape), plan)
            if latched:
                state = state._replace(latched=jnp.full(len(seeds), jnp.inf, jnp.float32))
            return state

        return self._program(("start", solver, shape, latched), start, (SPLIT, WHOLE), SPLIT)

    def _guide(self, settings: Settings) -> Guide | None:
        method = settings.attention_guidance
        return None if method is None else Guide.of(method, self.config.unet)

    def decode_program(self) -> Mapped:
        graph, dtype, attend = (
            network(self.config, "vae")[0],
            self.hardware.dtype,
            self.hardware.attend,
        )

        def decode(params, latents):
            vae = nnx.merge(graph, params)
            images = vae.decode_in_chunks(latents.astype(dtype), attend=attend)
            return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)

        return self._program(("decode",), decode, (WHOLE, SPLIT), SPLIT)

    def _program(self, key, function, in_specs, out_specs, donate=()) -> Mapped:
        """`function` over the devices, compiled once per `key`."""
        if key not in self._compiled:
            self._compiled[key] = self.hardware.compiled(
                function, in_specs, out_specs, donate=donate
            )
        return self._compiled[key]


def _advance_key(
    settings: Settings, grounded: bool, guide: Guide | None
) -> tuple[str, Wiring, str, bool, bool, Guide | None]:
    """What a program of `advance` is compiled for."""
    wiring: Wiring = settings.wiring
    if not grounded and plain_without_fusers(wiring):
        wiring = "no_grounding"
    stochastic = SOLVERS[settings.solver].stochastic(settings.eta)
    return "advance", wiring, settings.solver, grounded, stochastic, guide


def check_grounded(config: ModelConfig, wiring: Wiring) -> None:
    """Raises ValueError if the wiring uses grounding but the model has no fusers."""
    if config.unet.grounding is None and reads_grounding(wiring):
        raise ValueError(
            "this is a plain Stable Diffusion checkpoint: it has no fusers, so boxes would be "
            "ignored; convert it with a GLIGEN adapter, or use wiring='no_grounding'"
        )
