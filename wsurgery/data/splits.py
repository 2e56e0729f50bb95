"""Splits and subsets by patient: ranked by a keyed hash, so that they depend on the patients' names and nothing else."""

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b


def rank_patients(patients: Sequence[str], key: str) -> list[str]:
    """The distinct patients in the order of their BLAKE2b hash under `key`, whatever the order they come in."""

    def rank(patient: str) -> tuple[bytes, str]:
        return blake2b(patient.encode(), key=key.encode(), digest_size=16).digest(), patient

    return sorted(set(patients), key=rank)


def split_patients(patients: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Give every patient one split.

    Args:
        patients: the patient of each image, (n,); an image more of a patient changes nothing.
        fractions: the part of the patients in each split; they sum to 1.
        seed: another seed is another, independent assignment.

    Returns:
        The split of each image, (n,).

    Raises:
        ValueError: fractions that are negative or do not sum to 1.
    """
    if min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1):
        raise ValueError(f"fractions must be at least 0 and sum to 1, not {dict(fractions)}")
    ranked = rank_patients(patients, f"split {seed}")
    split_of: dict[str, str] = {}
    below = 0.0
    for split, fraction in fractions.items():
        start, below = round(below * len(ranked)), below + fraction
        split_of.update(dict.fromkeys(ranked[start : round(below * len(ranked))], split))
    return [split_of[patient] for patient in patients]
