"""Measures systems on the tiny world: who draws, what is drawn, and the evaluator that judges."""

from evaluation.tiny.judge import TinyJudge, check_tiny_dir, quiet_libraries
from evaluation.tiny.systems import System, SystemFigures

__all__ = ["System", "SystemFigures", "TinyJudge", "check_tiny_dir", "quiet_libraries"]
