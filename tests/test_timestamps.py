import pytest

from pinjax import timestamps
from pinjax.errors import InputError


@pytest.mark.parametrize(
    ("iso", "seconds"),
    [
        ("2023-01-31", 1675123200),
        ("2023-01-31 12:00", 1675166400),
        ("2023-01-31T12:00:00.9+01:00", 1675162800),
        ("1970-01-01", 0),
        ("2106-02-07T06:28:15Z", 2**32 - 1),
        ("2106-02-07T06:28:16Z", None),
        ("1969-12-31", None),
        ("0001-01-01T00:00+23:59", None),
        ("2023-02-30", None),
        ("soon", None),
    ],
)
def test_text_is_unix_seconds(iso, seconds):
    if seconds is None:
        with pytest.raises(InputError, match=r"expected ISO 8601, from 1970 to 2106$") as error:
            timestamps.parse("--as_of", iso)
        assert str(error.value).startswith(f"--as_of is {iso!r}; ")
    else:
        assert timestamps.parse("--as_of", iso) == seconds
