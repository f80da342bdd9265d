"""`lexloom serve`: a model over HTTP, with OpenAI's API for language models.

POST /v1/completions   language models (`completions.py`)
POST /classify         classifiers
POST /neighbours       word vectors
GET  /v1/models        the name of the model
GET  /health           whether the server is running
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lexloom.deployments.model_server.completions import CompletionRequest, complete
from lexloom.deployments.model_server.errors import describe_invalid, error_response
from lexloom.deployments.model_server.protection import LimitBody, RequireKey
from lexloom.deployments.model_server.turns import InTurn, Steps, Turns
from lexloom.flows.local_server.same_origin import SameOrigin
from lexloom.models.registry import Capability, TextClassifier
from lexloom.models.word2vec.vectors import WordVectors

ENDPOINTS: dict[Capability, str] = {
    "generate": "/v1/completions",
    "classify": "/classify",
    "neighbours": "/neighbours",
}
MAX_TEXTS, MAX_CHARACTERS = 100, 20_000
MAX_NEIGHBOURS = 1_000


@dataclass(frozen=True)
class ServedModel:
    """A loaded model.

    Attributes:
        name: the id that `/v1/models` lists.
        aliases: all ids that requests may use.
        created: Unix timestamp of its training.
        model: what the family loads: a `LanguageModel`, a `TextClassifier` or `WordVectors`.
    """

    name: str
    aliases: frozenset[str]
    created: int
    capability: Capability
    model: Any

    def card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "lexloom"}


def check_input(given: Any) -> Any:
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(each, str) for each in texts) or not 1 <= len(texts) <= MAX_TEXTS:
        raise ValueError(f"must be a string or a list of 1 to {MAX_TEXTS} strings")
    longest = max(map(len, texts))
    if longest > MAX_CHARACTERS:
        raise ValueError(f"has a text of {longest:,} characters; the limit is {MAX_CHARACTERS:,}: shorten it")
    return texts


class InputRequest(BaseModel):
    """The body of a request to classify texts: one or several of them."""

    model_config = ConfigDict(extra="forbid")

    input: Annotated[list[str], BeforeValidator(check_input)]
    model: str | None = None


class NeighboursRequest(InputRequest):
    """The body of a request for the nearest words of one or several words."""

    k: int = Field(10, ge=1, le=MAX_NEIGHBOURS)


def model_app(
    served: ServedModel,
    host: str,
    allow_hosts: Sequence[str] = (),
    api_key: str | None = None,
    turns: Turns | None = None,
) -> FastAPI:
    """Return the application, which accepts requests to `host` and to the names in `allow_hosts`."""
    app = FastAPI(openapi_url=None)  # its documentation pages would load scripts from other hosts
    queue = turns or Turns()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [served.card()]}

    @app.get("/v1/models/{model:path}", response_model=None)
    async def model(model: str) -> dict[str, Any] | Response:
        return served.card() if model in served.aliases else unknown_model(model, served)

    if served.capability == "generate":

        @app.post(ENDPOINTS["generate"])
        async def completions(body: CompletionRequest) -> Response:
            if body.model not in served.aliases:
                return unknown_model(body.model, served)
            return InTurn(queue, lambda: complete(served.model, body), stream=bool(body.stream))

    if served.capability == "classify":

        @app.post(ENDPOINTS["classify"])
        async def classify(body: InputRequest) -> Response:
            if body.model is not None and body.model not in served.aliases:
                return unknown_model(body.model, served)
            return InTurn(queue, lambda: classify_texts(served, body))

    if served.capability == "neighbours":

        @app.post(ENDPOINTS["neighbours"])
        async def neighbours(body: NeighboursRequest) -> Response:
            if body.model is not None and body.model not in served.aliases:
                return unknown_model(body.model, served)
            return InTurn(queue, lambda: find_neighbours(served, body))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = describe_invalid(error.errors())
        return error_response(400, message, param=param)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            known = f"/v1/models, /health and {ENDPOINTS[served.capability]}"
            return error_response(404, f"unknown path {request.url.path}: this server has {known}")
        return error_response(error.status_code, str(error.detail), headers=error.headers)

    if api_key is not None:
        app.add_middleware(RequireKey, key=api_key)
    app.add_middleware(LimitBody)
    app.add_middleware(SameOrigin, host=host, allow_hosts=allow_hosts)  # added last, called first
    return app


def unknown_model(name: str, served: ServedModel) -> Response:
    message = f"the model {name!r} does not exist: this server serves {served.name!r}"
    return error_response(404, message, param="model", code="model_not_found")


def classify_texts(served: ServedModel, body: InputRequest) -> Steps:
    classifier: TextClassifier = served.model
    data = []
    for index, row in enumerate(classifier.probabilities(body.input).tolist()):
        scores = dict(zip(classifier.labels, row, strict=True))
        label = max(scores, key=lambda each: scores[each])
        data.append({"index": index, "label": label, "score": scores[label], "scores": scores})
    yield {"object": "list", "model": served.name, "data": data}


def find_neighbours(served: ServedModel, body: NeighboursRequest) -> Steps:
    vectors: WordVectors = served.model
    data = [
        {
            "index": index,
            "word": vectors.spelling(word),
            "neighbours": [{"word": near, "similarity": cosine} for near, cosine in found],
        }
        for index, (word, found) in enumerate(
            zip(body.input, vectors.neighbours(body.input, body.k), strict=True)
        )
    ]
    yield {"object": "list", "model": served.name, "data": data}
