"""Labels as tables write them: 0 and 1 in many words, classes of which one is the image's, and lists of findings."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from wsurgery.data.adapters import choose, names_in
from wsurgery.data.grades import grade_labels, in_order, order_of
from wsurgery.data.table import Table
from wsurgery.errors import UsageError, WsurgeryError, printable

UNKNOWN, UNCERTAIN = float("nan"), -1.0
POLICIES = {"ones": 1.0, "zeros": 0.0, "ignore": UNKNOWN}  # of CheXpert's -1
BLANKS = {"zero": 0.0, "ignore": UNKNOWN}
_WORDS = {
    "": UNKNOWN, "nan": UNKNOWN, "na": UNKNOWN, "n/a": UNKNOWN, "<na>": UNKNOWN, "null": UNKNOWN,
    "true": 1.0, "yes": 1.0, "y": 1.0, "positive": 1.0, "present": 1.0,
    "false": 0.0, "no": 0.0, "n": 0.0, "negative": 0.0, "absent": 0.0,
}  # fmt: skip
_NUMBER = re.compile(r"(-?[01])([.,]0*)?")
# Columns of this name describe a patient or an image, whatever is in them.
_DESCRIPTIONS = re.compile(
    r"(patient |subject )?(age|sex|gender|race|ethnicity|height|width|weight|bmi)( .*)?|(view|projection|laterality|eye)( .*)?"
    r"|index|year|date|(.* )?id"
)


def label_of(text: str) -> float | None:
    """What a field says as a label: 0, 1, NaN for unknown, -1 for uncertain; None where it is no label."""
    value = text.lower()
    number = _NUMBER.fullmatch(value)
    return float(number[1]) if number else _WORDS.get(value)


def known(text: str) -> str:
    """What a field says that is no label: nothing where it is a word for what is not known, such as NA."""
    value = label_of(text)
    return "" if value is not None and np.isnan(value) else text


def read_labels(table: Table, names: Sequence[str], *, uncertain: str, blank: str, scheme: str) -> NDArray[np.float32]:
    """The labels of some columns.

    Args:
        table: n rows.
        names: k columns.
        uncertain: what -1 means: `ones`, `zeros` or `ignore`, for all columns or as `COLUMN=POLICY`, joined by commas.
        blank: what no label means: `zero` or `ignore`.
        scheme: for messages.

    Returns:
        (n, k): 0, 1, or NaN for unknown.

    Raises:
        UsageError: no such policy.
        WsurgeryError: no such column, or a value that is no label; it names the row.
    """
    empty = BLANKS[choose(scheme, "blank", blank, [*BLANKS])]
    meaning = _read_uncertain(scheme, uncertain, names)
    columns = [_read_column(table, name, meaning[name], empty) for name in names]
    return np.ascontiguousarray(np.array(columns, np.float32).reshape(len(names), -1).T)


def _read_column(table: Table, name: str, uncertain: float, blank: float) -> list[float]:
    values = table[name]
    label = {text: label_of(text) for text in set(values)}
    if None in label.values():
        row = next(row for row, text in enumerate(values) if label[text] is None)
        raise table.wrong(
            f"label {name!r} is {printable(values[row])!r}: a label is 0, 1 or empty; for classes or grades say class={name}",
            row,
        )
    meaning = {text: uncertain if x == UNCERTAIN else blank if x != x else x for text, x in label.items()}
    return [meaning[text] for text in values]  # type: ignore[misc]


def _read_uncertain(scheme: str, text: str, labels: Sequence[str]) -> dict[str, float]:
    """Read `POLICY` and `LABEL=POLICY`, joined by commas: what -1 means for every label; capitals do not matter."""
    by_name = {label.lower().replace("_", " "): label for label in labels}
    policies = dict.fromkeys(labels, UNKNOWN)
    for item in sorted(text.split(","), key=lambda item: "=" in item):  # the one for all labels first
        name, equals, policy = item.rpartition("=")
        value = POLICIES[choose(scheme, "uncertain", policy, [*POLICIES])]
        label = name.lower().replace("_", " ")
        chosen = [by_name[choose(scheme, "uncertain", label, [*by_name])]] if equals else labels
        policies.update(dict.fromkeys(chosen, value))
    return policies


def guess_labels(table: Table, names: Sequence[str]) -> list[str]:
    """The columns that are labels where nobody said which.

    A column of labels only is one, unless its name or other columns suggest that it may as well describe the image.

    Args:
        table: n rows.
        names: the columns that may be labels.

    Raises:
        WsurgeryError: there are none, or columns that could be either.
    """
    labels: list[str] = []
    others: list[str] = []
    unlike: dict[str, int] = {}  # column → a row that is no label
    for name in names:
        values = table[name]
        known = {text: label_of(text) for text in set(values)}
        describes = _DESCRIPTIONS.fullmatch(re.sub(r"[\W_]+", " ", name.lower()).strip()) is not None
        if None not in known.values():
            (others if describes else labels).append(name)
            if describes and any(x == x for x in known.values()):
                raise table.wrong(
                    f"column {name!r} could be a label or not: name the labels, ?labels=A,B behind the table's name"
                )
            continue
        unlike[name] = next(row for row, text in enumerate(values) if known[text] is None)
        if not describes and any(x is not None and x == x for x in known.values()):
            raise table.wrong(
                f"label {name!r} is {printable(values[unlike[name]])!r}: a label is 0, 1 or empty; if it is none, "
                "name the labels, ?labels=A,B behind the table's name",
                unlike[name],
            )
        others.append(name)
    if not labels:
        row = unlike.get(others[0]) if others else None
        first = "" if row is None else f": {others[0]!r} is {printable(table[others[0]][row])!r}"
        raise table.wrong(f"there are no labels, columns with 0, 1 or nothing in each row{first}{table.described}", row)
    if others and len(labels) > 1:
        raise table.wrong(
            f"beside {', '.join(others)} any column could be no label: name those that are, "
            f"?labels={','.join(map(quote, labels))} behind the table's name"
        )
    return labels


def class_labels(
    values: Sequence[str], *, positive: str = "", ordinal: bool = False, order: str = "", scheme: str
) -> tuple[NDArray[np.float32], tuple[str, ...], tuple[str, ...]]:
    """Labels of classes of which each image has one.

    Args:
        values: (n,) the class; empty where it is not known.
        positive: classes, joined by commas, that are one label, which is 0 for all others.
        ordinal: the classes are grades, and a label says that one is reached.
        order: the classes from the lowest, joined by commas.
        scheme: for messages.

    Returns:
        The labels, (n, k): 0, 1, or NaN where the class is not known; their names; and what is to be said of them.

    Raises:
        UsageError: fewer than two classes, one that is not there, or grades whose order is not known.
    """
    classes = in_order(scheme, sorted(set(values) - {""}), order, ordinal=ordinal)
    if len(classes) < 2:
        raise UsageError(f"{scheme}: there are {len(classes)} classes: two are needed")
    if not positive:
        number = {name: i for i, name in enumerate(classes)}
        labels, names = grade_labels([number.get(value) for value in values], classes, ordinal=ordinal)
        said = (order_of(classes),) if ordinal else ()
        return labels, names, said
    if ordinal:
        raise UsageError(f"{scheme}: positive= makes one label, ordinal=true one for each grade: leave one out")
    ill = names_in(positive)
    for name in ill:
        choose(scheme, "positive", name, classes)
    if set(ill) == set(classes):
        raise UsageError(f"{scheme}: positive={printable(positive)} is all classes: leave one out")
    column = [UNKNOWN if not value else float(value in ill) for value in values]
    sides = [name for name in classes if name in ill], [name for name in classes if name not in ill]
    note = "; ".join(f"{printable(', '.join(side), 300)}: {value}" for side, value in zip(sides, (1, 0), strict=True))
    return np.array(column, np.float32)[:, None], ("_or_".join(ill),), (note,)


def finding_labels(
    values: Sequence[str], terms: Mapping[str, str], *, strict: Table | None = None
) -> NDArray[np.float32]:
    """Labels of lists of findings.

    Args:
        values: (n,) findings joined by `|` or `,`, or a Python list of them; empty or `nan` where they are not known.
        terms: k labels → regular expressions, in lower case, that a whole finding matches which is one.
        strict: the table they are from: a finding that is no label is an error of it.

    Returns:
        (n, k): 0, 1, or NaN where the findings are not known.

    Raises:
        WsurgeryError: a finding that is no label.
    """
    patterns = [re.compile(term) for term in terms.values()]
    known: dict[str, NDArray[np.float32]] = {}
    hits: dict[str, list[bool]] = {}
    rows = np.full((len(values), len(patterns)), UNKNOWN, np.float32)
    for row, text in enumerate(values):
        if label_of(text) is not None and label_of(text) != label_of(text):
            continue
        if text not in known:
            found = [False] * len(patterns)
            for finding in re.split(r"[|,，]", text.strip("[] ")):
                name = finding.strip(" '\"").lower()
                if name not in hits:
                    hits[name] = [pattern.fullmatch(name) is not None for pattern in patterns]
                if strict is not None and not any(hits[name]) and name != "no finding":
                    raise strict.wrong(f"there is no finding {printable(finding)!r}", row)
                found = [a or b for a, b in zip(found, hits[name], strict=True)]
            known[text] = np.array(found, np.float32)
        rows[row] = known[text]
    return rows


def merge_repeats(
    keys: Sequence[str], labels: NDArray[np.float32], how: str, *, classes: Sequence[str] = ()
) -> tuple[list[int], NDArray[np.float32], tuple[str, ...]]:
    """Join the rows of one image.

    Args:
        keys: (n,) the image.
        labels: (n, k): 0, 1, or NaN for unknown.
        how: a label of the image is 1 where `any` of its known rows says so, or at least half, the `majority`.
        classes: (n,) the class that each row's labels are of, empty where it is not known. The `majority` has the labels of
            the class of most rows, and unknown ones where several have as many, and not all of them the same labels.

    Returns:
        The first row of each of the m images, their labels, (m, k), and what is to be said of rows that were joined.
    """
    first: dict[str, int] = {}
    image = np.array([first.setdefault(key, len(first)) for key in keys], np.int64)
    rows: list[int] = np.unique(image, return_index=True)[1].tolist()
    known = np.zeros((len(rows), labels.shape[1]), np.float32)
    ones = np.zeros_like(known)
    np.add.at(known, image, ~np.isnan(labels))
    np.add.at(ones, image, labels == 1)
    if classes and how == "majority":
        merged = _of_most(image.tolist(), classes, labels, len(rows))
    else:
        yes = 2 * ones >= known if how == "majority" else ones > 0
        merged = np.where(known > 0, yes, np.nan).astype(np.float32)
    disagree = int(((ones > 0) & (ones < known)).any(axis=1).sum())
    joined = f"{len(keys) - len(rows)} rows were joined with others of their images, of which {disagree} disagree: {how} counts"
    return rows, merged, (joined,) if len(rows) < len(keys) else ()


def _of_most(
    image: Sequence[int], classes: Sequence[str], labels: NDArray[np.float32], n_images: int
) -> NDArray[np.float32]:
    counts = [Counter[str]() for _ in range(n_images)]
    row_of: dict[str, int] = {}
    for row, (i, name) in enumerate(zip(image, classes, strict=True)):
        if name:
            row_of.setdefault(name, row)
            counts[i][name] += 1
    merged = np.full((n_images, labels.shape[1]), np.nan, np.float32)
    for i, count in enumerate(counts):
        most = [labels[row_of[name]] for name, times in count.items() if times == max(count.values())]
        if most and all(np.array_equal(most[0], other) for other in most):
            merged[i] = most[0]
    return merged


def plain_number(text: str) -> str:
    """A grade as a whole number, where a data frame with gaps made it a fraction."""
    return re.sub(r"(?<=\d)\.0+$", "", text)


def check_names(scheme: str, names: Sequence[str], reserved: Sequence[str]) -> None:
    """Refuse labels with the name of another column of a manifest.

    Raises:
        WsurgeryError: one has.
    """
    clash = set(names) & set(reserved)
    if clash:
        raise WsurgeryError(f"{scheme}: no label can be named {min(clash)}: rename the class or column")
