"""The local host that the tests of fetching ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http_server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving() as host:
        yield host
