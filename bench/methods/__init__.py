"""Methods by id, one file and one paper each; a new file here is a new method."""

from bench.registry import classes_in_folder

METHODS = classes_in_folder("method", "bench.methods", "Method")
