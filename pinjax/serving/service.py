"""A small service: a history in, items out.

    EXPORT=exports/pinnerformer uvicorn pinjax.serving.service:app

The user tower of `pinjax.export` embeds the history, and exact search finds the items with the
largest dot products. docs/serve.md says how to ask it. Copy this file and change it.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated

import fastapi
import jax
import numpy as np
import pydantic
from fastapi import exceptions, responses

from pinjax.retrieval import exact
from pinjax.serving import exported as exported_lib

MOST = 100  # items of an answer


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


def create(directory: str) -> fastapi.FastAPI:
    """The service of an exported run."""
    exported = exported_lib.load(directory)
    made_from = {name: exported.manifest[name] for name in ("step", "as_of")}
    ids, vectors = exported.items()
    place, index = {item: n for n, item in enumerate(ids)}, jax.device_put(vectors)

    def search(history: list[Action], k: int, as_of: int | None, filter_seen: bool) -> list[Item]:
        user = exported.embed_users([[action.model_dump() for action in history]], as_of)
        if not user.any():  # nothing is known of the user
            return []
        seen = {place[x.item] for x in history if filter_seen and x.item in place}
        # Numbers of results and of pairs that recur, since a search is compiled for each.
        excluded = np.ones((1 << len(seen).bit_length(), 2), np.int32)  # query 1 is padding
        excluded[: len(seen)] = [(0, row) for row in seen] or np.zeros((0, 2))
        found = exact.search(user, index, MOST, excluded=excluded)
        scores, rows = (x[0, :k].tolist() for x in map(np.asarray, found))
        best = zip(rows, scores, strict=True)
        return [Item(item=ids[row], score=score) for row, score in best if row >= 0]

    @contextlib.asynccontextmanager
    async def compiled(app: fastapi.FastAPI) -> AsyncIterator[None]:
        """Compiles before the first request."""
        first = Action(item=ids[0], time=0)
        search([first], 10, None, filter_seen=True)
        yield

    app = fastapi.FastAPI(title="pinjax", lifespan=compiled)

    @app.exception_handler(exceptions.RequestValidationError)
    async def invalid(_: fastapi.Request, error: Exception) -> responses.JSONResponse:
        # Without the input: a NaN of it would not be JSON.
        wrong = [{"loc": x["loc"], "msg": x["msg"]} for x in error.errors()]
        return responses.JSONResponse({"detail": wrong}, status_code=422)

    @app.get("/health")
    def health() -> dict[str, str | int]:
        return {"status": "ok", "items": len(ids)} | made_from

    @app.post("/recommend")
    def recommend(request: Request) -> Answer:
        items = search(request.history, request.k, request.as_of, request.filter_seen)
        unknown = sum(action.item not in exported for action in request.history)
        return Answer(items=items, unknown_items=unknown)

    return app


def __getattr__(name: str) -> fastapi.FastAPI:
    if name == "app":  # for uvicorn
        return create(os.environ["EXPORT"])
    raise AttributeError(name)
