"""What a checkpoint of a run holds, and how it gets back into the run."""

import argparse
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from training.checkpoints.optimizer_state import load_optimizer_tensors, optimizer_tensors
from training.checkpoints.store import Checkpoint, configuration_difference
from training.errors import OptionError
from training.optimization import Updater

# Changing one of these in mid-run would train something else from the checkpoint on.
FIXED_ARGUMENTS = (
    "pretrained_teacher_model", "revision", "pretrained_student_model", "student_revision",
    "use_lora", "lora_rank", "lora_alpha", "lora_target_modules", "pretrained_tiny_vae_model",
    "decode_crop_size", "decode_crop_halo",
    "dataset_name", "dataset_config_name", "train_data_dir",
    "max_train_samples", "streaming", "resolution", "student_timesteps", "zero_terminal_snr",
    "adversarial_weight", "distillation_weight", "distillation_weighting", "distillation_space",
    "discriminator_feature_model", "discriminator_text_model", "discriminator_image_model",
    "discriminator_input_size", "discriminator_norm", "reconstruct_real", "use_8bit_adam", "use_ema", "learning_rate",
    "discriminator_learning_rate", "scale_lr", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power",
    "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "discriminator_adam_beta1",
    "discriminator_adam_beta2",
)  # fmt: skip

# A stream has no index: its order also depends on who reads which part of it.
FIXED_FOR_STREAMS = ("train_batch_size", "dataloader_num_workers", "gradient_accumulation_steps", "processes")


@dataclass
class RunState:
    """Everything that changes while a run goes on.

    Attributes:
        student, heads: unwrapped trainable networks (heads None for distillation alone).
        updaters: by the network's name, "student" and "discriminator".
        ema: the average of the student's trainable parameters, or None.
        seed: of the run.
        step: iterations done.
        position: samples consumed from the stream, over all processes.
        skipped: steps skipped for a non-finite loss.
        replaced: unreadable images and missing captions replaced.
    """

    student: nn.Module
    heads: nn.Module | None
    updaters: dict[str, Updater]
    ema: EMAModel | None
    seed: int
    step: int = 0
    position: int = 0
    skipped: int = 0
    replaced: int = 0

    def trainable(self) -> dict[str, nn.Parameter]:
        """The student's trainable parameters by name: all of them, or the adapter's. What a checkpoint keeps."""
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}

    def save(self, args: argparse.Namespace, accelerator: Accelerator) -> tuple[dict[str, dict[str, Tensor]], dict]:
        """Tensors in named groups, and the rest as JSON: what `save_checkpoint` takes.

        No random states: every number of an iteration is a function of the seed and the stream position.
        """
        trainable = self.trainable()
        tensors = {"student": {name: p.detach() for name, p in trainable.items()}}
        if self.heads is not None:
            tensors["discriminator"] = self.heads.state_dict()
        state = {
            "step": self.step,
            "position": self.position,
            "skipped": self.skipped,
            "replaced": self.replaced,
            "seed": self.seed,
            "arguments": _arguments(args, accelerator),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }
        for name, updater in self.updaters.items():
            tensors[f"{name}_optimizer"], state[f"{name}_optimizer"] = optimizer_tensors(updater.optimizer.optimizer)
            state[f"{name}_schedule"] = updater.schedule.state_dict()
        if self.ema is not None:
            tensors["student_ema"] = dict(zip(trainable, self.ema.shadow_params))
            state["ema_step"] = self.ema.optimization_step
        return tensors, state

    def load(self, checkpoint: Checkpoint, args: argparse.Namespace, accelerator: Accelerator) -> None:
        """Continue from a verified checkpoint.

        Raises:
            OptionError: an option that may not change in mid-run has changed.
        """
        tensors, state = checkpoint.tensors, checkpoint.state
        fixed = FIXED_ARGUMENTS + (FIXED_FOR_STREAMS if args.streaming else ())
        difference = configuration_difference(state["arguments"], _arguments(args, accelerator), fixed)
        if difference:
            raise OptionError(
                f"--resume_from_checkpoint got {checkpoint.path.name}, which was trained with other options: "
                f"{difference}. Use the same ones, or start afresh in another --output_dir"
            )
        with torch.no_grad():
            for name, parameter in self.trainable().items():
                parameter.copy_(tensors["student"][name])
        if self.heads is not None:
            self.heads.load_state_dict(tensors["discriminator"])
        for name, updater in self.updaters.items():
            optimizer = updater.optimizer.optimizer
            load_optimizer_tensors(optimizer, tensors[f"{name}_optimizer"], state[f"{name}_optimizer"])
            updater.schedule.load_state_dict(state[f"{name}_schedule"])
        if self.ema is not None:
            for name, shadow in zip(self.trainable(), self.ema.shadow_params):
                shadow.copy_(tensors["student_ema"][name])
            self.ema.optimization_step = state["ema_step"]
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.position = state["step"], state["position"]
        self.skipped, self.replaced = state["skipped"], state["replaced"]


def _arguments(args: argparse.Namespace, accelerator: Accelerator) -> dict:
    """The flags, without the token, and the number of processes."""
    return {k: v for k, v in vars(args).items() if k != "hub_token"} | {"processes": accelerator.num_processes}
