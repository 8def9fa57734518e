"""The losses of a run, around its loaded networks."""

import torch
from accelerate import Accelerator

from discriminator import Discriminator, LatentDiscriminator
from distillation.losses import Losses
from distillation.schedule import NoiseSchedule
from distillation.teacher import Teacher
from training.models.networks import Networks
from training.models.teacher_calls import teacher_call
from training.options.derived import guidance_scale, uses_latent_discriminator
from training.options.options import Options


def make_losses(
    options: Options,
    networks: Networks,
    student: torch.nn.Module,
    discriminator: Discriminator | LatentDiscriminator | None,
    schedules: tuple[NoiseSchedule, NoiseSchedule],
    accelerator: Accelerator,
) -> Losses:
    """The losses of this run. `student` is the network as it was prepared for distribution."""
    teacher = None
    if options.method.distillation_weight > 0:
        scale, steps = guidance_scale(options), options.method.teacher_steps
        teacher = Teacher(teacher_call(networks), schedules[1], scale, steps)
    return Losses(
        student=student,
        schedule=schedules[0],
        latents=networks.latents,
        teacher=teacher,
        teacher_latents=networks.teacher_latents,
        discriminator=discriminator,
        heads=None if discriminator is None else accelerator.prepare_model(discriminator.heads),
        feature_schedule=schedules[1] if uses_latent_discriminator(options) else None,
        adversarial_weight=options.method.adversarial_weight,
        distillation_weight=options.method.distillation_weight,
        distillation_weighting=options.method.distillation_weighting,
        distillation_space=options.method.distillation_space,
        r1_gamma=options.discriminator.r1_gamma,
        reconstruct_real=options.discriminator.reconstruct_real,
        student_timesteps=options.method.student_timesteps,
        autocast=accelerator.autocast,
    )
