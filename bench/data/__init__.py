"""Image sets: readers by id, one file each; how they are prepared, checked, loaded and split."""

from bench.registry import functions_in_folder

READERS = functions_in_folder("reader", "bench.data.readers", "read")
