"""Evaluation on the tiny world: the systems, the task, and their measurement by the tiny world's evaluator."""

from evaluation.tiny.judge import TinyJudge, check_tiny_dir, quiet_libraries
from evaluation.tiny.systems import System, SystemFigures

__all__ = ["System", "SystemFigures", "TinyJudge", "check_tiny_dir", "quiet_libraries"]
