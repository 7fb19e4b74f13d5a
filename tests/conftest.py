"""What all tests share: one thread, since they run side by side and sums are then the same on every machine, and one
salt, since who of a dozen patients is held out hangs on it, and so whether they are enough. No test is timed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SALT = "6c" * 32


@pytest.fixture(scope="session", autouse=True)
def one_salt() -> Iterator[None]:
    """Indexes and caches that a test makes in its own process have the same new salt in every run of the tests."""
    from lejepa_med.data import privacy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy, "secrets", SimpleNamespace(token_hex=lambda size: SALT[: 2 * size]))
        yield


@pytest.fixture
def salts_of_users(one_salt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the salt itself: drawn, as users have it."""
    from lejepa_med.data import privacy

    monkeypatch.setattr(privacy, "secrets", secrets)
