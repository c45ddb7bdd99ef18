"""`Pipeline`: a model on devices, and the way from layouts to images. Host side only.

Layout -> encode -> Conditioning -> prepare -> Prepared -> advance -> State -> decode -> images.
Each arrow is a method here around one compiled program; nothing flows back.
"""

import dataclasses
import functools
import inspect
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Float32, UInt32
from PIL import Image

from reground_jax.conditioning import Conditioning, Texts, assemble, distinct_texts
from reground_jax.config import ModelConfig
from reground_jax.devices import (
    MAPPERS,
    SPLIT,
    WHOLE,
    Device,
    Mapper,
    choose_devices,
    over_devices,
    place_whole,
)
from reground_jax.hints import refuse_keywords
from reground_jax.images import to_uint8
from reground_jax.layout import Layout, check_max_boxes
from reground_jax.model import Model, Params, network, nonfinite_arrays, read_model
from reground_jax.networks.attention import Backend, attention_for, check_backend
from reground_jax.networks.transformer import reads_grounding
from reground_jax.networks.unet import Prepared, UNet
from reground_jax.sampling.gate import gate_table, grounded_steps
from reground_jax.sampling.loop import (
    INPUT_SPECS,
    PREPARED_SPECS,
    Inputs,
    Program,
    advance,
    prepare,
)
from reground_jax.sampling.noise import check_seeds, initial_noise
from reground_jax.sampling.solvers import SOLVERS
from reground_jax.sampling.solvers.plan import Plan, State
from reground_jax.sampling.sweep import branch
from reground_jax.settings import (
    Settings,
    Wiring,
    check_name,
    dtype_name,
    guided_steps,
    wiring_name,
)
from reground_jax.wording import shown

Output = Literal["pil", "numpy", "latents"]
OUTPUTS: tuple[Output, ...] = ("pil", "numpy", "latents")
TEXT_CHUNK = 8  # texts encoded at once, so that another number of them does not compile
DEFAULT_BATCH = 8  # images per device, at most, where batch_size is not given

Progress = Callable[[int, int, int], None]  # (batch, number of batches, steps done in it)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A model placed on devices. `Pipeline.load` makes one; calling it makes images."""

    config: ModelConfig
    params: Params  # on every device of `devices`, in `dtype`
    texts: Texts
    dtype: str
    devices: tuple[Device, ...]
    attention: Backend | str | None  # None: chosen by platform, dtype and shape
    info: dict[str, Any]  # facts about the checkpoint: source, checksum, sizes
    name: str = "model"  # what it was loaded as
    # The compiled programs, each made once per set of static arguments. None of them refers to the
    # pipeline, so they, and its arrays, are freed with it.
    _programs: dict[Any, Callable[..., Any]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: str = "float32",
        devices: Sequence[Device] | None = None,
        attention: Backend | str | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> "Pipeline":
        """A pipeline from a model directory, a diffusers folder or a Hub id, tried in this order.

        Diffusers folders and Hub ids are converted once, into the folder `cache`, by default
        $XDG_CACHE_HOME/reground-jax, or else ~/.cache/reground-jax. (Compiled programs are kept
        where JAX's own `jax_compilation_cache_dir` says.) dtype: "float32" or "bfloat16" (or
        jnp.bfloat16 and the like), of the parameters and the arithmetic. devices: by default all of
        the default platform that this process has; with several hosts, each process makes images
        of its own.
        Raises ValueError or OSError with a sentence that says what is wrong with `name`.
        """
        dtype, chosen = dtype_name(dtype), choose_devices(devices)
        check_backend(attention, chosen[0].platform)
        from reground_jax.convert.locate import model_directory  # reads files in many forms

        directory = model_directory(name, cache=cache)

        def place(array: np.ndarray) -> jax.Array:
            return place_whole(array.astype(dtype), chosen)

        return cls.from_model(
            read_model(directory, place=place), dtype=dtype, devices=chosen, attention=attention,
            name=str(name),
        )  # fmt: skip

    @classmethod
    def from_model(
        cls,
        model: Model,
        *,
        dtype: str = "float32",
        devices: Sequence[Device] | None = None,
        attention: Backend | str | None = None,
        name: str = "model",
    ) -> "Pipeline":
        """A pipeline from a model in memory, whose arrays are cast to `dtype` and placed.

        Arrays that are on the devices in `dtype` already are taken as they are. name: for `repr`.
        """
        dtype, chosen = dtype_name(dtype), choose_devices(devices)
        check_backend(attention, chosen[0].platform)
        params = jax.tree.map(lambda a: place_whole(a.astype(dtype), chosen), model.params)
        return cls(
            config=model.config,
            params=params,
            texts=Texts(model.tokenizer_json, model.config.text_encoder.tokenizer),
            dtype=dtype,
            devices=chosen,
            attention=attention,
            info=model.info,
            name=name,
        )

    def __repr__(self) -> str:
        side = self.config.unet.sample_size * self.config.vae.downsampling
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params)) / 1e6
        what = f"{self.name}, {side}x{side}, {count:.2f} M parameters, {self.dtype}"
        return f"Pipeline({what}, {len(self.devices)} x {self.devices[0].platform})"

    def __copy__(self) -> "Pipeline":
        return self  # nothing in it changes

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pipeline":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Pipeline holds arrays and programs of this process's devices and cannot be pickled: "
            "give other processes the name, and load it there with Pipeline.load(name)"
        )

    def __call__(
        self,
        layouts: Sequence[Layout] | Layout,
        *,
        wiring: Wiring | str = "parallel",
        gamma: float | Sequence[float] = 1.0,
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        solver: str = "plms",
        seeds: Sequence[int] | int | None = None,
        height: int | None = None,
        width: int | None = None,
        latents: Float[np.ndarray | Array, "B h w C"] | None = None,
        output: Output | str = "pil",
        eta: float = 0.0,
        max_boxes: int = 30,
        batch_size: int | None = None,
        mapper: Mapper | str = "shard_map",
        progress: Progress | None = None,
        **unknown: Any,
    ) -> Any:
        """One image per layout.

        gamma: fraction of the first steps with grounding on, or GLIGEN's (on, decay, off).
        guidance_scale: 1 skips the unconditional half. guidance_interval: approximate where it is
        not (0, 1); guidance in this part of the steps only.
        seeds: one per image, 0..2**32-1; by default 0, 1, 2, ... An int will do for one layout.
        latents: unit normal start [B, h, w, C] float32, instead of the seeds' own.
        output: "pil", "numpy" ([B, H, W, 3] float32 in 0..1) or "latents" ([B, h, w, C] float32).
        max_boxes: grounding tokens per image; other than the trained 30 changes the image.
        batch_size: images per device at a time; lists of any length are padded to it, so that
        another length compiles nothing. progress: called after every step.
        Raises ValueError, before anything is compiled, for whatever cannot be done, and TypeError
        for a keyword that is none; both say what to write instead. An image of NaN or infinity
        (the arithmetic overflowed) is a ValueError for "pil" and a warning for arrays.
        """
        refuse_keywords("a pipeline", unknown, CALL_KEYWORDS)
        settings = self.settings(
            wiring=wiring, gamma=gamma, num_steps=num_steps, guidance_scale=guidance_scale,
            guidance_interval=guidance_interval, solver=solver, eta=eta, height=height, width=width,
            max_boxes=max_boxes,
        )  # fmt: skip
        (images,) = self._generate(
            layouts, settings, [settings.gamma], seeds=seeds, latents=latents, output=output,
            batch_size=batch_size, mapper=mapper, progress=progress,
        )  # fmt: skip
        return images

    def sweep(
        self,
        layouts: Sequence[Layout] | Layout,
        *,
        gammas: Sequence[float | Sequence[float]],
        seeds: Sequence[int] | int | None = None,
        latents: Float[np.ndarray | Array, "B h w C"] | None = None,
        output: Output | str = "pil",
        batch_size: int | None = None,
        mapper: Mapper | str = "shard_map",
        progress: Progress | None = None,
        **settings: Any,
    ) -> dict[Any, Any]:
        """What a call gives at each of `gammas`, by gamma; the keywords are those of a call.

        Steps that several gammas have in common are run once: 0, 0.1 .. 1 take 6.5 times the steps
        of one run, not 11. progress: counts the steps that are really run (`sweep.num_steps`).
        """
        if "gamma" in settings:
            raise TypeError("sweep has no argument 'gamma': it takes a list of them, gammas=[...]")
        refuse_keywords("sweep", settings, CALL_KEYWORDS)
        if isinstance(gammas, (int, float)):
            raise ValueError(f"gammas is {gammas}: give a list of them, gammas=[{gammas}]")
        base = self.settings(**settings)
        chosen = [dataclasses.replace(base, gamma=gamma).gamma for gamma in gammas]  # checked
        if not chosen:
            raise ValueError("gammas is empty: give at least one gamma to sweep over")
        images = self._generate(
            layouts, base, chosen, seeds=seeds, latents=latents, output=output,
            batch_size=batch_size, mapper=mapper, progress=progress,
        )  # fmt: skip
        return dict(zip(chosen, images, strict=True))

    def settings(self, **fields: Any) -> Settings:
        """Settings in this pipeline's dtype. Raises ValueError, or TypeError for another field."""
        refuse_keywords("settings", fields, SETTINGS_FIELDS)
        return Settings(dtype=self.dtype, **fields)

    def _generate(
        self,
        layouts: Sequence[Layout] | Layout,
        settings: Settings,
        gammas: Sequence[Any],
        *,
        seeds: Sequence[int] | int | None,
        latents: Float[np.ndarray | Array, "B h w C"] | None,
        output: Output | str,
        batch_size: int | None,
        mapper: Mapper | str,
        progress: Progress | None,
    ) -> list[Any]:
        """One result of `__call__` per gamma; `settings.gamma` is not read."""
        layouts = check_layouts(layouts)
        check_name("output", output, OUTPUTS)
        check_name("mapper", mapper, MAPPERS)
        mapper = cast(Mapper, mapper)
        if len(layouts) == 1 and np.ndim(seeds) == 0 and seeds is not None:  # type: ignore[arg-type]
            seeds = [seeds]  # type: ignore[list-item]
        chosen_seeds = check_seeds(range(len(layouts)) if seeds is None else seeds)  # type: ignore[arg-type]
        shape = self.latent_shape(settings)
        self.check(layouts, settings, chosen_seeds, latents, shape, batch_size)
        if not layouts:
            factor = self.config.vae.downsampling
            size = shape if output == "latents" else (shape[0] * factor, shape[1] * factor, 3)
            return [[] if output == "pil" else np.zeros((0, *size), np.float32) for _ in gammas]

        count = len(self.devices)
        if batch_size is None:
            batch_size = min(DEFAULT_BATCH, -(-len(layouts) // count))
        batch = batch_size * count
        starts = range(0, len(layouts), batch)
        results: list[list[np.ndarray]] = [[] for _ in gammas]
        for index, start in enumerate(starts):
            rows = [min(row, len(layouts) - 1) for row in range(start, start + batch)]
            real = min(batch, len(layouts) - start)
            finals = self.sample_sweep(
                self.encode([layouts[row] for row in rows], max_boxes=settings.max_boxes),
                settings,
                gammas,
                chosen_seeds[rows],
                latents=None if latents is None else jnp.asarray(latents)[np.array(rows)],
                shape=shape,
                mapper=mapper,
                progress=progress and functools.partial(progress, index, len(starts)),
            )
            for result, final in zip(results, finals, strict=True):
                made = final if output == "latents" else self.decode(final, mapper=mapper)
                result.append(np.asarray(made)[:real])
                self._check_finite(result[-1], start, settings, output)
        images = [np.concatenate(result) for result in results]
        if output != "pil":
            return images
        return [
            [Image.fromarray(image) for image in to_uint8(array, value_range="0..1")]
            for array in images
        ]

    def check(
        self,
        layouts: Sequence[Layout],
        settings: Settings,
        seeds: np.ndarray,
        latents: Any,
        shape: tuple[int, int, int],
        batch_size: int | None,
    ) -> None:
        """Raises ValueError for whatever this model cannot do with these arguments."""
        if self.config.unet.inpainting:
            raise ValueError(
                "this is an inpainting checkpoint (9-channel U-Net), which needs an image to fill: "
                "use a text-box generation checkpoint, or reground_jax.sampling.loop.advance with "
                "Inpaint(latents, mask, noise)"
            )
        self._check_grounded(settings.wiring)
        if len(seeds) != len(layouts):
            raise ValueError(f"{len(seeds)} seeds for {len(layouts)} layouts: give one per layout")
        if batch_size is not None and not (type(batch_size) is int and batch_size >= 1):
            raise ValueError(
                f"batch_size is {batch_size!r}: it counts images per device, a whole number from 1"
            )
        expected = (len(layouts), *shape)
        if latents is not None and tuple(np.shape(latents)) != expected:
            raise ValueError(
                f"latents have shape {tuple(np.shape(latents))}, expected [B, h, w, C] = {expected}"
            )
        if latents is not None and not np.isfinite(np.asarray(latents, np.float32)).all():
            raise ValueError("latents hold NaN or infinity: give unit normal noise")
        for layout in layouts:
            check_max_boxes(layout, settings.max_boxes)

    def latent_shape(self, settings: Settings = Settings()) -> tuple[int, int, int]:  # noqa: B008
        """(h, w, C) for the settings' size, or for the checkpoint's own."""
        factor = self.config.vae.downsampling
        own = self.config.unet.sample_size * factor
        height, width = settings.height or own, settings.width or own
        for name, size in (("height", height), ("width", width)):
            if size % factor:
                raise ValueError(f"{name} is {size}: it must be a multiple of {factor}")
        return height // factor, width // factor, self.config.vae.latent_channels

    # The arrows, one by one: public, for loops of one's own.

    def encode(self, layouts: Sequence[Layout], *, max_boxes: int = 30) -> Conditioning:
        """Texts and boxes as arrays on the host; each distinct text is encoded once.

        Raises ValueError for a layout of more than `max_boxes` boxes, and for an empty list.
        """
        layouts = check_layouts(layouts)
        if not layouts:
            raise ValueError("there are no layouts to encode: give at least one")
        for layout in layouts:
            check_max_boxes(layout, max_boxes)
        texts = distinct_texts(layouts)
        ids = self.texts.ids(texts)
        chunk = TEXT_CHUNK * len(self.devices)
        padded = np.resize(ids, (-(-len(ids) // chunk) * chunk, ids.shape[1]))
        hidden, pooled = [], []
        for start in range(0, len(padded), chunk):
            encoding = self._text_program()(
                self.params["text_encoder"], padded[start : start + chunk]
            )
            hidden.append(np.asarray(encoding.hidden, np.float32))
            pooled.append(np.asarray(encoding.pooled, np.float32))
        return assemble(
            layouts,
            dict(zip(texts, np.concatenate(hidden), strict=False)),
            dict(zip(texts, np.concatenate(pooled), strict=False)),
            max_boxes=max_boxes,
        )

    def prepare(
        self,
        conditioning: Conditioning,
        timesteps: Float32[ArrayLike, "M"],
        *,
        wiring: Wiring = "parallel",
        guided: bool = True,
        mapper: Mapper = "shard_map",
    ) -> Prepared:
        """Everything that no step changes; see `UNet.prepare`. `guided` doubles the batch.

        B must be a multiple of the number of devices. Raises ValueError.
        """
        wiring = wiring_name(wiring)
        self._check_grounded(wiring)
        self._check_batch("conditioning", len(conditioning.text))
        program = self._prepare_program(wiring, guided, mapper)
        return program(self.params["unet"], conditioning, timesteps)

    def plan(self, settings: Settings) -> Plan:
        """The solver's rows for this model's noise schedule."""
        return SOLVERS[settings.solver].plan(
            self.config.schedule, settings.num_steps, eta=settings.eta
        )

    def start(
        self,
        plan: Plan,
        settings: Settings,
        seeds: UInt32[np.ndarray, "B"],
        *,
        latents: Float[Array, "B h w C"] | None = None,
        shape: tuple[int, int, int] | None = None,
        mapper: Mapper = "shard_map",
    ) -> State:
        """The solver's state at the seeds' noise, or at unit normal `latents`.

        B must be a multiple of the number of devices. Raises ValueError.
        """
        self._check_batch("seeds", len(seeds))
        program = self._start_program(settings.solver, shape or self.latent_shape(settings), mapper)
        if latents is None:
            return program(seeds, plan)
        return self._restart_program(settings.solver, mapper)(
            jnp.asarray(latents, jnp.float32), plan
        )

    def advance(
        self,
        state: State,
        prepared: Prepared,
        inputs: Inputs,
        grounded_steps: int,
        start: int,
        stop: int,
        *,
        settings: Settings,
        mapper: Mapper = "shard_map",
    ) -> State:
        """`state` after the steps start..stop-1; takes over the memory of `state`."""
        check_name("mapper", mapper, MAPPERS)
        program = self._advance_program(settings.wiring, settings.solver, settings.eta > 0, mapper)
        bounds = (np.int32(value) for value in (grounded_steps, start, stop))
        return program(self.params["unet"], state, prepared, inputs, *bounds)

    def sample(
        self,
        conditioning: Conditioning,
        settings: Settings,
        seeds: UInt32[np.ndarray, "B"],
        *,
        latents: Float[Array, "B h w C"] | None = None,
        shape: tuple[int, int, int] | None = None,
        mapper: Mapper = "shard_map",
        progress: Callable[[int], None] | None = None,
    ) -> Float32[Array, "B h w C"]:
        """Latents of one batch. With `progress` the program runs in segments of a step each."""
        (final,) = self.sample_sweep(
            conditioning, settings, [settings.gamma], seeds,
            latents=latents, shape=shape, mapper=mapper, progress=progress,
        )  # fmt: skip
        return final

    def sample_sweep(
        self,
        conditioning: Conditioning,
        settings: Settings,
        gammas: Sequence[Any],
        seeds: UInt32[np.ndarray, "B"],
        *,
        latents: Float[Array, "B h w C"] | None = None,
        shape: tuple[int, int, int] | None = None,
        mapper: Mapper = "shard_map",
        progress: Callable[[int], None] | None = None,
    ) -> list[Float32[Array, "B h w C"]]:
        """`sample` at each of `gammas` instead of the settings' own; shared steps are run once."""
        plan = self.plan(settings)
        scale = np.float32(settings.guidance_scale)
        guided = guided_steps(settings.guidance_interval, settings.num_steps)
        done = 0

        @functools.cache
        def prepared(guided: bool) -> Prepared:
            return self.prepare(
                conditioning, plan.timesteps, wiring=settings.wiring, guided=guided, mapper=mapper
            )

        def advance(state: State, gates: np.ndarray, start: int, stop: int) -> State:
            nonlocal done
            inputs = Inputs(plan, gates, scale, seeds)  # type: ignore[arg-type]
            cuts = {guided.start, guided.stop} if progress is None else range(stop)
            ends = [cut for cut in sorted(cuts) if start < cut < stop]
            for step, after in itertools.pairwise([start, *ends, stop]):
                both = settings.guidance_scale != 1 and step in guided
                state = self.advance(
                    state, prepared(both), inputs, grounded_steps(gates), step, after,
                    settings=settings, mapper=mapper,
                )  # fmt: skip
                if progress is not None:
                    jax.block_until_ready(state)
                    done += 1
                    progress(done)
            return state

        state = self.start(plan, settings, seeds, latents=latents, shape=shape, mapper=mapper)
        tables = np.stack([gate_table(gamma, settings.num_steps) for gamma in gammas])
        return [final.x for final in branch(state, tables, advance)]

    def decode(
        self, latents: Float[Array, "B h w C"], *, mapper: Mapper = "shard_map"
    ) -> Float32[Array, "B H W 3"]:
        """Images in 0..1, clipped. Raises ValueError unless B is a multiple of the devices."""
        self._check_batch("latents", len(latents))
        return self._decode_program(mapper)(self.params["vae"], latents)

    @property
    def attend(self) -> Callable[..., Array]:
        """The attention function that this pipeline's programs use."""
        return attention_for(self.devices[0].platform, self.attention)

    def unet(self) -> UNet:
        """The U-Net as a module, for loops of one's own."""
        return nnx.merge(network(self.config, "unet")[0], self.params["unet"])

    def _check_grounded(self, wiring: Wiring) -> None:
        if self.config.unet.grounding is None and reads_grounding(wiring):
            raise ValueError(
                "this is a plain Stable Diffusion checkpoint: it has no fusers, so boxes would be "
                "ignored; convert it with a GLIGEN adapter, or use wiring='no_grounding'"
            )

    def _check_batch(self, what: str, count: int) -> None:
        devices = len(self.devices)
        if count % devices or not count:
            raise ValueError(
                f"{what} of {count} images on {devices} devices: pad to a multiple of {devices}, "
                "as a call of the pipeline does"
            )

    def _check_finite(
        self, made: Float[np.ndarray, "B H W C"], first: int, settings: Settings, output: str
    ) -> None:
        """Raise ValueError, or warn where arrays are asked for, of NaN or infinity in an image."""
        finite = np.isfinite(made).all(axis=(1, 2, 3))
        if finite.all():
            return
        if broken := nonfinite_arrays(self.params):
            why = (
                f"the model's array {broken[0]} does, too: convert it again from a sound checkpoint"
            )
        elif self.dtype != "float32":
            why = f"the arithmetic overflowed in {self.dtype}; try dtype='float32'"
        else:
            why = f"the arithmetic overflowed; lower guidance_scale ({settings.guidance_scale:g})"
        message = f"image {first + int(np.argmin(finite)) + 1} holds NaN or infinity: {why}"
        if output == "pil":
            raise ValueError(message)
        warnings.warn(message, stacklevel=5)

    # The compiled programs. What they run must not refer to `self`.

    def _program(
        self, key: tuple[Any, ...], function, in_specs, out_specs, mapper, donate=()
    ) -> Callable[..., Any]:
        """`function` over this pipeline's devices, compiled once per `key`."""
        if key not in self._programs:
            self._programs[key] = over_devices(
                function, in_specs, out_specs, devices=self.devices, mapper=mapper, donate=donate
            )
        return self._programs[key]

    def _text_program(self):
        graph, dtype = network(self.config, "text_encoder")[0], jnp.dtype(self.dtype)

        def encode(params, ids):
            return nnx.merge(graph, params)(ids, dtype=dtype)

        return self._program(("text",), encode, (WHOLE, SPLIT), SPLIT, "shard_map")

    def _prepare_program(self, wiring: Wiring, guided: bool, mapper: Mapper):
        run = functools.partial(
            prepare, network(self.config, "unet")[0], wiring=wiring, guided=guided,
            dtype=jnp.dtype(self.dtype),
            # A product of width 4C saves launches; on CPU it is slower than one of 3C and one of C.
            pack=self.devices[0].platform != "cpu",
        )  # fmt: skip
        key = ("prepare", wiring, guided, mapper)
        return self._program(key, run, (WHOLE, SPLIT, WHOLE), PREPARED_SPECS, mapper)

    def _start_program(self, solver: str, shape: tuple[int, int, int], mapper: Mapper):
        def start(seeds, plan):
            return SOLVERS[solver].init(initial_noise(seeds, shape), plan)

        return self._program(("start", solver, shape, mapper), start, (SPLIT, WHOLE), SPLIT, mapper)

    def _restart_program(self, solver: str, mapper: Mapper):
        init = SOLVERS[solver].init
        return self._program(("restart", solver, mapper), init, (SPLIT, WHOLE), SPLIT, mapper)

    def _advance_program(self, wiring: Wiring, solver: str, stochastic: bool, mapper: Mapper):
        graph, _ = network(self.config, "unet")
        program = Program(graph, wiring, SOLVERS[solver], self.attend, stochastic)
        specs = (WHOLE, SPLIT, PREPARED_SPECS, INPUT_SPECS, WHOLE, WHOLE, WHOLE)
        run = functools.partial(advance, program)
        key = ("advance", wiring, solver, stochastic, mapper)
        return self._program(key, run, specs, SPLIT, mapper, donate=(1,))

    def _decode_program(self, mapper: Mapper):
        graph, dtype, attend = network(self.config, "vae")[0], self.dtype, self.attend

        def decode(params, latents):
            vae = nnx.merge(graph, params)
            images = vae.decode_in_chunks(latents.astype(dtype), attend=attend)
            return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)

        return self._program(("decode", mapper), decode, (WHOLE, SPLIT), SPLIT, mapper)


CALL_KEYWORDS = tuple(
    name
    for name, parameter in inspect.signature(Pipeline.__call__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)
SETTINGS_FIELDS = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "dtype")


def check_layouts(layouts: Any) -> list[Layout]:
    """A list of layouts, from a list or a single one. Raises ValueError for anything else."""
    if isinstance(layouts, Layout):
        return [layouts]
    if isinstance(layouts, (str, dict)) or not hasattr(layouts, "__iter__"):
        raise ValueError(f"layouts is {shown(layouts)}: {_way_out(layouts)}")
    given = list(layouts)
    for number, layout in enumerate(given, 1):
        if not isinstance(layout, Layout):
            raise ValueError(f"layout {number} is {shown(layout)}: {_way_out(layout)}")
    return given


def _way_out(value: Any) -> str:
    if isinstance(value, str):
        return "give a Layout(prompt, phrases, boxes); for a prompt alone, Layout(prompt)"
    if isinstance(value, dict):
        return "give a Layout, as Layout.from_json makes of such a dict"
    return "give a Layout(prompt, phrases, boxes), or a list of them"
