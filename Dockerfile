# reground-jax on CPU, or on what EXTRA names:
#
#     docker build --tag reground-jax .
#     docker build --tag reground-jax:cuda13 --build-arg EXTRA=cuda13 .
#     docker build --tag reground-jax:tpu --build-arg EXTRA=tpu .
#     docker run --rm --volume "$PWD:/work" reground-jax generate "a dog in the snow" \
#         --box "a dog@0.125,0.25,0.5,0.625" --out dog.png
#
# CUDA comes with JAX's wheels; the host needs NVIDIA's driver and container toolkit only.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG EXTRA=""
WORKDIR /work
COPY pyproject.toml README.md LICENSE /opt/reground-jax/
COPY convert /opt/reground-jax/convert
COPY reground_jax /opt/reground-jax/reground_jax
# The versions are ranges, as in pyproject.toml.
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir \
        "/opt/reground-jax[stores${EXTRA:+,${EXTRA}}]" "gcsfs>=2024.6" "s3fs>=2024.6" \
    && rm -rf /opt/reground-jax \
    && JAX_PLATFORMS=cpu reground-jax info emoji --check \
    && mkdir --mode=1777 /cache

# Compiled programs and converted models. Mount a volume here to keep them.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
USER 1000
ENTRYPOINT ["reground-jax"]
