"""Splits and subsets by patient: ranked by a keyed hash, so that they depend on the patients' names and nothing else."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b


def rank_patients(patients: Sequence[str], key: str) -> list[str]:
    """The distinct patients in the order of their BLAKE2b hash under `key`, whatever the order they come in."""

    def rank(patient: str) -> tuple[bytes, str]:
        return blake2b(patient.encode(), key=key.encode(), digest_size=16).digest(), patient

    return sorted(set(patients), key=rank)


def split_patients(
    patients: Sequence[str], fractions: Mapping[str, float | Fraction], seed: int, start: Fraction = Fraction(0)
) -> list[str]:
    """Give every patient one split.

    Args:
        patients: the patient of each image, (n,); an image more of a patient changes nothing.
        fractions: the part of the patients in each split; they sum to 1.
        seed: another seed is another, independent assignment.
        start: where in the order of the patients the first split begins; what goes beyond the end goes on at the beginning.
            Of first splits of 1/N, those that start at 0, 1/N, 2/N, … have each patient once.

    Returns:
        The split of each image, (n,).

    Raises:
        ValueError: fractions that are negative or do not sum to 1.
    """
    if min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1):
        raise ValueError(f"fractions must be at least 0 and sum to 1, not {dict(fractions)}")
    ranked = rank_patients(patients, f"split {seed}")

    def position(at: float | Fraction) -> int:
        turn = math.floor(at)  # counted apart, for halves are rounded to even: round(x + n) may be round(x) + n - 1
        return round((at - turn) * len(ranked)) + turn * len(ranked)

    split_of: dict[str, str] = {}
    below: float | Fraction = start
    for split, fraction in fractions.items():
        begin, below = position(below), below + fraction
        split_of.update(dict.fromkeys((ranked[i % len(ranked)] for i in range(begin, position(below))), split))
    return [split_of[patient] for patient in patients]
