"""Rules of an index: every limit at its border, what the shipped configs keep, and what no rule may ever do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lejepa_med.config import ConfigError, load_config, validate
from lejepa_med.config.indexing import BodyPart, IndexSettings, Sequence
from lejepa_med.data.index.entry import Entry
from lejepa_med.data.index.rules import extent_mm, judge
from lejepa_med.data.vocabulary import BODY_PARTS, FLAGS, SEQUENCES, VOLUME_REASONS

CONFIGS = Path(__file__).parents[2] / "configs" / "index"
DOCS = Path(__file__).parents[2] / "docs" / "dicom_rules.md"

OF_READING = ("version", "patients", "compute")

CHEST = Entry(
    "a" * 16, "", frozenset(), "dicom", (), modality="ct", body_part="chest", shape=(512, 512, 300),
    spacing_mm=(0.7, 0.7, 1.0), orientation="LPS", num_slices=300,
)  # fmt: skip
BRAIN = Entry(
    "b" * 16, "", frozenset(), "dicom", (), modality="mri", body_part="head", sequence="t1", shape=(256, 256, 176),
    spacing_mm=(1.0, 1.0, 1.0), orientation="PSR", num_slices=176,
)  # fmt: skip
PICTURE = Entry("c" * 16, "", frozenset(), "image", (), modality="image", shape=(512, 400), num_slices=1)


def reason(entry: Entry, **settings: Any) -> str:
    return judge(entry, IndexSettings.model_validate(settings)).reason


def test_the_defaults_take_a_scan_as_it_is() -> None:
    for entry in (CHEST, BRAIN, PICTURE):
        assert judge(entry, IndexSettings()) == entry


def test_words_of_the_settings_are_those_of_the_index() -> None:
    assert get_args(BodyPart) == BODY_PARTS
    assert get_args(Sequence) == SEQUENCES


def test_words_of_the_index_are_in_the_docs() -> None:
    table = DOCS.read_text()
    for word, meaning in {**VOLUME_REASONS, **FLAGS}.items():
        assert f"| `{word}` |" in table, word
        assert meaning, word


def test_every_rule_is_explained() -> None:
    page = DOCS.with_name("index_rules.md").read_text()
    assert not [name for name in IndexSettings.model_fields if name not in OF_READING and f"`{name}`" not in page]


@pytest.mark.parametrize(
    ("setting", "least_kept", "first_rejected", "axis", "expected"),
    [
        ({"max_in_plane_mm": 0.7}, 0.7007, 0.702, 0, "spacing_out_of_limits"),
        ({"max_in_plane_mm": 0.7}, 0.7007, 0.702, 1, "spacing_out_of_limits"),
        ({"min_in_plane_mm": 0.7}, 0.6994, 0.698, 0, "spacing_out_of_limits"),
        ({"min_in_plane_mm": 0.7}, 0.6994, 0.698, 1, "spacing_out_of_limits"),
        ({"max_slice_distance_mm": 5.0}, 5.004, 5.01, 2, "spacing_out_of_limits"),
        ({"min_slice_distance_mm": 0.5}, 0.4996, 0.499, 2, "spacing_out_of_limits"),
        ({"min_extent_mm": [358.4, 0, 0]}, 0.7, 0.699, 0, "extent_too_small"),
        ({"min_extent_mm": [0, 358.4, 0]}, 0.7, 0.699, 1, "extent_too_small"),
        ({"min_extent_mm": [0, 0, 210]}, 0.7, 0.699, 2, "extent_too_small"),
    ],
)
def test_limits_in_mm_at_their_border(
    setting: dict[str, Any], least_kept: float, first_rejected: float, axis: int, expected: str
) -> None:
    def with_side(length: float) -> Entry:
        sides = list(CHEST.spacing_mm)
        sides[axis] = length
        return replace(CHEST, spacing_mm=tuple(sides))

    assert reason(with_side(least_kept), **setting) == ""
    assert reason(with_side(first_rejected), **setting) == expected
    assert reason(with_side(first_rejected)) == ""


def test_counts_at_their_border() -> None:
    assert reason(CHEST, min_slices=300) == ""
    assert reason(CHEST, min_slices=301) == "too_few_slices"
    assert reason(replace(CHEST, shape=(512, 256, 300)), min_matrix=256) == ""
    assert reason(replace(CHEST, shape=(512, 255, 300)), min_matrix=256) == "matrix_too_small"
    assert reason(replace(CHEST, shape=(255, 512, 300)), min_matrix=256) == "matrix_too_small"
    assert reason(CHEST, max_voxels=512 * 512 * 300) == ""
    assert reason(CHEST, max_voxels=512 * 512 * 300 - 1) == "too_many_voxels"
    assert reason(replace(CHEST, shape=(60_000, 60_000, 3))) == "too_many_voxels"
    assert reason(replace(CHEST, shape=(60_000, 60_000, 3)), max_voxels=None) == ""


def test_the_extent_is_that_along_the_patient() -> None:
    assert extent_mm(CHEST) == pytest.approx((358.4, 358.4, 300))
    sagittal = replace(BRAIN, shape=(100, 200, 30), spacing_mm=(2.0, 1.5, 5.0), orientation="PSR")
    assert extent_mm(sagittal) == pytest.approx((150, 200, 300))
    coronal = replace(BRAIN, shape=(100, 200, 30), spacing_mm=(2.0, 1.5, 5.0), orientation="LIA")
    assert extent_mm(coronal) == pytest.approx((200, 150, 300))
    assert reason(coronal, min_extent_mm=[200, 150, 300]) == ""
    assert reason(coronal, min_extent_mm=[200, 151, 300]) == "extent_too_small"
    assert extent_mm(replace(coronal, orientation="LI?")) == pytest.approx((200, 0, 300))


def test_slices_of_files_are_across_their_largest_step() -> None:
    nifti = replace(BRAIN, source="nifti", shape=(30, 256, 256), spacing_mm=(5.0, 0.9, 0.9), orientation="RAS")
    assert reason(nifti, max_in_plane_mm=1, max_slice_distance_mm=5, min_matrix=256) == ""
    # A reformat in DICOM may have slices that lie closer than its pixels: the stack says which axis is which.
    dicom = replace(nifti, source="dicom", shape=(256, 30, 256), spacing_mm=(0.9, 5.0, 0.9))
    assert reason(dicom, max_in_plane_mm=1) == "spacing_out_of_limits"


def test_modalities_are_listed() -> None:
    assert reason(CHEST, modalities=["ct", "pet"]) == ""
    assert reason(CHEST, modalities=["mri"]) == "other_modality"
    unknown = replace(BRAIN, source="nifti", modality="unknown")
    assert reason(unknown, modalities=["mri"]) == "other_modality"
    assert reason(unknown, modalities=["mri", "unknown"]) == ""
    assert reason(PICTURE, modalities=["mri"]) == "other_modality"


def test_body_parts_that_headers_do_not_name() -> None:
    assert reason(CHEST, body_parts=["chest"]) == ""
    assert reason(CHEST, body_parts=["abdomen"]) == "other_body_part"
    silent = replace(CHEST, body_part="")
    kept = judge(silent, IndexSettings(body_parts=("abdomen",)))
    assert (kept.verdict, kept.flags) == ("flagged", {"body_part_unknown"})
    assert reason(silent, body_parts=["chest"], unknown_body_part="reject") == "body_part_unknown"
    assert judge(silent, IndexSettings(unknown_body_part="reject")) == silent


def test_sequences_are_of_mri_alone() -> None:
    assert reason(BRAIN, sequences=["t1"]) == ""
    assert reason(BRAIN, sequences=["t2", "flair"]) == "other_sequence"
    silent = replace(BRAIN, sequence="")
    assert judge(silent, IndexSettings(sequences=("t2",))).flags == {"sequence_unknown"}
    assert reason(silent, sequences=["t1"], unknown_sequence="reject") == "sequence_unknown"
    assert judge(CHEST, IndexSettings(sequences=("t2",), unknown_sequence="reject")) == CHEST


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("localizer", "keep_localizers"),
        ("derived_map", "keep_derived"),
        ("label_map", "accept_label_maps"),
        ("burned_in", "keep_burned_in"),
        ("reformatted", "keep_reformatted"),
        ("derived", "keep_marked_derived"),
        ("lossy", "keep_lossy"),
    ],
)
def test_kinds_are_kept_or_not(flag: str, setting: str) -> None:
    entry = CHEST.flagged(flag)
    assert judge(entry, IndexSettings.model_validate({setting: True})) == entry
    rejected = judge(entry, IndexSettings.model_validate({setting: False}))
    assert (rejected.verdict, rejected.reason, rejected.flags) == ("rejected", flag, {flag})
    assert reason(CHEST, **{setting: False}) == ""


def test_text_in_the_pixels_is_kept_and_flagged_unless_the_settings_refuse_it() -> None:
    assert judge(CHEST.flagged("burned_in"), IndexSettings()).verdict == "flagged"


def test_pictures_know_no_millimetres() -> None:
    strict = {
        "min_in_plane_mm": 1, "max_in_plane_mm": 1, "max_slice_distance_mm": 1, "min_extent_mm": [9, 9, 9],
        "min_slices": 50,
    }  # fmt: skip
    assert reason(PICTURE, **strict) == ""
    assert reason(PICTURE, min_matrix=400) == ""
    assert reason(PICTURE, min_matrix=401) == "matrix_too_small"


def test_the_first_reason_stays() -> None:
    scout = BRAIN.rejected("localizer")
    assert judge(scout, IndexSettings(modalities=("ct",), body_parts=("chest",))) is scout


def test_limits_that_leave_no_room_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"min_slice_distance_mm.*more than.*max_slice_distance_mm"):
        validate(IndexSettings, {"min_slice_distance_mm": 3, "max_slice_distance_mm": 2}, "x.yaml")
    for mistake in ({"modalities": []}, {"body_parts": ["toe"]}, {"sequences": ["t3"]}, {"min_extent_mm": [-1, 0, 0]}):
        with pytest.raises(ConfigError):
            validate(IndexSettings, mistake, "x.yaml")


def verdicts(config: str, entries: dict[str, Entry]) -> dict[str, str]:
    settings = load_config(IndexSettings, CONFIGS / f"{config}.yaml")
    judged = {name: judge(entry, settings) for name, entry in entries.items()}
    return {name: entry.reason or ";".join(sorted(entry.flags)) for name, entry in judged.items()}


def volume(like: Entry, shape: tuple[int, ...], spacing_mm: tuple[float, ...], **changes: Any) -> Entry:
    return replace(like, shape=shape, spacing_mm=spacing_mm, num_slices=shape[2], **changes)


def test_brain_mri_does_what_its_comments_say() -> None:
    assert verdicts(
        "brain_mri",
        {
            "mprage": BRAIN,
            "flair, 2D": volume(BRAIN, (512, 512, 24), (0.45, 0.45, 6.0), orientation="LPS"),
            "diffusion": volume(BRAIN, (128, 128, 30), (2.0, 2.0, 4.4), orientation="LPS", sequence="dwi"),
            "fmri": volume(BRAIN, (64, 64, 36), (3.5, 3.5, 3.5), orientation="LPS", sequence="bold"),
            "scout": volume(BRAIN, (256, 256, 5), (1.0, 1.0, 20.0), orientation="LPS"),
            "pituitary": volume(BRAIN, (256, 256, 14), (0.7, 0.7, 3.0), orientation="LIA"),
            "inner ear": volume(BRAIN, (512, 512, 64), (0.35, 0.35, 0.5), orientation="LPS"),
            "hippocampus": volume(BRAIN, (35, 50, 35), (1.0, 1.0, 1.0), orientation="RAS", source="nifti"),
            "knee": replace(BRAIN, body_part="extremity"),
            "silent": replace(BRAIN, body_part=""),
            "nifti": replace(BRAIN, body_part="", sequence="", source="nifti"),
            "head ct": replace(CHEST, body_part="head"),
            "text": BRAIN.flagged("burned_in"),
        },
    ) == {
        "mprage": "",
        "flair, 2D": "",
        "diffusion": "",
        "fmri": "spacing_out_of_limits",
        "scout": "too_few_slices",
        "pituitary": "extent_too_small",
        "inner ear": "extent_too_small",
        "hippocampus": "extent_too_small",
        "knee": "other_body_part",
        "silent": "body_part_unknown",
        "nifti": "body_part_unknown",
        "head ct": "other_modality",
        "text": "burned_in",
    }


def test_chest_ct_does_what_its_comments_say() -> None:
    assert verdicts(
        "chest_ct",
        {
            "thin lung": CHEST,
            "thick": volume(CHEST, (512, 512, 60), (0.8, 0.8, 5.0)),
            "large bore": volume(CHEST, (512, 512, 110), (1.37, 1.37, 3.0)),
            "of a PACS": CHEST.flagged("derived", "lossy"),
            "axial reformat": CHEST.flagged("derived", "reformatted"),
            "trunk": replace(CHEST, body_part="whole_body"),
            "silent": replace(CHEST, body_part=""),
            "abdomen": replace(CHEST, body_part="abdomen"),
            "heart": volume(CHEST, (512, 512, 280), (0.4, 0.4, 0.5), body_part="heart"),
            "heart called chest": volume(CHEST, (512, 512, 280), (0.4, 0.4, 0.5)),
            "one lung": volume(CHEST, (512, 512, 300), (0.35, 0.35, 1.0)),
            "old high resolution": volume(CHEST, (512, 512, 30), (0.7, 0.7, 10.0)),
            "bolus tracking": volume(CHEST, (512, 512, 3), (0.8, 0.8, 5.0)),
            "lung bases": volume(CHEST, (512, 512, 36), (0.8, 0.8, 5.0)),
            "projection": CHEST.flagged("derived_map"),
            "pet": replace(CHEST, modality="pet"),
            "text": CHEST.flagged("burned_in"),
        },
    ) == {
        "thin lung": "",
        "thick": "",
        "large bore": "",
        "of a PACS": "derived;lossy",
        "axial reformat": "derived;reformatted",
        "trunk": "",
        "silent": "body_part_unknown",
        "abdomen": "other_body_part",
        "heart": "other_body_part",
        "heart called chest": "extent_too_small",
        "one lung": "extent_too_small",
        "old high resolution": "spacing_out_of_limits",
        "bolus tracking": "too_few_slices",
        "lung bases": "extent_too_small",
        "projection": "derived_map",
        "pet": "other_modality",
        "text": "burned_in",
    }


def test_abdomen_ct_does_what_its_comments_say() -> None:
    abdomen = replace(CHEST, body_part="abdomen")
    assert verdicts(
        "abdomen_ct",
        {
            "abdomen and pelvis": volume(abdomen, (512, 512, 90), (0.8, 0.8, 5.0)),
            "liver, thin": volume(abdomen, (512, 512, 160), (0.7, 0.7, 1.0)),
            "pelvis": replace(abdomen, body_part="pelvis"),
            "silent": replace(abdomen, body_part=""),
            "chest": CHEST,
            "perfusion": volume(abdomen, (512, 512, 40), (0.8, 0.8, 3.0)),
            "spine": volume(abdomen, (512, 512, 300), (0.35, 0.35, 1.0)),
            "text": abdomen.flagged("burned_in"),
        },
    ) == {
        "abdomen and pelvis": "",
        "liver, thin": "",
        "pelvis": "",
        "silent": "body_part_unknown",
        "chest": "other_body_part",
        "perfusion": "extent_too_small",
        "spine": "extent_too_small",
        "text": "burned_in",
    }


def test_everything_keeps_everything() -> None:
    odd = {
        "scout": volume(BRAIN, (256, 256, 1), (1.0, 1.0, 20.0)).flagged("localizer"),
        "projection": CHEST.flagged("derived_map"),
        "labels": CHEST.flagged("label_map"),
        "text": CHEST.flagged("burned_in"),
        "huge": volume(CHEST, (4096, 4096, 4096), (0.01, 0.01, 0.01)),
        "unknown": replace(BRAIN, modality="unknown", body_part="", sequence=""),
        "icon": replace(PICTURE, shape=(8, 8)),
    }
    settings = load_config(IndexSettings, CONFIGS / "everything.yaml")
    assert {name: judge(entry, settings) for name, entry in odd.items()} == odd


# --- what no rule may ever do

optional_mm = st.none() | st.floats(0.1, 10)
settings_strategy = st.builds(
    IndexSettings,
    modalities=st.none() | st.lists(st.sampled_from(["mri", "ct", "image", "unknown"]), min_size=1).map(tuple),
    body_parts=st.none() | st.lists(st.sampled_from(["head", "chest"]), min_size=1).map(tuple),
    unknown_body_part=st.sampled_from(["keep", "reject"]),
    sequences=st.none() | st.lists(st.sampled_from(["t1", "t2"]), min_size=1).map(tuple),
    unknown_sequence=st.sampled_from(["keep", "reject"]),
    max_in_plane_mm=optional_mm,
    max_slice_distance_mm=optional_mm,
    min_extent_mm=st.tuples(*[st.floats(0, 300)] * 3),
    min_matrix=st.integers(1, 300),
    min_slices=st.integers(1, 40),
    max_voxels=st.none() | st.integers(1, 10**8),
    **{
        name: st.booleans()
        for name in ("keep_marked_derived", "keep_reformatted", "keep_lossy", "keep_burned_in", "keep_derived")
    },
)
entries = st.fixed_dictionaries(
    {
        "series_key": st.just("d" * 16),
        "reason": st.sampled_from(["", "", "", "localizer", "other_modality"]),
        "flags": st.frozensets(
            st.sampled_from(["derived", "lossy", "burned_in", "reformatted", "derived_map", "mosaic"])
        ),
        "source": st.sampled_from(["dicom", "nifti", "image"]),
        "files": st.just(()),
        "modality": st.sampled_from(["mri", "ct", "pet", "unknown"]),
        "body_part": st.sampled_from(["", "head", "chest", "heart"]),
        "sequence": st.sampled_from(["", "t1", "t2", "dwi"]),
        "shape": st.tuples(*[st.integers(1, 600)] * 3),
        "spacing_mm": st.tuples(*[st.floats(0.1, 10)] * 3),
        "orientation": st.sampled_from(["LPS", "RAS", "PSR", "LIA", "RA?"]),
        "num_slices": st.integers(1, 600),
    }
)


def built(values: dict[str, Any]) -> Entry:
    """Not within the strategy: type checks draw random numbers there."""
    if values["source"] != "image":
        return Entry(**values)
    picture = {"modality": "image", "shape": values["shape"][:2], "spacing_mm": (), "orientation": "", "num_slices": 1}
    return Entry(**{**values, **picture})


@given(entries, settings_strategy)
def test_a_rule_never_takes_back_a_rejection_or_a_flag(values: dict[str, Any], settings: IndexSettings) -> None:
    entry = built(values)
    once = judge(entry, settings)
    assert once.flags >= entry.flags
    assert not entry.reason or once.reason == entry.reason
    assert judge(once, settings) == once
    assert once.reason in {"", *VOLUME_REASONS}
    assert replace(once, reason=entry.reason, flags=entry.flags) == entry


def stricter(first: IndexSettings, second: IndexSettings) -> IndexSettings:
    """Settings at least as strict as both."""

    def least(a: Any, b: Any, choose: Any) -> Any:
        return choose(value for value in (a, b) if value is not None) if (a, b) != (None, None) else None

    def common(a: Any, b: Any) -> Any:
        return tuple(set(a) & set(b)) or a if a is not None and b is not None else a or b

    changes: dict[str, Any] = {}
    for name in ("modalities", "body_parts", "sequences"):
        changes[name] = common(getattr(first, name), getattr(second, name))
    for name in ("max_in_plane_mm", "max_slice_distance_mm", "max_voxels"):
        changes[name] = least(getattr(first, name), getattr(second, name), min)
    for name in ("min_matrix", "min_slices"):
        changes[name] = max(getattr(first, name), getattr(second, name))
    changes["min_extent_mm"] = tuple(map(max, first.min_extent_mm, second.min_extent_mm))
    for name in ("unknown_body_part", "unknown_sequence"):
        changes[name] = "reject" if "reject" in (getattr(first, name), getattr(second, name)) else "keep"
    for name in IndexSettings.model_fields:
        if name.startswith("keep_") and isinstance(getattr(first, name), bool):
            changes[name] = getattr(first, name) and getattr(second, name)
    return first.model_copy(update=changes)


@given(entries, settings_strategy, settings_strategy)
def test_stricter_settings_never_accept_more(
    values: dict[str, Any], first: IndexSettings, second: IndexSettings
) -> None:
    entry = built(values)
    if judge(entry, first).reason:
        assert judge(entry, stricter(first, second)).reason
