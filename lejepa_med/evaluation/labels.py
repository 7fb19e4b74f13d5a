"""Label files joined to the cache: which series make up a labelled sample, and which samples belong to one patient.

A sample is a series, or all labelled series of a study or of a patient. Sites and ids are forgotten here: what leaves
this module names series, studies and patients by their keys, and sites by numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lejepa_med.config.tasks import TaskConfig
from lejepa_med.data.cache import Cache
from lejepa_med.data.privacy import patient_key, read_salt
from lejepa_med.errors import DataError
from lejepa_med.evaluation.label_files import id_column, read_label_file, require_column, rows_named
from lejepa_med.evaluation.mask_labels import foreground_classes
from lejepa_med.evaluation.targets import Kind, Target, targets_of

Unit = Literal["series", "study", "patient"]
Side = Literal["train", "val", "test"]
_SIDES: dict[str, Side] = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SIDES |= {"test": "test", "testing": "test"}
_NAMED = 5  # keys that a message names at most
_KEYS = {"series": "series_key", "study": "study_key", "patient": "patient_key"}


@dataclass(frozen=True)
class LabelledSet:
    """Labelled samples, and the rows of the cache's table (`table`, one per series) that they are made of.

    `target` and `classes` are those of `Targets`, `groups` the patient of every sample; `sample_of` [row of table] is
    the sample that a series belongs to (with `unit: series` its own row). `missing` rows of the label file had no
    value, `unmatched` ids are not in the cache. `sides` is the official split, `sites` a name per site, if asked for.
    """

    task: str
    kind: Kind
    table: pd.DataFrame
    target: Target
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    missing: int
    unmatched: int
    sample_of: NDArray[np.int64]
    unit: Unit = "series"
    sides: tuple[Side, ...] | None = None
    sites: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """Series keys of every sample."""
        found: list[list[str]] = [[] for _ in self.groups]
        for sample, key in zip(self.sample_of, self.table["series_key"], strict=True):
            found[sample].append(str(key))
        return tuple(map(tuple, found))

    def mean_over_members(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Features of samples from those of `table`'s rows; as they are where every sample is one series."""
        if self.unit == "series":
            return features
        total = np.zeros((len(self), features.shape[1]))
        np.add.at(total, self.sample_of, features)
        return np.asarray(total / np.bincount(self.sample_of, minlength=len(self))[:, None])


def load_labels(task: TaskConfig, table: pd.DataFrame, index: Path | None) -> LabelledSet:
    """The samples of `table` (the cache's manifest) that the label file names, with their labels.

    Raises:
        DataError: nothing matches, labels contradict each other, or there is nothing to tell apart.
    """
    frame = read_label_file(task)
    column, _ = id_column(task, frame)
    extra = {"group": task.group_column, "side": task.split_column, "site": task.site_column}
    for name in (*task.label_columns, *filter(None, extra.values())):
        require_column(task, frame, name)
    wanted = list(task.label_columns)
    labelled = frame[frame[wanted].notna().any(axis=1) & frame[column].notna()].reset_index(drop=True)
    if labelled.empty:
        listed = ", ".join(f"`{name}`" for name in wanted)
        raise DataError(f"task {task.name}: all {len(frame)} rows lack a value in column {listed} or an id")
    named = rows_named(task, labelled, table, index)
    key = str(named["key_column"].iloc[0])
    rows = table[table[key].isin(set(named["id"]))].reset_index(drop=True)
    sample_of = _samples(task.unit, rows)
    texts = labelled[wanted].copy()
    for name, source in extra.items():
        texts[f"_{name}"] = labelled[source] if source is not None else None
    texts = texts.iloc[named["row"]].assign(_id=named["id"].to_numpy())
    series = pd.DataFrame({"_id": rows[key], "_sample": sample_of, "_series": rows["series_key"]})
    series["_patient"] = rows["patient_key"]
    given = _by_sample(task, texts.merge(series, on="_id"))
    found = targets_of(task, given[wanted])
    groups = _groups(task, given, index)
    matched = labelled[column].iloc[named["row"].unique()].nunique()
    return LabelledSet(
        task=task.name,
        kind=found.kind,
        table=rows,
        target=found.target,
        classes=found.classes,
        groups=groups,
        missing=len(frame) - len(labelled),
        unmatched=int(labelled[column].nunique() - matched),
        sample_of=sample_of,
        unit=task.unit,
        sides=_sides(task, given["_side"], groups),
        sites=_sites(task, given["_site"], groups),
    )


def with_masks(task: TaskConfig, table: pd.DataFrame, cache: Cache) -> LabelledSet:
    """The rows of `table` that have a mask, as the samples of a segmentation task; targets are zeros.

    Raises:
        DataError: no row has one, or the cache does not say what the masks' values mean.
    """
    masked = table["mask_entry"].fillna("") != "" if "mask_entry" in table else np.zeros(len(table), dtype=bool)
    rows = table[masked].reset_index(drop=True)
    if rows.empty:
        raise DataError(
            f"task {task.name}: none of the {len(table)} series in the cache has a mask; prepare it with masks"
        )
    known = rows["patient_key"].where(rows["patient_key"].fillna("") != "", rows["series_key"])
    zeros = np.zeros(len(rows), dtype=np.int64)
    groups = tuple(map(str, known))
    return LabelledSet(
        task.name, "segmentation", rows, zeros, tuple(foreground_classes(cache).values()), groups,
        len(table) - len(rows), 0, np.arange(len(rows)),
    )  # fmt: skip


def _samples(unit: Unit, rows: pd.DataFrame) -> NDArray[np.int64]:
    """Sample numbers, in the order in which samples occur. A series without study or patient is its own."""
    key = rows[_KEYS[unit]].where(rows[_KEYS[unit]].fillna("") != "", rows["series_key"])
    return np.asarray(pd.factorize(key)[0], dtype=np.int64)


def _by_sample(task: TaskConfig, merged: pd.DataFrame) -> pd.DataFrame:
    """One row per sample: the texts of its label rows, which must agree, and its first series and patient."""
    grouped = merged.groupby("_sample")
    for names, what in ((task.label_columns, "labels"), (("_group",), "groups"), (("_side",), "sides"),
                        (("_site",), "sites")):  # fmt: skip
        count = int((grouped[list(names)].nunique() > 1).any(axis=1).sum())
        if count:
            raise DataError(
                f"task {task.name}: {count} samples carry two different {what}; keep one row of each in the label file"
            )
    found = merged.sort_values("_series", kind="stable").groupby("_sample").first()
    return found.astype(object).reset_index(drop=True)


def _groups(task: TaskConfig, given: pd.DataFrame, index: Path | None) -> tuple[str, ...]:
    """The patient of every sample. Without a salt, a group of the label file is named by its first series.

    A sample without a group takes that of the others of its patient in the index, who would be two persons otherwise.
    """
    own = given["_patient"].where(given["_patient"].fillna("") != "", given["_series"])
    named = given["_group"]
    if index is not None and named.notna().any():
        salt = read_salt(index)
        named = named.map(lambda text: patient_key(salt, text), na_action="ignore")
    elif named.notna().any():
        named = given.groupby("_group")["_series"].transform("min").where(named.notna())
    of_patient = named.groupby(own).agg(["nunique", "first"]).reindex(own).set_index(named.index)
    unclear = int((named.isna() & (of_patient["nunique"] > 1)).sum())
    if unclear:
        raise DataError(
            f"task {task.name}: {unclear} samples have nothing in column `{task.group_column}`, where others of their "
            "patient in the index have several values; fill it in"
        )
    named = named.fillna(of_patient["first"])
    return tuple(str(key) for key in named.where(named.notna(), own))


def _sides(task: TaskConfig, texts: pd.Series, groups: tuple[str, ...]) -> tuple[Side, ...] | None:
    if task.split_column is None:
        return None
    sides = texts.map(lambda text: _SIDES.get(str(text).lower()))
    wrong = int(sides.isna().sum())
    if wrong:
        raise DataError(
            f"task {task.name}: {wrong} of {len(sides)} samples have something else than train, val or test in column "
            f"`{task.split_column}`"
        )
    tested = {group for group, side in zip(groups, sides, strict=True) if side == "test"}
    both = sorted(tested & {group for group, side in zip(groups, sides, strict=True) if side != "test"})
    if both:
        raise DataError(
            f"task {task.name}: {len(both)} patients are in test and also in train or val of column "
            f"`{task.split_column}` (keys {named_keys(both)}); every patient must be on one side"
        )
    return tuple(sides)


def _sites(task: TaskConfig, texts: pd.Series, groups: tuple[str, ...]) -> tuple[str, ...] | None:
    """A name per site that is not the text of the file; a patient without a site is a site of its own."""
    if task.site_column is None:
        return None
    names = [
        f"patient {group}" if pd.isna(text) else hashlib.sha256(f"site {text}".encode()).hexdigest()
        for text, group in zip(texts, groups, strict=True)
    ]
    sites = pd.Series(names).groupby(list(groups)).nunique()
    wanderers = sorted(map(str, sites.index[sites > 1]))
    if wanderers:
        raise DataError(
            f"task {task.name}: {len(wanderers)} patients have scans of two sites in column `{task.site_column}` "
            f"(keys {named_keys(wanderers)}); give every patient one site"
        )
    return tuple(names)


def named_keys(keys: Sequence[str]) -> str:
    """The first keys of a list, as a message names them."""
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
