"""Errors in the format of OpenAI's API, which its clients turn into exceptions."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse(error_body(message, kind, param, code), status, headers)


def describe_invalid(errors: Sequence[Any]) -> tuple[str, str | None]:
    """Return a sentence that describes pydantic's first error in a request, and the name of the parameter."""
    problem = errors[0]
    path = [str(part) for part in problem["loc"][1:]]  # the first part is "body"
    param = path[0] if path else None
    if problem["type"] == "json_invalid":
        return "the body is not valid JSON", None
    if problem["type"] == "extra_forbidden":
        return f"unknown or unsupported parameter {'.'.join(path)}", param
    if param is None:
        return "the body must be a JSON object", None
    if problem["type"] == "missing":
        return f"the parameter {'.'.join(path)} is required", param
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{param} {message}", param
