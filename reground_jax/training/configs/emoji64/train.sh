#!/bin/sh
# The model that comes with the package, from nothing: sh train.sh OUT
# Stopped or killed, the same command goes on where it was. Needs `pip install '.[train]'` and npm's
# registry for the artwork. On 2 cores it takes about five hours
# (an estimate from the rates of the shipped model's stretches).
set -eu
out=$1
here=$(dirname "$0")
art=$out/art/artwork.npz

[ -f "$art" ] || python -m reground_jax.emoji.artwork --out "$out/art"

stage() { # FOLDER STAGE CONFIG [OPTIONS]
    folder=$1 name=$2 config=$3
    shift 3
    [ -d "$out/$folder/model" ] ||
        reground-jax train "$name" --config "$here/$config.json" --artwork "$art" \
            --out "$out/$folder" "$@"
}

stage autoencoder autoencoder autoencoder
stage text_to_image text_to_image text_to_image --from "$out/autoencoder/model"
for wiring in sequential parallel; do
    stage "grounding_$wiring" grounding "grounding_$wiring" --from "$out/text_to_image/model"
done

suits='{"guidance_scale": 4.0, "solver": "dpmpp_2m", "num_steps": 20}'
python -m reground_jax.training.package "$out/grounding_sequential/model" "$out/emoji" \
    --recommended "$suits"
python -m reground_jax.training.package "$out/grounding_parallel/model" "$out/emoji-parallel" \
    --base "$out/emoji" --recommended "$suits"
echo "made $out/emoji and $out/emoji-parallel; copy them to reground_jax/models to ship them"
