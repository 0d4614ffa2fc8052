"""How processes find each other; flags that describe no job are refused before JAX starts."""

import http.server
import socket
import threading
import time

import jax
import pytest
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster

from pinjax.distributed import processes
from pinjax.errors import InputError


@pytest.mark.parametrize(
    ("coordinator", "count", "index", "message"),
    [
        ("localhost:1234", None, None, "go together"),
        (None, 2, None, "go together"),
        (None, None, 0, "go together"),
        (None, 2, 0, "go together"),
        ("localhost:1234", 1, 5, "--process=5: expected from 0 to 0, of 1 processes"),
        ("localhost:1234", 2, -1, "--process=-1: expected from 0 to 1, of 2 processes"),
        ("localhost:1234", 0, 0, "--process=0"),
        ("foo", 2, 0, "--coordinator=foo: expected HOST:PORT"),
        (":1234", 2, 0, "expected HOST:PORT"),
        ("localhost:", 2, 0, "expected HOST:PORT"),
        ("localhost:0", 2, 0, "expected HOST:PORT"),
        ("localhost:65536", 2, 0, "expected HOST:PORT"),
        ("localhost:-1", 2, 0, "expected HOST:PORT"),
        ("localhost:port", 2, 0, "expected HOST:PORT"),
        ("nowhere.invalid:1234", 2, 1, "there is no host nowhere.invalid"),
        (f"{'a' * 300}:1234", 2, 1, "there is no host aaa"),
    ],
)
def test_a_wrong_job_is_refused(coordinator, count, index, message, monkeypatch):
    resolve = socket.getaddrinfo

    def resolve_here(host, *args):  # some resolvers know every name, or take long
        if host == "nowhere.invalid":
            raise socket.gaierror(f"no {host}")
        return resolve(host, *args)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    with pytest.raises(InputError, match=message):
        processes.join(coordinator, count, index)


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--coordinator=localhost:{port}: Address already"):
            processes.join(f"localhost:{port}", 2, 0)


@pytest.fixture
def bound():
    """A socket with a port that nobody else gets, and on which nobody listens."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        yield made


def test_a_first_process_that_listens_late_is_waited_for(monkeypatch, capsys, bound):
    port = bound.getsockname()[1]
    monkeypatch.setattr(time, "sleep", lambda seconds: bound.listen())
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *job, **_: joined.append(job))
    for name, value in (("process_count", 2), ("process_index", 1)):
        monkeypatch.setattr(jax, name, lambda value=value: value)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    processes.join(f"127.0.0.1:{port}", 2, 1)
    assert joined == [(f"127.0.0.1:{port}", 2, 1)]
    assert capsys.readouterr().err == f"waiting for process 0 at 127.0.0.1:{port}\n"


def test_a_first_process_that_never_listens_is_named(monkeypatch, bound):
    port = bound.getsockname()[1]
    monkeypatch.setattr(processes, "_START", 0)
    with pytest.raises(InputError, match=f"127.0.0.1:{port}: process 0 did not answer in 0 sec.*"):
        processes.join(f"127.0.0.1:{port}", 2, 1)


@pytest.mark.parametrize("tasks", ["2", "two"])
def test_slurm_variables_without_a_job_are_refused(monkeypatch, tasks):
    def initialize(**options):  # which JAX itself refuses in a process that has used a device
        raise ValueError("no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    with pytest.raises(InputError, match=f"SLURM_NTASKS={tasks}, but there is no such job: no co"):
        processes.join(None, None, None)


@pytest.fixture
def tpu(monkeypatch, tmp_path):
    """A host with a TPU: (its metadata, the slice that its runtime sees) -> the jobs joined.

    The runtime's view is the number of hosts and the index of this one. JAX's own detection runs,
    against a metadata server; only the connection to the job is left out.
    """
    device = tmp_path / "accel0"
    device.touch()
    attributes, joined = {}, []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            root, _, key = self.path.rpartition("/")
            assert root == "/computeMetadata/v1/instance/attributes"
            self.send_response(200 if key in attributes else 404)
            self.end_headers()
            self.wfile.write(attributes.get(key, "<html>not found</html>").encode())

        def log_message(self, *_):
            pass

    def initialize(coordinator=None, count=None, index=None, **_):
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, count, index, None, None, initialization_timeout=0.5
        )
        if found[0] is None:
            raise ValueError("coordinator_address should be defined.")  # as JAX does
        joined.append(found[:3])

    monkeypatch.setattr(processes, "_TPU_DEVICES", (str(device),))
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: bool(joined))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")

        def join(metadata, runtime, *flags):
            attributes.update(metadata)
            monkeypatch.setattr(jax, "process_count", lambda: runtime[0])
            monkeypatch.setattr(jax, "process_index", lambda: runtime[1])
            processes.join(*flags or (None, None, None))
            return joined

        yield join
        server.shutdown()


SLICE = {"agent-worker-number": "1", "tpu-env": "HOST_BOUNDS: '1,2,1'\n"}


@pytest.mark.parametrize(
    "endpoints", ["127.0.0.1,127.0.0.2", "unknown:unknown:127.0.0.1,unknown:unknown:127.0.0.2"]
)
def test_hosts_of_a_slice_are_found_by_the_metadata_of_compute_engine(tpu, endpoints):
    joined = tpu(SLICE | {"worker-network-endpoints": endpoints}, (2, 1))
    assert joined == [("127.0.0.1:8482", 2, 1)]


@pytest.mark.parametrize(
    ("names", "index", "job"),
    [("127.0.0.1,x-1.x", 1, ("127.0.0.1:8482", 2, 1)), ("localhost", 0, ("localhost:8482", 1, 0))],
)
def test_hosts_of_a_slice_are_found_by_what_gke_sets(tpu, monkeypatch, names, index, job):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
    monkeypatch.setenv("TPU_WORKER_ID", str(index))
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "true")
    assert tpu({}, job[1:]) == [job]


def test_a_single_host_that_nothing_is_known_of_is_a_job(tpu):
    assert tpu({}, (1, 0)) == []


def test_a_metadata_server_out_of_reach_is_none(tpu, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    assert tpu({}, (1, 0)) == []


@pytest.mark.parametrize("metadata", [{}, SLICE | {"worker-network-endpoints": "a:b"}])
def test_a_host_of_a_slice_that_finds_no_other_is_refused(tpu, metadata):
    with pytest.raises(InputError, match=r"one of 4 hosts of a TPU slice.*name them by --coordin"):
        tpu(metadata, (4, 1))


def test_a_host_of_a_slice_that_is_out_of_reach_is_named(tpu, monkeypatch):
    def lookup(name):
        raise socket.gaierror(f"no {name}")

    monkeypatch.setattr(socket, "gethostbyname", lookup)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "x-0.x,x-1.x")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    with pytest.raises(ConnectionError, match=r"out of reach.*x-0\.x"):
        tpu({}, (2, 0))


def test_flags_name_all_hosts_of_the_slice_in_any_order(tpu):
    with socket.create_server(("127.0.0.1", 0)) as first:
        job = f"127.0.0.1:{first.getsockname()[1]}", 2, 1
        with pytest.raises(InputError, match="--processes=2, but by the devices it is 1"):
            tpu({}, (1, 0), *job)
        assert tpu({}, (2, 0), *job)[-1] == job
