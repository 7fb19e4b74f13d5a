"""Decoders are tried on real frames: what fails, or gives other pixels, is found."""

from __future__ import annotations

import pytest

from lejepa_med.data.dicom import codestream, decoders
from lejepa_med.data.dicom.decoders import SYNTAXES, pixels, try_decoders


def test_every_transfer_syntax_is_decoded_here() -> None:
    assert try_decoders() == {syntax.name: "works" for syntax in SYNTAXES}
    assert len({syntax.name for syntax in SYNTAXES}) == len({syntax.uid for syntax in SYNTAXES}) == 13


def test_frames_use_more_than_8_bits_where_they_say_so() -> None:
    assert (pixels(12).max(), pixels(8).max()) == (3750, 210)


def test_a_decoder_that_is_there_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("libopenjp2.so.7: cannot open shared object file")

    monkeypatch.setattr(codestream, "decode_one", broken)
    found = try_decoders()
    assert {name for name, outcome in found.items() if outcome == "works"} == {
        "implicit little endian", "explicit little endian", "explicit big endian", "deflated"
    }  # fmt: skip
    assert set(found.values()) == {"works", "fails"}


def test_a_decoder_that_gives_other_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    real = decoders.stored_values
    monkeypatch.setattr(decoders, "stored_values", lambda frames: [image + 41 for image in real(frames)])
    assert set(try_decoders().values()) == {"wrong values"}
