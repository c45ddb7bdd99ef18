"""`Hardware`: the devices that programs run on, and how; chosen once and checked immediately."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
from jaxtyping import Array

from reground_jax.basics.fields import check_name
from reground_jax.devices import (
    MAPPERS,
    Device,
    Mapped,
    Mapper,
    choose_devices,
    compute_capability,
    over_devices,
    place_whole,
)
from reground_jax.networks.attention import Backend, attention_for, check_backend
from reground_jax.settings import dtype_name


@dataclass(frozen=True)
class Hardware:
    """Created by `choose`, which checks its arguments."""

    devices: tuple[Device, ...]
    dtype: str  # of parameters and arithmetic
    attention: Backend | str | None  # None: chosen by platform, dtype and shape
    mapper: Mapper

    @classmethod
    def choose(
        cls,
        devices: Sequence[Device] | None = None,
        *,
        dtype: Any = "float32",
        attention: Backend | str | None = None,
        mapper: Mapper | str = "shard_map",
    ) -> "Hardware":
        """Raises ValueError for what does not exist or cannot run on `devices`.

        devices: by default, all of this process's devices on the default platform. dtype: "float32"
        or "bfloat16", or jnp.bfloat16 and the like. mapper: `jax.shard_map` or `jax.pmap`.
        """
        check_name("mapper", mapper, MAPPERS)
        name, chosen = dtype_name(dtype), choose_devices(devices)
        check_backend(attention, chosen[0].platform)
        return cls(chosen, name, attention, cast(Mapper, mapper))

    def place(self, array: Any) -> jax.Array:
        """`array` on every device in `dtype`; returned as is if it is already there in `dtype`."""
        return place_whole(array.astype(self.dtype), self.devices)

    @property
    def on_cpu(self) -> bool:
        return self.devices[0].platform == "cpu"

    @property
    def attend(self) -> Callable[..., Array]:
        """The attention function of this platform."""
        device = self.devices[0]
        return attention_for(device.platform, self.attention, compute_capability(device))

    def compiled(
        self, function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any, *, donate=()
    ) -> Mapped:
        """`function` over the devices; see `devices.over_devices`."""
        return over_devices(
            function, in_specs, out_specs, devices=self.devices, mapper=self.mapper, donate=donate
        )

    def check_batch(self, what: str, count: int) -> None:
        """Raises ValueError unless `count` images divide evenly among the devices."""
        devices = len(self.devices)
        if count % devices or not count:
            raise ValueError(
                f"{what} of {count} images on {devices} devices: pad to a multiple of {devices}, "
                "as a pipeline call does"
            )
