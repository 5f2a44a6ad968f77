"""Evaluation protocols by id, one file each."""

from bench.registry import functions_in_folder

EVALUATORS = functions_in_folder("protocol", "bench.evaluators", "evaluate")
