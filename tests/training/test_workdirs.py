import jax
import pytest
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.training import workdirs


@pytest.mark.parametrize(("trained_on", "opened_on"), [(1, 1), (4, 4), (3, 1), (16, 1)])
def test_a_run_is_opened_on_other_devices_than_it_was_trained_on(tmp_path, trained_on, opened_on):
    config = ConfigDict({"train": {"model_devices": trained_on}})
    assert jax.device_count() == 8
    workdirs.write(tmp_path, config, {})
    assert workdirs.config_of(tmp_path).train.model_devices == opened_on


FREE = ("evaluate.users", "data.dir", "data.vectors", "data.workers", "train.log_every")
FREE += ("train.model_devices", "train.shard", "train.shard_optimizer")


@pytest.mark.parametrize("name", [*FREE, "data.length", "train.seed"])
def test_what_changes_parameters_by_rounding_alone_may_change(tmp_path, name):
    config = ConfigDict({"data": {}, "train": {}, "evaluate": {}})
    section, field = name.split(".")
    config[section][field] = "a"
    workdirs.write(tmp_path, config, {"dataset": "x"})
    config[section][field] = "b"
    if name in FREE:
        workdirs.check(tmp_path, config, {"dataset": "x"})
    else:
        with pytest.raises(InputError, match=f"holds a run with {name}=a, this one has {name}=b"):
            workdirs.check(tmp_path, config, {"dataset": "x"})
