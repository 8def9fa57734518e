"""Which tests are slow: those of these folders and files. `make test-fast` leaves them out."""

SLOW = (
    "tests/benchmarks/test_count.py",
    "tests/benchmarks/test_fake.py",
    "tests/benchmarks/test_full_size.py",
    "tests/benchmarks/test_pipeline.py",
    "tests/discriminator/test_features.py",
    "tests/discriminator/test_unet_features.py",
    "tests/distillation/test_diagnostics.py",
    "tests/distillation/test_latent_losses.py",
    "tests/distillation/test_losses.py",
    "tests/evaluation",
    "tests/examples",
    "tests/hub",
    "tests/packaging",
    "tests/pipelines",
    "tests/scripts",
    "tests/training/checkpoints/test_folder_lock.py",
    "tests/training/checkpoints/test_store_crashes.py",
    "tests/training/data/test_sources.py",
    "tests/training/data/test_streams.py",
    "tests/training/encoding",
    "tests/training/models",
    "tests/training/options/test_memory_advice.py",
    "tests/training/publishing",
    "tests/training/test_fp16.py",
    "tests/training/processes/test_interruption.py",
    "tests/training/monitoring/test_validation.py",
)


def is_slow(path: str) -> bool:
    """Whether the test file `path`, relative to the repository and with slashes, is slow."""
    return any(path == slow or path.startswith(f"{slow}/") for slow in SLOW)
