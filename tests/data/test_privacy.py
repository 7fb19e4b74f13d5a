"""Keys: stable, salted, and the only thing that leaves the archive."""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lejepa_med.data.privacy import keyed_hash, load_salt, patient_key
from lejepa_med.errors import DataError


@pytest.mark.usefixtures("salts_of_users")
def test_the_salt_is_made_once_and_private(tmp_path: Path) -> None:
    salt = load_salt(tmp_path / "index")
    assert load_salt(tmp_path / "index") == salt and len(bytes.fromhex(salt.decode())) == 32
    assert stat.S_IMODE((tmp_path / "index" / "salt").stat().st_mode) == 0o600
    assert load_salt(tmp_path / "other") != salt


def test_a_damaged_salt_is_an_error_not_a_new_salt(tmp_path: Path) -> None:
    (tmp_path / "salt").write_text("zz")
    with pytest.raises(DataError, match="salt"):
        load_salt(tmp_path)


def test_it_is_hmac_sha256() -> None:
    message = (3).to_bytes(8, "big") + b"abc"
    assert keyed_hash(b"s" * 64, "abc") == hmac.new(b"s" * 64, message, hashlib.sha256).hexdigest()[:16]


@given(st.lists(st.text(max_size=4), max_size=3), st.lists(st.text(max_size=4), max_size=3))
def test_different_parts_have_different_keys(first: list[str], second: list[str]) -> None:
    assert (keyed_hash(b"s", *first) == keyed_hash(b"s", *second)) == (first == second)


def test_patient_ids_ignore_the_padding_of_headers() -> None:
    assert patient_key(b"s", "12 ") == patient_key(b"s", "12") != patient_key(b"t", "12")
