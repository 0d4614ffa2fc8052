"""Every test runs on eight CPU devices, so that sharding is exercised everywhere.

TEST_PLATFORM=cuda launch/test.sh tests/models/test_attention.py tests a GPU's kernel on a GPU.
"""

import json
import os
import pathlib
import runpy
import shutil
import signal
import zlib

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath

from pinjax import checksums
from pinjax.data import catalogue, dataset, embeddings, spec

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

jax.config.update("jax_platforms", os.environ.get("TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # compiles three times faster
# And twice as fast again, here and in the commands that tests start, without XLA's newer emitters
# and with one LLVM module a program.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    + os.environ.get("XLA_FLAGS", "")
)


# A shell's background jobs ignore Ctrl-C, and nohup's ignore SIGHUP. So would the commands that the
# tests stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Begun first, so that of two processes neither waits for a long file at the end.
LONG = (
    *("test_commands.py", "test_configs.py", "test_docs.py", "test_lift.py", "test_transformer.py"),
    *("test_pinnerformer.py", "test_itemsage.py", "test_searchsage.py", "test_pinsage.py"),
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def rng(request):
    """A NumPy generator seeded by the test's own name."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def make_config(request, data_dir):
    """(section=fields, ...) -> the :test variant of the module's SYSTEM with other fields."""

    def make(**sections):
        path = CONFIGS / f"{request.module.SYSTEM}.py"
        config = runpy.run_path(str(path))["get_config"]("test")
        config.data.dir = str(data_dir)
        for section, fields in sections.items():
            config[section].update(fields)
        return config

    return make


@pytest.fixture
def other_data(data_dir, tmp_path):
    """(change, without, fields) -> the name of a data set: pinworld/tiny, changed.

    `change` is called with its directory, `without` are columns that its catalogue lacks, and
    `fields` are other fields of its spec.
    """

    def make(change=lambda directory: None, without=(), **fields):
        made = tmp_path / "other"
        shutil.copytree(dataset.ensure("pinworld/tiny", data_dir), made)
        if without:
            items = pq.read_table(made / catalogue.FILE)
            pq.write_table(items.drop_columns(list(without)), made / catalogue.FILE)
        change(made)
        metadata = made / spec.METADATA_FILE
        metadata.write_text(
            json.dumps(json.loads(metadata.read_text()) | {"name": "other"} | fields)
        )
        checksums.record(made)
        return str(made)

    return make


@pytest.fixture
def make_embeddings(tmp_path):
    """(name, data set, tables, fields) -> a directory of embeddings.

    Of each table it has the ids and the vectors, by two files, and of the manifest more fields.
    """

    def make(name, of, tables, **fields):
        directory, written = tmp_path / name, {}
        directory.mkdir()
        for table, (ids, vectors) in tables.items():
            halves = slice(None, len(ids) // 2), slice(len(ids) // 2, None)
            for file, half in zip(embeddings.file_names(table, 2), halves, strict=True):
                content = embeddings.to_arrow(ids[half], vectors[half], 0, "float32")
                pq.write_table(content, directory / file)
                written[file] = checksums.of_file(epath.Path(directory / file))
        about = {"dataset": of.spec.digest, "as_of": "2025-01-01T00:00:00+00:00"}
        manifest = about | {"checkpoint": name, "files": written} | fields
        (directory / embeddings.MANIFEST).write_text(checksums.dump(manifest))
        return str(directory)

    return make
