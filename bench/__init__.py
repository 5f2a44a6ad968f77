"""A benchmark harness for self-supervised visual representation learning."""
