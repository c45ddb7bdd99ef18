#!/bin/sh
# Trains the built-in models from scratch: sh train.sh OUT
# If stopped or killed, run the same command again to resume. Needs `pip install '.[train]'` and the
# npm registry for the artwork. Takes about seven hours on 2 cores
# (an estimate from the training rates of the shipped models).
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
for grounding in sequential parallel sem; do
    stage "grounding_$grounding" grounding "grounding_$grounding" --from "$out/text_to_image/model"
done

suits='{"guidance_scale": 4.0, "solver": "dpmpp_2m", "num_steps": 20}'
python -m reground_jax.training.package "$out/grounding_sequential/model" "$out/emoji" \
    --recommended "$suits"
python -m reground_jax.training.package "$out/grounding_parallel/model" "$out/emoji-parallel" \
    --base "$out/emoji" --recommended "$suits"
python -m reground_jax.training.package "$out/grounding_sem/model" "$out/emoji-sem" \
    --base "$out/emoji" --recommended "$suits"
echo "made $out/emoji, emoji-parallel and emoji-sem; copy them to reground_jax/models to ship them"
