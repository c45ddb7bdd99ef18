"""`Session`: one batch of images in progress, to run to a step, preview, finish or cancel.

A whole generation, a progress bar, a preview and a sweep run the same compiled program
over different stretches of the steps; the images are bit-identical however the steps are split.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Float32, UInt32

from reground_jax.conditioning import Conditioning
from reground_jax.model import Params
from reground_jax.networks.unet import Prepared
from reground_jax.packing import Known
from reground_jax.programs import Programs
from reground_jax.sampling.attention_guidance.guide import guidance_inputs
from reground_jax.sampling.loop import Inputs
from reground_jax.sampling.noise import FRESH, step_noise
from reground_jax.sampling.solvers.plan import Plan, State
from reground_jax.sampling.sweep import Schedule, branch
from reground_jax.settings import AMOUNTS, Settings, guided_steps

StepProgress = Callable[[int], None]  # (steps done so far)


class Canceled(RuntimeError):
    """The session was canceled, and its arrays were freed."""


class Session:
    """The state of a batch at a step, and what is needed to continue. See `Pipeline.session`.

        session = pipe.session(layouts, settings, seeds=[0, 1])
        while session.step < session.num_steps:
            session.run(session.step + 10)
            show(session.preview())
        images = pipe.decode(session.finish())

    B, the number of images, is a multiple of the number of devices. Without `progress`, nothing
    here waits for the device, except on CPU.
    """

    def __init__(
        self,
        programs: Programs,
        params: Params,
        conditioning: Conditioning,
        settings: Settings,
        seeds: UInt32[np.ndarray, "B"],
        *,
        latents: Float[ArrayLike, "B h w C"] | None = None,
    ):
        """Starts at step 0 from the seeds' noise, or from unit normal `latents`.

        Raises ValueError for a batch that the devices do not divide evenly, and for what the model
        does not support.
        """
        self.settings, self.num_steps, self.step = settings, settings.num_steps, 0
        self._programs, self._params, self._conditioning = programs, params, conditioning
        self._seeds = seeds
        self._plan = programs.plan(settings)
        self._schedule = Schedule.of(settings, programs.config.unet)
        self._with_both = guided_steps(settings.guidance_interval, self.num_steps)
        self._prepared: dict[bool, Prepared] = {}
        self._before: Array | None = None  # x, one step earlier
        self._canceled = threading.Event()
        self._state: State | None = programs.start(self._plan, settings, seeds, latents=latents)
        known = conditioning.known
        self._known = None if known is None else programs.known_part(params, known)
        self._guided, self._guidance_steps = guidance_inputs(
            settings.attention_guidance, conditioning.words, programs.config.unet,
            self._state.x.shape[1:3], self._plan,
        )  # fmt: skip

    def __repr__(self) -> str:
        state = "canceled" if self._state is None else f"step {self.step} of {self.num_steps}"
        return f"Session({len(self._seeds)} images, {state})"

    @property
    def latents(self) -> Float32[Array, "B h w C"]:
        """The current latents, noisy until the last step is done. Raises Canceled."""
        return self._live().x

    def run(self, stop: int | None = None, *, progress: StepProgress | None = None) -> "Session":
        """This session, run to the beginning of step `stop`; to the end by default.

        progress: called after every step; makes each step block. Raises ValueError if `stop` is
        behind the current step, and Canceled at the next step if another thread cancels.
        """
        self._live()
        stop = self.num_steps if stop is None else stop
        if not self.step <= stop <= self.num_steps:
            raise ValueError(
                f"stop is {stop}, but this session is at step {self.step} of {self.num_steps}: "
                "steps only go forward"
            )
        self._compile([self._schedule], range(self.step, stop))
        # A stretch of one step at the end, so `preview` has two adjacent points.
        looked_at = {stop - 1} if stop < self.num_steps else set()
        for start, end in self._stretches(self.step, stop, looked_at, each=progress is not None):
            state = self._live()
            before = jnp.copy(state.x) if end - start == 1 else None  # `_advance` reuses its memory
            self._state, self._before = self._advance(state, self._schedule, start, end), before
            self.step = end
            if progress is not None:
                jax.block_until_ready(self._state)
                progress(end)
            if self._canceled.is_set():  # by another thread, perhaps during this step
                self.cancel()
                raise Canceled(f"canceled after step {end} of {self.num_steps}")
        return self

    def finish(self, *, progress: StepProgress | None = None) -> Float32[Array, "B h w C"]:
        """The latents after the last step; for inpainting, with the known part as it was."""
        return self._with_known(self.run(progress=progress).latents)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float32[Array, "B H W 3"]:
        """Images in 0..1, clipped; with `Settings.paste`, the sources outside the boxes."""
        images, known = self._programs.decode(self._params, latents), self._conditioning.known
        return paste(images, known) if known is not None and self.settings.paste else images

    def _with_known(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        known = self._known
        return x if known is None else jnp.where(known.mask > 0, known.latents, x)

    def preview(self) -> Float32[Array, "B H W 3"]:
        """What the images would become, in 0..1, if the model's last prediction were right.

        Needs no U-Net evaluation: two adjacent points x = alpha x_0 + sigma epsilon on the
        trajectory determine the x_0 that the step between them was heading for, once the noise
        that it added is drawn again and subtracted. Raises ValueError at step 0.
        """
        x = self._live().x
        if self.step == 0:
            raise ValueError("there is nothing to preview before the first step: run(1) first")
        if self.step < self.num_steps:
            assert self._before is not None  # `run` ends with a stretch of one step
            here, earlier = self._row(self.step), self._row(self.step - 1)
            if earlier.fresh:
                noise = step_noise(self._seeds, x.shape[1:], FRESH, self.step - 1)
                x = x - earlier.fresh * noise
            # Of the epsilon that is left. DDIM may not quite go to the next time step: at least 0.
            sigma = np.sqrt(np.maximum(here.sigma**2 - earlier.fresh**2, 0))
            scale = here.alpha * earlier.sigma - earlier.alpha * sigma
            x = (x * earlier.sigma - self._before * sigma) / scale
        return self.decode(self._with_known(x))

    def cancel(self) -> None:
        """Frees the arrays. Another thread may call this while `run` reports progress."""
        self._canceled.set()
        self._state = self._before = None
        self._prepared.clear()

    def sweep(
        self, variants: Sequence[Settings], *, progress: StepProgress | None = None
    ) -> list[Float32[Array, "B h w C"]]:
        """The final latents under each of `variants`: settings that differ in nothing but gamma
        and the amounts of the wiring `coupled`.

        Steps shared by several of them run only once. The session itself stays at step 0. Raises
        ValueError if it is at a later step, or if a variant differs in more.
        """
        state = self._live()
        if self.step:
            raise ValueError(f"this session is at step {self.step}: start a new one to sweep")
        schedules = [self._variant(variant) for variant in variants]
        self._compile(schedules, range(self.num_steps))
        counted = itertools.count(1)

        def advance(state: State, schedule: Schedule, start: int, stop: int) -> State:
            for begin, end in self._stretches(start, stop, set(), each=progress is not None):
                state = self._advance(state, schedule, begin, end)
                if progress is not None:
                    jax.block_until_ready(state)
                    progress(next(counted))
                self._live()
            return state

        start = jax.tree.map(jnp.copy, state)
        return [self._with_known(final.x) for final in branch(start, schedules, advance)]

    def _variant(self, settings: Settings) -> Schedule:
        if other := self.settings.diff(settings).keys() - {"gamma", *AMOUNTS}:
            raise ValueError(
                f"a variant has another {', '.join(sorted(other))}: a sweep varies only gamma, "
                f"{', '.join(AMOUNTS)}"
            )
        return Schedule.of(settings, self._programs.config.unet)

    def _stretches(
        self, start: int, stop: int, cuts: set[int], *, each: bool
    ) -> Iterator[tuple[int, int]]:
        """Steps start..stop-1 in stretches that run one program each, or step by step."""
        ends = {self._with_both.start, self._with_both.stop}
        cuts = set(range(start, stop)) if each else cuts | ends
        inner = [cut for cut in sorted(cuts) if start < cut < stop]
        return itertools.pairwise([start, *inner, stop] if start < stop else [])

    def _compile(self, schedules: Sequence[Schedule], steps: range) -> None:
        """Compiles what these steps need under any of the schedules."""
        grounded = {schedule.grounded_steps for schedule in schedules}
        needs = {(self._is_guided(step), step < count) for step in steps for count in grounded}
        self._programs.compile_ahead(
            self._params, self._live(), [(self._context(guided), on) for guided, on in needs],
            self._inputs(schedules[0]), settings=self.settings,
        )  # fmt: skip

    def _inputs(self, schedule: Schedule) -> Inputs:
        scale = np.float32(self.settings.guidance_scale)
        return Inputs(
            self._plan, schedule.gates, scale, self._seeds,  # type: ignore[arg-type]
            inpaint=self._known, guided=self._guided, guidance_steps=self._guidance_steps,
            amounts=schedule.amounts,  # type: ignore[arg-type]
        )  # fmt: skip

    def _is_guided(self, step: int) -> bool:
        return self.settings.guidance_scale != 1 and step in self._with_both

    def _advance(self, state: State, schedule: Schedule, start: int, stop: int) -> State:
        """`state` after one stretch of a schedule; donates the memory of `state`."""
        return self._programs.advance(
            self._params, state, self._context(self._is_guided(start)), self._inputs(schedule),
            schedule.grounded_steps, start, stop, settings=self.settings,
        )  # fmt: skip

    def _context(self, guided: bool) -> Prepared:
        """What is the same at every step, with or without the unconditional branch."""
        if guided not in self._prepared:
            self._prepared[guided] = self._programs.prepare(
                self._params, self._conditioning, self._plan.timesteps,
                wiring=self.settings.wiring, guided=guided,
            )  # fmt: skip
        return self._prepared[guided]

    def _row(self, step: int) -> Plan:
        """The plan at the beginning of a step."""
        plan = self._plan
        (row,) = np.flatnonzero((np.asarray(plan.step) == step) & np.asarray(plan.first))
        return plan.row(int(row))

    def _live(self) -> State:
        if self._state is None:
            raise Canceled("this session was canceled: start a new one")
        return self._state


def paste(images: Float[Array, "B H W 3"], known: Known) -> Float[Array, "B H W 3"]:
    """`images` in 0..1 inside the boxes, their sources elsewhere."""
    factor = images.shape[1] // known.mask.shape[1]
    mask = jnp.repeat(jnp.repeat(jnp.asarray(known.mask), factor, 1), factor, 2) > 0
    return jnp.where(mask, jnp.asarray(known.pixels, jnp.float32) / 255, images)
