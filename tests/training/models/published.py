"""The configs of the models that the training scripts use by default, as their repositories publish them.

Only entries that decide shapes, the schedule or the scaling are given; the number of parameters is the published one.
"""

SD_BLOCKS = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
UNET = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "center_input_sample": False, "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "in_channels": 3,
    "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
CLIP_L = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu",
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "max_position_embeddings": 77, "vocab_size": 49408, "layer_norm_eps": 1e-05,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
OPENCLIP_H = CLIP_L | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "projection_dim": 512,
}  # fmt: skip
OPENCLIP_BIGG = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280,
    "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280,
}  # fmt: skip

# Of each base: model_index's class, and each part's config with its number of parameters.
BASES = {
    "stable-diffusion-v1-5": {
        "class": "StableDiffusionPipeline",
        "prediction_type": "epsilon",
        "scaling_factor": 0.18215,
        "scheduler": SCHEDULER | {"_class_name": "PNDMScheduler"},
        "unet": (
            UNET | SD_BLOCKS
            | {"attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
               "sample_size": 64},
            859_520_964,
        ),
        "vae": (VAE | {"sample_size": 512}, 83_653_863),
        "text_encoder": (CLIP_L, 123_060_480),
    },
    "stable-diffusion-2-1": {
        "class": "StableDiffusionPipeline",
        "prediction_type": "v_prediction",
        "scaling_factor": 0.18215,
        "scheduler": SCHEDULER | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        "unet": (
            UNET | SD_BLOCKS
            | {"attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
               "cross_attention_dim": 1024, "sample_size": 96, "use_linear_projection": True, "upcast_attention": True,
               "dual_cross_attention": False, "only_cross_attention": False, "num_class_embeds": None},
            865_910_724,
        ),
        "vae": (VAE | {"sample_size": 768}, 83_653_863),
        "text_encoder": (OPENCLIP_H, 340_387_840),
    },
    "stable-diffusion-xl-base-1.0": {
        "class": "StableDiffusionXLPipeline",
        "prediction_type": "epsilon",
        "scaling_factor": 0.13025,
        "scheduler": SCHEDULER
        | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", "interpolation_type": "linear",
           "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False},
        "unet": (
            UNET
            | {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
               "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
               "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
               "sample_size": 128, "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 10],
               "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
               "projection_class_embeddings_input_dim": 2816, "addition_embed_type_num_heads": 64},
            2_567_463_684,
        ),
        "vae": (VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}, 83_653_863),
        "text_encoder": (CLIP_L, 123_060_480),
        "text_encoder_2": (OPENCLIP_BIGG, 694_659_840),
    },
}  # fmt: skip

# laion/CLIP-ViT-g-14-laion2B-s12B-b42K: the size of the projection is at the top level alone.
CLIP_G = {
    "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 1024, "logit_scale_init_value": 2.6592,
    "initializer_factor": 1.0,
    "text_config": {
        "model_type": "clip_text_model", "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 77, "vocab_size": 49408,
        "bos_token_id": 0, "eos_token_id": 2,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_act": "gelu", "hidden_size": 1408, "intermediate_size": 6144,
        "num_hidden_layers": 40, "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
    },
}  # fmt: skip
DINOV2 = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_act": "gelu", "image_size": 518, "patch_size": 14,
    "mlp_ratio": 4, "num_channels": 3, "qkv_bias": True, "layer_norm_eps": 1e-06, "layerscale_value": 1.0,
    "drop_path_rate": 0.0, "use_swiglu_ffn": False,
}  # fmt: skip
DINOV2_SMALL = DINOV2 | {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
DINOV2_LARGE = DINOV2 | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
