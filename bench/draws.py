"""The seed of torch's own generators, which dropout and the like draw from inside a step."""

import torch


def seed_torch(seed: int) -> None:
    """As torch.manual_seed, which at each call formats a stack trace for devices that are not there."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
