"""What the tests of exports need."""

import functools

import pytest

from tests.serving import exports


@pytest.fixture(scope="session")
def make(data_dir, tmp_path_factory):
    """(name, model's fields) -> an `exports.Run`, which is made once."""

    @functools.cache
    def make(name, **model):
        return exports.Run(name, data_dir, tmp_path_factory.mktemp("exported") / name, **model)

    return make
