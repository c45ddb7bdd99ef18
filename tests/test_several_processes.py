"""Two JAX processes, like the hosts of a pod: each makes its own images."""

import json
import socket
import sys

from tests.processes import PATIENCE, starting

ONE_OF_TWO = """
import json, sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from reground_jax import Layout, Pipeline
from tests.models import ONE_LEVEL, tiny_model
assert (jax.device_count(), jax.local_device_count()) == (2, 1)
pipe = Pipeline.from_model(tiny_model(**ONE_LEVEL))
few = dict(num_steps=1, wiring="no_grounding", guidance_scale=1)
image = pipe(Layout("a cat"), seeds=5, output="numpy", **few)
try:
    Pipeline.from_model(tiny_model(**ONE_LEVEL), devices=jax.devices())
except ValueError as error:
    refused = str(error)
print(json.dumps({"image": image.tolist(), "refused": refused}))
"""


def test_by_default_a_pipeline_takes_the_devices_of_its_own_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with starting() as start:
        processes = [
            start([sys.executable, "-c", ONE_OF_TWO, port, str(index)], JAX_PLATFORMS="cpu")
            for index in range(2)
        ]
        outputs = [process.communicate(timeout=PATIENCE) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:]
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first["image"] == second["image"]  # of the same layout and seed
    for report in (first, second):
        assert "belongs to another process: give a list of JAX devices" in report["refused"]
