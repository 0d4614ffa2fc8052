"""The service of docs/serve.md over HTTP."""

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from pinjax.errors import InputError
from pinjax.retrieval import exact
from pinjax.retrieval import index as index_lib
from pinjax.serving import service
from tests.serving import exports


@pytest.fixture(scope="module")
def ask(make):
    """(path, body) -> status and JSON of the answer."""
    app = service.create(make("pinnerformer").exported.directory)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def ask(path, body=None):
        if body is not None:
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.status, json.loads(error.read())

    yield ask
    server.should_exit = True
    thread.join()


def test_an_index_of_another_run_is_refused(make, tmp_path):
    run = make("pinnerformer").exported
    ids, vectors = run.items()
    made = index_lib.create(pa.array(ids), vectors, index_lib.EXACT)
    own = run.manifest["checkpoint"]
    for name, table, checkpoint in (
        ("own", "items", own),
        ("another", "items", "another"),
        ("users", "users", own),
    ):
        made.save(tmp_path / name, {"embeddings": {"checkpoint": checkpoint}, "table": table})
    service.create(run.directory, tmp_path / "own")
    for name in ("another", "users"):
        with pytest.raises(InputError, match=rf"{name} is no index of the items of the run that "):
            service.create(run.directory, tmp_path / name)


@pytest.fixture(scope="module")
def history(make):
    run = make("pinnerformer")
    return next(exports.histories_of(run.dataset, run.as_of))[1]


def test_items_for_a_history_are_those_of_exact_search(ask, make, history):
    run = make("pinnerformer")
    status, answer = ask("/recommend", {"history": history, "k": 5, "as_of": run.as_of})
    assert status == 200
    ids, vectors = run.exported.items()
    (user,) = run.exported.embed_users([history], run.as_of)
    scores, seen = vectors @ user, {action["item"] for action in history}
    best = [row for row in np.argsort(-scores) if ids[row] not in seen][:5]
    assert [item["item"] for item in answer["items"]] == [ids[row] for row in best]
    np.testing.assert_allclose([x["score"] for x in answer["items"]], scores[best], atol=1e-5)
    assert answer["unknown_items"] == 0
    body = {"history": history, "as_of": run.as_of, "k": 100, "filter_seen": False}
    found = {item["item"] for item in ask("/recommend", body)[1]["items"]}
    assert len(found) == 100
    assert found & seen


def test_no_request_waits_for_a_compilation(ask, make):
    """Whatever number of items a user has seen, or asks for."""
    compiled = exact.search._cache_size()
    items = make("pinnerformer").dataset.catalogue.ids.tolist()
    for seen, k in ((1, 1), (2, 33), (20, 100), (300, 7)):
        actions = [{"item": item, "time": 1_700_000_000} for item in items[:seen]]
        status, answer = ask("/recommend", {"history": actions, "k": k, "as_of": 1_800_000_000})
        assert (status, len(answer["items"])) == (200, min(k, len(items) - seen))
        assert not {item["item"] for item in answer["items"]} & set(items[:seen])
    assert exact.search._cache_size() == compiled


def test_unknown_items_are_counted(ask, history):
    body = {"history": [*history[:3], {"item": "no such", "time": 5}, {"item": 2**70, "time": 5}]}
    status, answer = ask("/recommend", body)
    assert (status, answer["unknown_items"], len(answer["items"])) == (200, 2, 10)


@pytest.mark.parametrize("history", [[], [{"item": -1, "time": 3}]])
def test_of_whom_nothing_is_known_gets_nothing(ask, history):
    answer = {"items": [], "unknown_items": len(history)}
    assert ask("/recommend", {"history": history}) == (200, answer)


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "[]", "3", "{}", '{"history": 3}', '{"history": [3]}'),
        *('{"history": [], "k": 0}', '{"history": [], "k": 101}', '{"history": [], "m": 1}'),
        *('{"history": [{"item": 1}]}', '{"history": [{"time": 1}]}'),
        '{"history": [{"item": 1, "time": -1}]}',
        '{"history": [{"item": 1, "time": 1, "durations": 2}]}',
        '{"history": [{"item": 1, "time": 1, "duration": NaN}]}',
        '{"history": [{"item": null, "time": 1}]}',
        '{"history": [{"item": true, "time": 1}]}',
    ],
)
def test_what_is_not_a_request_is_422(ask, body):
    status, answer = ask("/recommend", body)
    assert status == 422
    assert answer["detail"][0]["msg"]


def test_health(ask, make):
    status, answer = ask("/health")
    assert (status, answer["status"]) == (200, "ok")
    assert answer["items"] == len(make("pinnerformer").exported.items()[0])
