"""Who a visitor is for the limits, and what becomes of their uploads."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cnn_demo.ui import visitors
from cnn_demo.ui.visitors import clean_uploads, source_of


def request(host: str, forwarded: str = "") -> SimpleNamespace:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    return SimpleNamespace(client=SimpleNamespace(host=host), headers=headers)


@pytest.mark.parametrize(
    ("host", "forwarded", "is_space", "expected"),
    [
        ("10.0.0.1", "8.8.8.8", True, "8.8.8.8"),
        ("10.0.0.1", "1.2.3.4, 8.8.8.8, 10.1.2.3", True, "8.8.8.8"),  # the first one is what the visitor wrote
        ("10.0.0.1", "8.8.8.8", False, "10.0.0.1"),
        ("10.0.0.1", "", True, "10.0.0.1"),
        ("10.0.0.1", "unknown, <b>", True, "10.0.0.1"),
        ("2600:1f18:1:2:3:4:5:6", "", False, "2600:1f18:1:2::/64"),
        ("testclient", "", False, ""),
    ],
)
def test_the_source_of_a_visitor(host: str, forwarded: str, is_space: bool, expected: str) -> None:
    assert source_of(request(host, forwarded), None, is_space) == expected
    assert source_of(request(host, forwarded), SimpleNamespace(username="ada"), is_space) == "user ada"


def test_old_uploads_go_and_the_oldest_of_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "UPLOADS_BYTES", 25)
    for i in range(5):
        file = tmp_path / str(i) / "picture.png"
        file.parent.mkdir()
        file.write_bytes(b"0123456789")
        age = 7201 if i == 4 else 60 * (5 - i)
        os.utime(file, (time.time() - age, time.time() - age))
    clean_uploads(tmp_path)
    assert [path.parent.name for path in sorted(tmp_path.rglob("*.png"))] == ["2", "3"]
