"""Training configs: every mistake gives a one-sentence error before any work starts."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reground_jax.basics.identity import differences
from reground_jax.model import read_model
from reground_jax.networks.transformer import reads_grounding
from reground_jax.settings import WIRINGS
from reground_jax.storage.checkpoint import flatten
from reground_jax.training.config import GROUNDED_WIRINGS, STAGE_NAMES, StageConfig
from reground_jax.training.initial import changed, check_kept
from reground_jax.training.losses import AutoencoderTerms, DiffusionTerms
from reground_jax.training.opening import (
    TERMS,
    TRAINED,
    experiment,
    open_stage,
    stage_terms,
)
from reground_jax.training.recipe import Recipe
from reground_jax.training.sources import Data, open_data
from reground_jax.training.stages import STAGES
from tests.training import SIZE, TINY, Squares, tiny_recipe

CONFIGS = Path(__file__).parents[1] / "reground_jax/training/configs"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"wiring": "paralel"}, "wiring 'paralel' is unknown: did you mean 'parallel'?"),
        # Unused fusers would get no gradient.
        ({"wiring": "no_grounding"}, "wiring 'no_grounding' is unknown"),
        ({"dtype": "bfloat"}, "dtype 'bfloat' is unknown: did you mean 'bfloat16'?"),
        ({"dtype": "float16"}, "dtype 'float16' is unknown"),  # without loss scaling
        ({"save_dtype": "int8"}, "save_dtype 'int8' is unknown"),
        ({"fuser_start": "gate"}, "fuser_start 'gate' is unknown: did you mean 'gates'?"),
        ({"remat": "block"}, "remat 'block' is unknown: did you mean 'blocks'?"),
        ({"num_samples": 0}, "num_samples is 0: give a whole number of at least 1"),
        ({"cache_examples": -1}, "cache_examples is -1: give a whole number of at least 0"),
        ({"cache_examples": 3}, "cache_examples is 3, less than a batch of 4"),
        ({"cache_examples": 8.5}, "cache_examples is 8.5, which is not a whole number"),
        ({"loss": [1]}, r"loss is \[1\]: it must be a JSON object"),
    ],
)
def test_a_wrong_field_of_a_stage_is_one_sentence(fields, told):
    with pytest.raises(ValueError, match=told):
        StageConfig(source={}, recipe=tiny_recipe(), **fields)


def test_a_stage_trains_any_wiring_that_reads_the_boxes_and_needs_no_amounts():
    reads = [wiring for wiring in WIRINGS if reads_grounding(wiring) and wiring != "coupled"]
    assert list(GROUNDED_WIRINGS) == reads


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"optimizer": "adam"}, "optimizer 'adam' is unknown: did you mean 'adamw'?"),
        ({"decay": "linear"}, "decay 'linear' is unknown: it must be one of cosine, constant"),
        ({"learning_rate": math.nan}, "learning_rate is nan: give a number above 0"),
        ({"learning_rate": 0}, "learning_rate is 0: give a number above 0"),
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4', which is not a number"),
        ({"batch_size": 2.5}, "batch_size is 2.5, which is not a whole number"),
        ({"batch_size": True}, "batch_size is True, which is not a whole number"),
        ({"warmup_steps": -1}, "warmup_steps is -1: give a whole number of at least 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1: give a number of at least 0"),
        ({"beta2": 1.0}, "beta2 is 1.0: give a number of at least 0 and below 1"),
        ({"average_decay": 1.5}, "average_decay is 1.5"),
        ({"clip_norm": 0}, "clip_norm is 0: give a number above 0"),
        ({"seed": -1}, "seed is -1: give a whole number from 0 to 4294967295"),
        ({"save_every": 0}, "save_every is 0"),
        ({"last_step": 9}, r"last_step is 9: it must be 1..3"),
        ({"last_step": 0}, "last_step is 0"),
    ],
)
def test_a_wrong_number_of_a_recipe_is_one_sentence(fields, told):
    with pytest.raises(ValueError, match=told):
        tiny_recipe(**fields)


@pytest.mark.parametrize(
    ("kind", "loss", "told"),
    [
        ("grounding", {"box_atention": 1}, "did you mean 'box_attention'?"),
        ("grounding", {"caption_drop": 1.1}, "caption_drop is 1.1: give a number from 0 to 1"),
        ("grounding", {"min_snr_gamma": 0}, "min_snr_gamma is 0: give a number above 0"),
        ("grounding", {"seed": 3}, "loss field 'seed' is unknown"),  # it belongs to the recipe
        # Has no effect without grounding, so it is a mistake.
        ("text_to_image", {"box_attention": 0.1}, "loss field 'box_attention' is unknown"),
        ("autoencoder", {"caption_drop": 0.1}, "one of kl_weight, edge_weight, scales"),
        ("autoencoder", {"kl_weight": -1}, "kl_weight is -1"),
        ("autoencoder", {"scales": 0}, "scales is 0: give a whole number from 1 to 8"),
        ("grounded", {}, "stage 'grounded' is unknown: did you mean 'grounding'?"),
    ],
)
def test_a_wrong_loss_is_reported_before_data_or_model_are_opened(kind, loss, told, tmp_path):
    config = StageConfig(source={"kind": "never read"}, recipe=tiny_recipe(), loss=loss)
    with pytest.raises(ValueError, match=told):
        open_stage(kind, config, tmp_path, base=tmp_path / "never read")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: its brackets are nested too deeply"),
        ("[]", r"config is \[\]: it must be a JSON object of source, recipe"),
        ('{"recipe": {"num_steps": 3, "batch_size": 4}}', "config has no 'source': add it"),
        ('{"source": {}}', "config has no 'recipe': add it"),
        ('{"source": {}, "recipe": {"num_steps": 3}}', "recipe has no 'batch_size': add it"),
        ('{"source": {}, "recipe": 3}', "recipe is 3: it must be a JSON object"),
        ('{"source": {}, "recipe": {"num_steps": 3, "batch_size": 4}, "folder": "x"}',
         "config field 'folder' is unknown"),
        ('{"source": {}, "recipe": {"num_steps": 3, "batch_size": 4}, "wirings": "parallel"}',
         "config field 'wirings' is unknown: did you mean 'wiring'?"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence_with_its_name(content, told, tmp_path):
    path = tmp_path / "stage.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"config .*stage.json.*{told}"):
        StageConfig.load(path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "stage.json"
    path.write_bytes(b'\xef\xbb\xbf{"source": {}, "recipe": {"num_steps": 3, "batch_size": 4}}')
    config = StageConfig.load(path)
    assert config.recipe == Recipe(num_steps=3, batch_size=4) and config.folder == tmp_path


def test_a_config_is_read_without_jax():
    """So that mistakes are reported at once and `--help` stays fast."""
    program = f"""
import sys
from reground_jax.training.config import StageConfig
StageConfig.load({str(CONFIGS / "emoji64" / "autoencoder.json")!r})
assert "jax" not in sys.modules and "optax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_stage_names_agree():
    assert STAGE_NAMES == tuple(STAGES) == tuple(TRAINED) == tuple(TERMS)


def test_the_shipped_configs_and_their_losses_are_valid():
    paths = sorted(CONFIGS.glob("*/*.json"))
    assert len(paths) == 13
    for path in paths:
        loss = StageConfig.load(path).loss
        terms = AutoencoderTerms if "kl_weight" in loss else DiffusionTerms
        assert dataclasses.asdict(terms(**loss)).items() >= loss.items()


@pytest.fixture
def pictures(tmp_path) -> Path:
    lines = []
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append({"image": f"{i}.png", "caption": str(i)})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "json"}, "source kind 'json' is unknown: did you mean 'jsonl'?"),
        ({"kind": None}, "source kind None is unknown"),
        ({"held_out": 2}, "source 'jsonl' field 'held_out' is unknown: did you mean 'heldout'?"),
        ({"path": 5}, "source field 'path' is 5: it must be a path"),
        ({"path": "gone.jsonl"}, "cannot read .*gone.jsonl"),
        # Negative slices would train on the wrong examples, or hold out none.
        ({"heldout": 6}, "heldout is 6, but there are only 4 examples"),
        ({"heldout": 4}, "heldout is 4, but there are only 4 examples"),
        ({"heldout": -1}, "heldout is -1: give a whole number of at least 0"),
        ({"image_size": 8.5}, "image_size is 8.5, which is not a whole number"),
        ({"image_size": 10**9}, "image_size is 1000000000: give a whole number from 1 to 8192"),
        ({"seed": -1}, "seed is -1"),
        ({"flip": "yes"}, "flip is 'yes': it must be true or false"),
    ],
)
def test_a_wrong_source_is_one_sentence(changes, told, pictures):
    source = {"kind": "jsonl", "path": "train.jsonl", "image_size": 8} | changes
    with pytest.raises(ValueError, match=told):
        open_data(source, pictures)


def test_a_source_lacks_what_it_needs_or_has_no_example(pictures):
    with pytest.raises(ValueError, match="source 'jsonl' has no 'image_size': add it"):
        open_data({"kind": "jsonl", "path": "train.jsonl"}, pictures)
    with pytest.raises(ValueError, match="world 'tiny' is unknown"):
        open_data({"kind": "emoji", "artwork": "a.npz", "world": "tiny"}, pictures)
    (pictures / "empty.jsonl").write_text("nonsense\n")
    with (
        pytest.warns(UserWarning, match="skipped 1 of 1 entries|skipped .*line 1"),
        pytest.raises(ValueError, match="no examples to train on"),
    ):
        open_data({"kind": "jsonl", "path": "empty.jsonl", "image_size": 8}, pictures)


def test_the_identity_of_data_follows_what_is_trained_on(pictures):
    source = {"kind": "jsonl", "path": "train.jsonl", "image_size": 8}
    whole = open_data(source, pictures).identity
    assert whole["examples"] == 4 and whole == open_data(source, pictures).identity
    held = open_data(source | {"heldout": 1}, pictures)
    assert held.identity["examples"] == 3
    assert [e.layout.prompt for e in held.heldout(2)] == ["3", "3"]
    lines = (pictures / "train.jsonl").read_text()
    (pictures / "train.jsonl").write_text(lines.replace('"caption": "2"', '"caption": "a dog"'))
    flipped = open_data(source | {"flip": True}, pictures).identity
    assert "flip" not in whole and flipped["flip"] is True
    other = open_data(source, pictures).identity
    assert {k for k in whole if whole[k] != other[k]} == {"annotations"}


def opened(kind: str, monkeypatch, out: Path, side: int = SIZE, **fields):
    source = Squares()
    example = source.batch(0, 1)[0]
    image = np.zeros((side, side, 3), np.uint8)
    data = Data(
        source, lambda n: [dataclasses.replace(example, image=image, labels=None)] * n, None
    )
    monkeypatch.setattr("reground_jax.training.opening.open_data", lambda source, folder: data)
    config = {name: fields.pop(name) for name in ("model", "cache_examples") if name in fields}
    stage = StageConfig(source={}, recipe=tiny_recipe(), **config)
    return open_stage(kind, stage, out, **fields)


@pytest.mark.parametrize(
    ("kind", "side", "told"),
    [
        ("grounding", 15, "images are 15 pixels wide: the autoencoder needs a multiple"),
        ("grounding", 32, r"32 pixels wide, but the model's are 16.*\"sample_size\": 16"),
        ("autoencoder", 18, "18 pixels wide: the edge loss at 3 scales needs a multiple"),
        ("decoder", 4, "4 pixels wide: the edge loss at 3 scales.* 4, at least 8"),
    ],
)
def test_images_of_an_untrainable_size_are_refused_at_once(
    kind, side, told, base, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match=told):
        opened(kind, monkeypatch, tmp_path, side, base=base)


def test_a_stage_that_would_freeze_random_weights_is_refused(base, tmp_path, monkeypatch):
    told = "does not train all of the unet, and the one in --from does not fit"
    with pytest.raises(ValueError, match=told):
        model = {"unet": {"block_channels": [16]}}
        opened("grounding", monkeypatch, tmp_path, base=base, model=model)
    with pytest.raises(ValueError, match="grounding starts from a trained model: give --from"):
        opened("grounding", monkeypatch, tmp_path, base=None)
    given = dict(flatten(read_model(base).params))
    unet = changed(TINY, {"unet": {"block_channels": [16]}})
    vae = changed(TINY, {"vae": {"layers_per_block": 2}})
    check_kept(TINY, given, TRAINED["decoder"])
    grounded = changed(TINY, {"unet": {"grounding": "text"}})
    check_kept(grounded, given, TRAINED["grounding"])  # which adds new fusers
    check_kept(unet, given, TRAINED["text_to_image"])  # trains all of it, but not the autoencoder
    for kind in ("text_to_image", "decoder"):
        with pytest.raises(ValueError, match="does not train all of the vae"):
            check_kept(vae, given, TRAINED[kind])


def test_box_attention_reads_what_remat_does_not_store():
    config = StageConfig(
        source={}, recipe=tiny_recipe(), remat="blocks", loss={"box_attention": 0.1}
    )
    with pytest.raises(ValueError, match="loss.box_attention reads what it does not store: set"):
        stage_terms("grounding", config)


def test_settings_without_effect_and_finished_runs_are_refused(base, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cache_examples caches latents, and autoencoder has none"):
        opened("autoencoder", monkeypatch, tmp_path, base=base, cache_examples=8)
    for model, told in (
        ({"unte": {}}, "model part 'unte' is unknown: did you mean 'unet'?"),
        ({"unet": 3}, "model.unet is 3: it must be a JSON object"),
        ({"unet": {"block_channels": 5}}, "model.unet: "),
        ({"unet": {"heads": 5}}, "model.unet field 'heads' is unknown"),
    ):
        with pytest.raises(ValueError, match=told):
            opened("grounding", monkeypatch, tmp_path, base=base, model=model)
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="model already exists: that run is finished"):
        opened("grounding", monkeypatch, tmp_path, base=base)


def test_the_experiment_has_what_changes_results_and_nothing_else():
    recipe = tiny_recipe(num_steps=6)

    def of(kind="grounding", config=None, terms=None, model=TINY, origins=None, **data):
        config = config or StageConfig(source={}, recipe=recipe)
        given = Data(Squares(), lambda n: [], None, data)
        return experiment(kind, config, terms or DiffusionTerms(), given, model, origins or {})

    def config(**fields):
        return StageConfig(source={}, recipe=recipe, **fields)

    changes = {
        "wiring": of(config=config(wiring="parallel")),
        "fuser_start": of(config=config(fuser_start="outputs")),
        "dtype": of(config=config(dtype="bfloat16")),
        "cache_batches": of(config=config(cache_examples=8)),
        "loss.box_attention": of(terms=DiffusionTerms(box_attention=0.1)),
        "model.unet.sample_size": of(model=changed(TINY, {"unet": {"sample_size": 16}})),
        "start.from": of(origins={"from": "another checksum"}),
        "data.examples": of(examples=3),
    }
    for name, other in changes.items():
        assert [difference.name for difference in differences(of(), other)] == [name]
    same = config(save_dtype="float32", num_samples=3, remat="blocks", folder=Path("elsewhere"))
    same = of(config=same)
    assert differences(of(), same) == []
    # Text-to-image does not depend on the fusers' wiring.
    assert "wiring" not in of("text_to_image")
