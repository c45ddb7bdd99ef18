"""Tables of the known fields of diffusers and transformers configs, for `configs.py`.

TRANSLATED fields go into our configs, if they follow their rule. NEUTRAL fields must have one of
the listed values (in a list, every entry must). IGNORED fields are skipped, for the reason next to
them. Fields that start with an underscore (`_class_name`, `_diffusers_version`, ...) describe the
file, not the model.

Some parts of a diffusers folder are not read, since they affect no image: model_index.json (parts
are found by their location), feature_extractor and safety_checker (for finished images only).
"""

import math

from .rules import FLAG, MAX_LENGTHS, TEXT, listed, one_of, per_level, real, whole

CHANNELS = whole(1, 2**14)
WIDTH = whole(1, 2**16)  # of text embeddings
LAYERS = whole(1, 32)
HEADS = whole(1, 1024)
GROUPS = whole(1, 1024)

NO_DROPOUT = "dropout is off outside training"
FROM_ARRAYS = "known from the array shapes"
EMA = "bookkeeping of a trainer's moving average"

UNET_TRANSLATED = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": listed(CHANNELS),
    "layers_per_block": per_level(LAYERS),
    "attention_head_dim": per_level(HEADS),
    "down_block_types": listed(TEXT),
    "up_block_types": listed(TEXT),
    "cross_attention_dim": per_level(WIDTH),
    "norm_num_groups": GROUPS,
    "sample_size": per_level(whole(1, 1024)),
    # With GLIGEN's fusers, or plain.
    "attention_type": one_of("gated", "gated-text-image", "default"),
    "transformer_layers_per_block": per_level(LAYERS),
    "use_gated_attention": FLAG,  # the same, in the fork that first had GLIGEN
}
UNET_NEUTRAL = {
    "act_fn": ("silu", "swish"),  # two names for one function
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),  # diffusers itself refuses it
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
UNET_IGNORED = {
    "dropout": NO_DROPOUT,
    "use_linear_projection": FROM_ARRAYS,
    "upcast_attention": "scores are always accumulated in float32",
    "addition_embed_type_num_heads": "no additional embedding, so no heads",
    "decay": EMA,
    "inv_gamma": EMA,
    "min_decay": EMA,
    "min_value": EMA,
    "optimization_step": EMA,
    "power": EMA,
    "update_after_step": EMA,
    "use_ema_warmup": EMA,
}

VAE_TRANSLATED = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "down_block_types": listed(TEXT),
    "up_block_types": listed(TEXT),
    "block_out_channels": listed(CHANNELS),
    "layers_per_block": LAYERS,
    "latent_channels": CHANNELS,
    "norm_num_groups": GROUPS,
    "scaling_factor": real(1e-6, 1e6),
}
VAE_NEUTRAL = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
VAE_IGNORED = {
    "sample_size": "the network is convolutional; only sets the size of diffusers' tiles",
    "force_upcast": "the caller chooses the dtype",
}

NO_DECODER = dict.fromkeys(("is_encoder_decoder", "is_decoder", "add_cross_attention"), (False,))
TEXT_TRANSLATED = {
    "vocab_size": whole(3, 2**20),
    "hidden_size": WIDTH,
    "num_hidden_layers": whole(1, 128),
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
    "max_position_embeddings": MAX_LENGTHS,
    "hidden_act": one_of("quick_gelu", "gelu"),
    "eos_token_id": whole(0, 2**20),
}
TEXT_NEUTRAL = {
    "layer_norm_eps": (1e-5,),
    "model_type": ("clip_text_model",),
    "architectures": ("CLIPTextModel", "CLIPTextModelWithProjection", None),
} | NO_DECODER
GENERIC = "a setting that transformers writes for every model; CLIP does not use it"
CLIP_IGNORED = {
    "attention_dropout": NO_DROPOUT,
    "dropout": NO_DROPOUT,
    "initializer_factor": "for random initialization",
    "initializer_range": "for random initialization",
    "dtype": "the arrays have their own",
    "torch_dtype": "the arrays have their own",
    "transformers_version": "describes the file",
} | dict.fromkeys(
    """attn_implementation bad_words_ids begin_suppress_tokens chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label label2id length_penalty
    max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torchscript typical_p use_bfloat16
    use_cache""".split(),
    GENERIC,
)
TEXT_IGNORED = CLIP_IGNORED | {
    "projection_dim": "the projection to CLIP's joint space is not used",
    "bos_token_id": "comes from the tokenizer",
    "pad_token_id": "comes from the tokenizer",
}

VISION_TRANSLATED = {
    "hidden_size": WIDTH,
    "num_hidden_layers": whole(1, 128),
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
    "patch_size": per_level(whole(1, 1024)),  # both sides, in a list
    "image_size": per_level(whole(1, 4096)),
    "projection_dim": WIDTH,
    "hidden_act": one_of("quick_gelu", "gelu"),
}
VISION_NEUTRAL = {
    "num_channels": (3,),
    "layer_norm_eps": (1e-5,),
    "model_type": ("clip_vision_model",),
    "architectures": ("CLIPVisionModelWithProjection", None),
} | NO_DECODER
VISION_IGNORED = CLIP_IGNORED | dict.fromkeys(
    ("bos_token_id", "eos_token_id", "pad_token_id"), "an image has no such tokens"
)
# A full CLIPModel, whose two parts have their own fields.
CLIP_TRANSLATED = {"projection_dim": WIDTH}
CLIP_NEUTRAL = {"model_type": ("clip",), "architectures": ("CLIPModel", None)} | NO_DECODER
CLIP_PARTS = dict.fromkeys(
    ("text_config", "text_config_dict", "vision_config", "vision_config_dict"), "checked apart"
)
CLIP_MODEL_IGNORED = CLIP_IGNORED | CLIP_PARTS | {"logit_scale_init_value": "for training"}

# The default beta_start, beta_end and beta_schedule of each class.
LINEAR, STABLE = (0.0001, 0.02, "linear"), (0.00085, 0.012, "linear")
SCHEDULER_BETAS = {
    "PNDMScheduler": LINEAR,
    "DDIMScheduler": LINEAR,
    "DDPMScheduler": LINEAR,
    "DEISMultistepScheduler": LINEAR,
    "DPMSolverMultistepScheduler": LINEAR,
    "DPMSolverSinglestepScheduler": LINEAR,
    "EulerAncestralDiscreteScheduler": LINEAR,
    "EulerDiscreteScheduler": LINEAR,
    "HeunDiscreteScheduler": STABLE,
    "KDPM2AncestralDiscreteScheduler": STABLE,
    "KDPM2DiscreteScheduler": STABLE,
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
    "LMSDiscreteScheduler": LINEAR,
    "UniPCMultistepScheduler": LINEAR,
}
SCHEDULER_TRANSLATED = {
    "num_train_timesteps": whole(1, 10**4),
    "beta_start": real(1e-9, 0.999),
    "beta_end": real(1e-9, 0.999),
    "beta_schedule": one_of("linear", "scaled_linear"),
    "prediction_type": one_of("epsilon", "v_prediction"),
    "predict_epsilon": one_of(True),  # what prediction_type was called before diffusers 0.10
    "timestep_spacing": one_of("leading", "linspace", "trailing"),
    "steps_offset": whole(0, 1000),
    "set_alpha_to_one": FLAG,
    "clip_sample": FLAG,
    "clip_sample_range": real(1e-6, 1e6),
    "skip_prk_steps": FLAG,
    "rescale_betas_zero_snr": FLAG,
    "original_inference_steps": whole(1, 10**4),
    "timestep_scaling": real(1e-6, 1e6),
}
SCHEDULER_NEUTRAL = {
    "trained_betas": (None,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "timestep_type": ("discrete",),
    "timestep_values": (None,),  # from diffusers before 0.4
}
LAST = "the last step of ours ends at noise 0, so it must be of first order"
SCHEDULER_IGNORED = {
    "dynamic_thresholding_ratio": "no thresholding",
    "sample_max_value": "no thresholding",
    "flow_shift": "no flow matching",
    "time_shift_type": "no flow matching",
    "shift_terminal": "no flow matching",
    "variance_type": "the model's output is never a variance",
    "tensor_format": "from diffusers before 0.4, which also supported NumPy arrays",
    "euler_at_final": LAST,
    "lower_order_final": LAST,
}
# Options that our solvers fix, and their values; any other value is ignored with a warning. Values
# of other classes that mean the same to diffusers' `from_config` are listed, too.
SCHEDULER_OURS = {
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_order": (2,),
    "solver_type": ("midpoint", "logrho", "bh2"),
    "solver_p": (None,),
    "predict_x0": (True,),
    "disable_corrector": ([], None),
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    # -5.1 is beyond Stable Diffusion's noisiest step, so it clips nothing, without zero SNR.
    "lambda_min_clipped": (-math.inf, -5.1),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_beta_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_karras_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
}
# The solver that is a class of diffusers' with its own defaults.
SCHEDULER_SOLVERS = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "LCMScheduler": "lcm",
    "UniPCMultistepScheduler": "unipc",
}
