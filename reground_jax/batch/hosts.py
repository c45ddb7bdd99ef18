"""Which share of a run this process makes: an index and a count, from options or the environment.

Hosts share only the output and need no coordinator. `jax.distributed` is started only on TPU, where
the hosts of a slice must start together, or if a coordinator is given.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Share:
    """Share `index` of `count`: the units whose number is `index` modulo `count`."""

    index: int
    count: int
    origin: str  # where index and count come from

    def of(self, units: Iterable[int]) -> list[int]:
        return [unit for unit in units if unit % self.count == self.index]


# Environments that number their processes: name, index, count. A SLURM_PROCID without a step
# belongs to a batch script, which runs alone.
ENVIRONMENTS = (
    ("SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("Kubernetes", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
)


# Variables that list the hosts of a TPU slice, separated by commas, in the order that JAX reads.
SLICE_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def find_share(index: int | None, count: int | None, environment: Mapping[str, str]) -> Share:
    """The share of this process, from options or its environment (`os.environ`).

    Raises ValueError if the index or the count is missing or out of range.

    Kubernetes gives the pods of an Indexed Job their index, but not the number of completions: set
    JOB_COMPLETIONS in the pod template, or give --host-count. On a multi-host TPU slice that index
    is ignored: `start_distributed` numbers the hosts, even across several slices, each of which is
    its own Job.
    """
    if index is None and is_slice(environment):
        if count is not None:
            raise ValueError(
                "--host-count is given on a TPU slice, whose hosts are numbered by "
                "jax.distributed: leave it out, or give --host-index too"
            )
        return Share(0, 1, "alone")
    origin = "options"
    if index is None:
        for name, index_name, count_name in ENVIRONMENTS:
            if index_name in environment and (count or count_name in environment):
                origin, index = name, _number(environment, index_name)
                count = count or _number(environment, count_name)
                break
            if name == "Kubernetes" and index_name in environment:
                raise ValueError(
                    f"{index_name} is {environment[index_name]}, but the number of hosts is not "
                    "known: give --host-count"
                )
    if index is None and count is None:
        return Share(0, 1, "alone")
    if index is None or count is None:
        raise ValueError("--host-index and --host-count go together: give both")
    if not 0 <= index < count:
        raise ValueError(f"host index is {index} of {count}: it must be from 0 to {count - 1}")
    return Share(index, count, origin)


def is_slice(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of TPU slices on Google Kubernetes Engine."""
    hosts = next((environment[name] for name in SLICE_HOSTS if name in environment), "")
    return "," in hosts or environment.get("MEGASCALE_NUM_SLICES", "1") not in ("", "1")


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ValueError(
            f"{name} is {environment[name]!r}, which is not a number: give --host-index and "
            "--host-count"
        ) from None


def has_tpu(dev: Path = Path("/dev")) -> bool:
    """Whether this host has TPU chips: libtpu alone may be here only to compile for them."""
    chips = (*dev.glob("accel[0-9]*"), *dev.glob("vfio/[0-9]*"))
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def start_distributed(share: Share, coordinator: str | None) -> Share:
    """Starts `jax.distributed` where the platform needs it, and returns the resulting share.

    That is on TPU, unless options or the environment gave a share, or with a coordinator's
    "host:port". If a host then dies, JAX ends all other processes.
    """
    on_tpu = share.origin == "alone" and has_tpu()
    if coordinator is None and not on_tpu:
        return share
    import jax

    origin = "jax.distributed"
    if coordinator is not None:
        jax.distributed.initialize(coordinator, num_processes=share.count, process_id=share.index)
        return replace(share, origin=origin)
    jax.distributed.initialize()
    return Share(jax.process_index(), jax.process_count(), origin)
