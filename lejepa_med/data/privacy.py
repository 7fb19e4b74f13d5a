"""How identities leave the archive: as salted hashes only.

INDEX/salt    32 random bytes in hex, mode 600; whoever holds it can recompute keys from ids
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from lejepa_med.errors import DataError


def load_salt(folder: Path) -> bytes:
    """The salt of an index folder; made on first use."""
    path = folder / "salt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_private(path, secrets.token_hex(32).encode())
    return read_salt(folder)


def read_salt(folder: Path) -> bytes:
    """The salt of an existing index folder."""
    try:
        salt = (folder / "salt").read_bytes().strip()
        bytes.fromhex(salt.decode("ascii"))
    except (OSError, ValueError):
        salt = b""
    if len(salt) < 32:
        raise DataError(f"{folder}: its file `salt` is missing or damaged; run `index` again or restore the file")
    return salt


def keyed_hash(salt: bytes, *parts: str) -> str:
    """HMAC-SHA256 of the parts, 16 hex digits; parts are delimited, so ("ab", "c") differs from ("a", "bc")."""
    message = b"".join(len(data).to_bytes(8, "big") + data for data in (part.encode() for part in parts))
    return hmac.digest(salt, message, "sha256").hex()[:16]


def patient_key(salt: bytes, patient_id: str) -> str:
    """The key of a patient, from the id in DICOM headers, a label file or a `patients` table."""
    return keyed_hash(salt, "patient", patient_id.strip())


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, by a temporary name and a rename."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
