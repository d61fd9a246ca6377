"""The connection to Ray where there is none."""

import pytest
import ray

from glo_core.common.errors import UserError
from pipelines.common.ray_session import ray_session


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_where_nothing_listens_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # Other tests may have connected this process.
    monkeypatch.setenv("RAY_ADDRESS", address)
    line = f"RAY_ADDRESS={address}: cannot connect to a Ray cluster there .*refused"
    with pytest.raises(UserError, match=line), ray_session():
        pytest.fail("connected to nothing")
