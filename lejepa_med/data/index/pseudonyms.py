"""What may be kept of a header: identities and free texts become salted hashes, times seconds from a secret zero.

Equal texts stay equal and numbers and times keep their order, so that grouping and assembly decide as they would on
the header itself. Words of the closed vocabularies and short numbers are kept as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from lejepa_med.data import vocabulary
from lejepa_med.data.dicom.frame import Frame
from lejepa_med.data.dicom.kinds import REFORMATS
from lejepa_med.data.privacy import keyed_hash, patient_key

_IDENTITIES = frozenset(
    ("path", "sop_uid", "series_uid", "study_uid", "patient_id", "frame_of_reference", "time")
)  # treated by name below; every other text by what it says
_IMAGE_TYPES = frozenset(
    ("ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "OTHER", "MOSAIC", "NONE", "M", "P", "R", "I",
     "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "NORM", "DIFFUSION", "VOLUME", "T1", "T2", "PROTON_DENSITY", "DYNAMIC",
     "STATIC", "GATED", "WHOLE BODY", "IMAGE", "EMISSION", "TRANSMISSION", "MIP", "MPR")
)  # fmt: skip
_WORDS = frozenset(
    {"image", "mri", "ct", "pet", *vocabulary.REASONS, *vocabulary.FLAGS, *vocabulary.SEQUENCES, *vocabulary.BODY_PARTS}
    | _IMAGE_TYPES
    | REFORMATS
)
_SHORT_NUMBER = re.compile(r"[-+]?\d{0,7}(\.\d{0,6})?(e[-+]?\d{1,2})?", re.IGNORECASE)
_TIME = re.compile(r"(\d{8})?(\d{2})(\d{2})?(\d{2})?(\.\d{1,6})?(?:[-+]\d{4})?", re.ASCII)
_MAX_SHIFT = 10**9


@dataclass(frozen=True)
class Pseudonyms:
    """The names that one salt gives."""

    salt: bytes

    def frame(self, frame: Frame, relative: str) -> Frame:
        """The same frame without path, identities, dates and free texts; `relative` is where its file is."""
        changes: dict[str, Any] = {name: self._value(getattr(frame, name)) for name in _TEXTS}
        changes |= _OTHERS
        return dataclasses.replace(
            frame,
            **changes,
            path="",
            sop_uid=keyed_hash(self.salt, "instance", frame.sop_uid) if frame.sop_uid else "",
            series_uid=self.series(frame.series_uid, relative),
            study_uid=self.study(frame.study_uid),
            patient_id=self.patient(frame.patient_id),
            frame_of_reference=_hashed(self.salt, "space", frame.frame_of_reference),
            time=self.time(frame.time),
        )

    def patient(self, patient_id: str) -> str:
        """The key of a patient, empty where none is named."""
        return patient_key(self.salt, patient_id) if patient_id.strip() else ""

    def study(self, study_uid: str) -> str:
        """The key of a study, empty where none is named."""
        return _hashed(self.salt, "study", study_uid)

    def series(self, series_uid: str, relative: str) -> str:
        """The hash of a series UID; where there is none, that of the folder."""
        if series_uid:
            return _hashed(self.salt, "series", series_uid)
        return _hashed(self.salt, "folder", relative.rpartition("/")[0] or ".")

    def time(self, text: str) -> str:
        """A DICOM time or date and time as seconds from a secret zero, to keep order and no date."""
        seconds = _seconds(text.strip().replace(":", ""))
        if seconds is None:
            return "x" + _hashed(self.salt, "time", text) if text else ""
        return str(seconds + _shift(self.salt))

    def seconds_of_day(self, time: str) -> float:
        """The time of day of what `time` gave, NaN where it is none; for comparisons, not for keeping."""
        try:
            return float((Decimal(time) - _shift(self.salt)) % 86_400)
        except InvalidOperation:
            return math.nan

    def word(self, text: str) -> str:
        """A known word or a short number as it is, a long number shifted, anything else hashed."""
        return _word(self.salt, text)

    def _value(self, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return self.word(value)
        return tuple(self.word(part) for part in value)


_TYPES = {field.name: str(field.type) for field in dataclasses.fields(Frame) if field.name not in _IDENTITIES}
_TEXTS = tuple(name for name, type_ in _TYPES.items() if type_ in ("str", "tuple[str, ...]"))
_NUMBERS = ("int", "float", "Vector", "tuple[int, ...]", "tuple[float, ...]")
_OTHERS = {  # emptied
    field.name: field.default
    for field in dataclasses.fields(Frame)
    if field.name in _TYPES and field.name not in _TEXTS and _TYPES[field.name] not in _NUMBERS
}


@functools.lru_cache(maxsize=4096)
def _hashed(salt: bytes, kind: str, text: str) -> str:
    return keyed_hash(salt, kind, text) if text else ""


@functools.lru_cache(maxsize=4)
def _shift(salt: bytes) -> int:
    return _MAX_SHIFT + int(keyed_hash(salt, "zero of time"), 16) % _MAX_SHIFT


@functools.lru_cache(maxsize=8192)
def _word(salt: bytes, text: str) -> str:
    if text in _WORDS:
        return text
    parts = re.split(r"([/;\\])", text)  # as in echo number/echo time, or the three parts of a direction
    numbers = [part if part in "/;\\" else _number(salt, part) for part in parts]
    known = [part for part in numbers if part is not None]
    return "".join(known) if len(known) == len(numbers) else "x" + keyed_hash(salt, "text", text)


def _number(salt: bytes, text: str) -> str | None:
    """A number that is too short for a date or an id as it is, a longer one shifted; None for other texts."""
    if _SHORT_NUMBER.fullmatch(text):
        return text
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    if not value.is_finite() or abs(value.adjusted()) > 15:
        return None
    return str(value + _shift(salt)) if abs(value) >= 10**7 else str(round(float(text), 6))


def _seconds(text: str) -> Decimal | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    date, hours, minutes, seconds, fraction = found.groups()  # the zone is left out: other times do not tell theirs
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 60:
        return None
    total = Decimal(3600 * int(hours) + 60 * int(minutes or 0) + int(seconds or 0)) + Decimal(fraction or 0)
    if date:
        try:
            day = datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC)
        except ValueError:
            return None
        total += int(day.timestamp())
    return total
