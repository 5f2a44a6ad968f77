"""Speed and memory against peers and stated targets: `python -m benchmarks --help`."""
