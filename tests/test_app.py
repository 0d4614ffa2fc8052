"""What flags name."""

import pytest
from etils import epath

from pinjax import app
from pinjax.errors import InputError


def test_a_directory_may_be_of_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert app.directory("--out", "~/runs") == epath.Path("/home/somebody/runs")
    assert app.directory("--out", "runs") == epath.Path("runs")


@pytest.mark.parametrize("value", ["", "s3://bucket/x", "file:///x", "/\udcff", "/a\nb"])
def test_what_is_no_directory_is_refused(value):
    with pytest.raises(InputError, match=r"^--out.*expected a directory") as error:
        app.directory("--out", value)
    assert "\n" not in str(error.value)
