"""Random numbers that depend on their purpose and key, never on earlier draws of the process."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Purpose of random numbers; equal seeds give unrelated numbers for different purposes."""

    SAMPLE_ORDER = 0
    AUGMENTATION = 1
    STEP = 2
    INITIAL_WEIGHTS = 3


def generator(purpose: Purpose, seed: int, *key: int) -> np.random.Generator:
    """A generator whose numbers are a pure function of its arguments (all at least 0)."""
    return np.random.default_rng((int(purpose), seed, *key))


def seed_torch(purpose: Purpose, seed: int, *key: int) -> None:
    """Set torch's global generators (dropout, initial weights) as a pure function of the arguments."""
    torch.manual_seed(int(generator(purpose, seed, *key).integers(2**63)))
