"""A small service: a history in, items out.

    EXPORT=exports/pinnerformer uvicorn pinjax.serving.service:app

The user tower of `pinjax.export` embeds the history, and the items with the largest dot products
are found exactly, or by the index of `pinjax.index` that INDEX names. docs/serve.md says how to ask
it. Copy this file and change it.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated

import fastapi
import numpy as np
import pyarrow as pa
import pydantic
from fastapi import exceptions, responses

from pinjax.errors import InputError
from pinjax.retrieval import index as index_lib
from pinjax.serving import exported as exported_lib

MOST = 100  # items of an answer
_WIDTHS = (0, 16, 256, 16_384)  # of seen items


class _Strict(pydantic.BaseModel):
    """Fields that are not declared are errors: they would be misspelt ones."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Action(_Strict):
    """What a user did, with the ids and names of the log that the model was trained on."""

    item: pydantic.StrictInt | pydantic.StrictStr
    time: Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # unix seconds
    action: str = ""
    surface: str = ""
    duration: Annotated[float, pydantic.Field(ge=0, le=1e9)] = 0  # seconds


class Request(_Strict):
    history: Annotated[list[Action], pydantic.Field(max_length=10_000)]
    k: Annotated[int, pydantic.Field(ge=1, le=MOST)] = 10
    as_of: Annotated[int, pydantic.Field(ge=0, lt=2**32)] | None = None  # unix seconds; None: now
    filter_seen: bool = True


class Item(pydantic.BaseModel):
    item: int | str
    score: float


class Answer(pydantic.BaseModel):
    items: list[Item]
    unknown_items: int  # actions of the history that were ignored


def create(export: str, index: str | None = None) -> fastapi.FastAPI:
    """The service of an exported run.

    Args:
      export: directory of `pinjax.export`.
      index: directory of `pinjax.index`, of the run's items; None: exact search.

    Raises:
      InputError: if a directory is damaged, or the index is not of the run.
    """
    exported = exported_lib.load(export)
    manifest = exported.manifest
    if index is None:
        ids, vectors = exported.items()
        items = index_lib.create(pa.array(ids), vectors, index_lib.EXACT)
    else:
        items = index_lib.open_index(index)
        if items.checkpoint != manifest["checkpoint"] or items.manifest.get("table") != "items":
            raise InputError(f"{index} is no index of the items of the run that {export} is of")
    own = items.ids.to_pylist()
    place = {item: row for row, item in enumerate(own)}

    def find(user: np.ndarray, seen: set[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        excluded = np.array([(0, row) for row in seen], np.int64).reshape(-1, 2)
        if items.backend is None:  # exact search is compiled for each number of either
            k = MOST
            excluded = np.resize(excluded, (_width(len(seen)), 2))  # pairs may be repeated
        return items.search(user, k, excluded=excluded)

    def search(history: list[Action], k: int, as_of: int | None, filter_seen: bool) -> list[Item]:
        user = exported.embed_users([[action.model_dump() for action in history]], as_of)
        if not user.any():  # nothing is known of the user
            return []
        seen = {place[x.item] for x in history if filter_seen and x.item in place}
        scores, rows = (x[0, :k].tolist() for x in find(user, seen, k))
        best = zip(rows, scores, strict=True)
        return [Item(item=own[row], score=score) for row, score in best if row >= 0]

    @contextlib.asynccontextmanager
    async def compiled(app: fastapi.FastAPI) -> AsyncIterator[None]:
        """Compiles before the first request."""
        user = exported.embed_users([[{"item": own[0], "time": 0}]], None)
        for width in _WIDTHS if items.backend is None else (0,):
            find(user, set(range(width)), MOST)
        yield

    app = fastapi.FastAPI(title="pinjax", lifespan=compiled)

    @app.exception_handler(exceptions.RequestValidationError)
    async def invalid(_: fastapi.Request, error: Exception) -> responses.JSONResponse:
        # Without the input: a NaN of it would not be JSON.
        wrong = [{"loc": x["loc"], "msg": x["msg"]} for x in error.errors()]
        return responses.JSONResponse({"detail": wrong}, status_code=422)

    made_from = {name: manifest[name] for name in ("step", "as_of")}

    @app.get("/health")
    def health() -> dict[str, str | int]:
        return {"status": "ok", "items": len(own)} | made_from

    @app.post("/recommend")
    def recommend(request: Request) -> Answer:
        items = search(request.history, request.k, request.as_of, request.filter_seen)
        unknown = sum(action.item not in exported for action in request.history)
        return Answer(items=items, unknown_items=unknown)

    return app


def _width(seen: int) -> int:
    return next(width for width in _WIDTHS if width >= seen)


def __getattr__(name: str) -> fastapi.FastAPI:
    if name == "app":  # for uvicorn
        if "EXPORT" not in os.environ:
            raise InputError("EXPORT is not set; expected the directory of pinjax.export")
        return create(os.environ["EXPORT"], os.environ.get("INDEX"))
    raise AttributeError(name)
