import jax
import pytest
from ml_collections import ConfigDict

from pinjax.training import workdirs


@pytest.mark.parametrize(("trained_on", "opened_on"), [(1, 1), (4, 4), (3, 1), (16, 1)])
def test_a_run_is_opened_on_other_devices_than_it_was_trained_on(tmp_path, trained_on, opened_on):
    config = ConfigDict({"train": {"model_devices": trained_on}})
    assert jax.device_count() == 8
    workdirs.write(tmp_path, config, {})
    assert workdirs.config_of(tmp_path).train.model_devices == opened_on
