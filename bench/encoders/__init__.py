"""Encoders by id, one file each."""

from bench.registry import classes_in_folder

ENCODERS = classes_in_folder("encoder", "bench.encoders", "Encoder")
