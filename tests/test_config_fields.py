"""Fields of other versions and other code: read, refused or named, but never silently ignored."""

import inspect
import json
import shutil
import warnings
from pathlib import Path

import diffusers
import pytest

from reground_jax.config import NoiseSchedule
from reground_jax.convert import config_fields, configs
from reground_jax.convert.conversion import gather
from reground_jax.convert.rules import UnsupportedConfig, read_json
from reground_jax.convert.sources import detect, resolve
from tests import reference

FORK = reference.DATA / "cases" / "unet-config-use-gated-attention" / "config.json"


# ---- earlier names


def test_the_forks_field_for_gated_attention_is_read_as_todays():
    fields = read_json(FORK)
    assert fields.pop("use_gated_attention") is True
    for flag, kind in ((True, "gated"), (False, "default")):
        unet = configs.unet_config(fields | {"use_gated_attention": flag})
        assert unet == configs.unet_config(fields | {"attention_type": kind})
        assert unet.grounding == ("text" if flag else None)
        assert unet == configs.unet_config(
            fields | {"use_gated_attention": flag, "attention_type": kind}
        )


def test_two_fields_for_gated_attention_that_contradict_each_other_are_refused():
    fields = read_json(FORK) | {"attention_type": "default"}
    with pytest.raises(UnsupportedConfig, match="'default' and use_gated_attention True contr"):
        configs.unet_config(fields)


def test_scheduler_files_of_the_first_diffusers_versions_are_read():
    old = {"tensor_format": "pt", "timestep_values": None, "predict_epsilon": True}
    today = reference.SD14_SCHEDULER
    assert configs.noise_schedule(today | old) == configs.noise_schedule(today)
    with pytest.raises(UnsupportedConfig, match="predict_epsilon is False, expected True"):
        configs.noise_schedule(today | {"predict_epsilon": False})


# ---- future fields


@pytest.mark.parametrize(
    ("read", "fields", "where"),
    [
        (configs.unet_config, {}, "U-Net"),
        (configs.vae_config, {}, "VAE"),
        (configs.text_config, {}, "text encoder"),
        (configs.vision_config, {}, "image encoder"),
        (configs.vision_config, {"model_type": "clip"}, "CLIP"),
        (configs.noise_schedule, reference.SD14_SCHEDULER, "scheduler"),
    ],
)
def test_unknown_fields_that_are_off_are_named_in_one_warning(read, fields, where):
    with pytest.warns(UserWarning) as caught:
        found = read(fields | {"novel_scale": None, "use_novelty": False})
    (warning,) = caught
    assert f"{where} config: novel_scale, use_novelty: unknown, and assumed" in str(warning.message)
    assert found == read(fields)
    for value in (True, 0, "", [], 1.0):
        with pytest.raises(UnsupportedConfig, match="field novelty .* is unknown"):
            read(fields | {"novelty": value})


# ---- solver options


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"solver_order": 3}, r"solver_order 3 \(here 2\)"),
        ({"final_sigmas_type": "sigma_min"}, r"final_sigmas_type 'sigma_min' \(here 'zero'\)"),
        (
            {"algorithm_type": "sde-dpmsolver++"},
            r"'sde-dpmsolver\+\+' \(here 'dpmsolver\+\+'\).*; dpmpp_2m_sde comes nearest",
        ),
        ({"solver_type": "bh1"}, r"solver_type 'bh1' \(here 'midpoint'\)"),
        ({"disable_corrector": [0, 1]}, r"disable_corrector \[0, 1\] \(here \[\]\)"),
        ({"predict_x0": False}, r"predict_x0 False \(here True\)"),
        ({"solver_p": {}}, r"solver_p \{\} \(here None\)"),
        ({"solver_type": "heun"}, r"solver_type 'heun' \(here 'midpoint'\)"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas True .*; dpmpp_2m_karras comes nearest"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas True"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas True"),
        ({"use_lu_lambdas": True}, "use_lu_lambdas True"),
        ({"interpolation_type": "log_linear"}, "interpolation_type 'log_linear'"),
        ({"lambda_min_clipped": -1.0}, "lambda_min_clipped -1.0"),
        ({"sigma_min": 0.03, "sigma_max": 14}, "sigma_min 0.03 .*, sigma_max 14 "),
        ({"solver_order": 3, "solver_type": "heun"}, "solver_order 3 .*, solver_type 'heun' "),
    ],
)
def test_ignored_solver_options_are_named_with_the_values_used(fields, said):
    with pytest.warns(UserWarning, match=said) as caught:
        schedule = configs.noise_schedule(reference.SD14_SCHEDULER | fields)
    assert len(caught) == 1 and ": choose one with --solver" in str(caught[0].message)
    assert schedule == configs.noise_schedule(reference.SD14_SCHEDULER)


def test_the_solver_of_the_files_own_class_is_named():
    for kind, solver in config_fields.SCHEDULER_SOLVERS.items():
        file = reference.SD14_SCHEDULER | {"_class_name": kind, "sigma_min": 0.1}
        with pytest.warns(UserWarning, match=f"sigma_min 0.1 .*; {solver} comes nearest"):
            configs.noise_schedule(file)


def test_every_option_of_diffusers_schedulers_is_known_at_any_value():
    """An option that is not honored is refused or named, or its reason is in the table."""
    harmless = set(config_fields.SCHEDULER_IGNORED) | set(config_fields.SCHEDULER_TRANSLATED)
    for kind in config_fields.SCHEDULER_BETAS:
        options = set(inspect.signature(getattr(diffusers, kind).__init__).parameters) - {"self"}
        for option in options - harmless:
            file = reference.SD14_SCHEDULER | {"_class_name": kind, option: "other"}
            with warnings.catch_warnings(record=True, action="always") as said:
                try:
                    configs.noise_schedule(file)
                except UnsupportedConfig as error:
                    said.append(error)
            assert option in " ".join(map(str, said)), (kind, option)


def test_a_file_for_lcm_says_how_such_a_model_is_used():
    file = {"_class_name": "LCMScheduler", "original_inference_steps": 40, "timestep_scaling": 5.0}
    with pytest.warns(UserWarning, match="LCMScheduler .*: use --solver lcm --steps 4 to 8"):
        schedule = configs.noise_schedule(file)
    assert (schedule.original_inference_steps, schedule.timestep_scaling) == (40, 5.0)


def test_zero_terminal_snr_is_read_for_v_and_refused_for_epsilon():
    file = reference.SD2_SCHEDULER | {"rescale_betas_zero_snr": True}
    assert configs.noise_schedule(file).rescale_betas_zero_snr
    for prediction in ("epsilon", None):
        with pytest.raises(
            UnsupportedConfig, match="prediction_type is .* expected 'v_prediction'"
        ):
            configs.noise_schedule(file | {"prediction_type": prediction})
    with pytest.warns(UserWarning, match=r"lambda_min_clipped -5.1 \(here -inf\)"):
        configs.noise_schedule(file | {"lambda_min_clipped": -5.1})


def test_a_schedulers_own_defaults_give_no_warning():
    """Files of every class, as diffusers writes them: a warning would be an error here."""
    for name in ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "EulerDiscrete"):
        scheduler = getattr(diffusers, f"{name}Scheduler").from_config(reference.SD14_SCHEDULER)
        written = json.loads(scheduler.to_json_string())
        assert isinstance(configs.noise_schedule(written), NoiseSchedule)


# ---- byte order marks, as Windows editors write them


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    reference.write_diffusers(folder, "small")
    (folder / "tokenizer" / "added_tokens.json").write_text("{}")
    return folder


def test_files_with_a_byte_order_mark_are_read(tmp_path, model):
    marked = Path(shutil.copytree(model, tmp_path / "model"))
    files = [*marked.rglob("*.json"), marked / "tokenizer" / "merges.txt"]
    assert len(files) > 8
    for file in files:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    ours, theirs = gather(resolve(marked)), gather(resolve(model))
    assert ours.config == theirs.config and ours.tokenizer == theirs.tokenizer


def test_a_component_with_a_byte_order_mark_is_recognized(tmp_path):
    (tmp_path / "config.json").write_text('\ufeff{"_class_name": null, "architectures": null}')
    with pytest.raises(ValueError, match="is one component of a model"):
        detect(tmp_path)
