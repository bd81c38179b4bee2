"""Refused and failed requests, in OpenAI's form. All texts are our own: never those of a library's exception."""

from typing import Any

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An answer without content. status: HTTP's, from 400. param: the field at fault. code: for programs.

    retry_after: seconds after which the client should try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON object that describes it, as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = f"{self.message} (request {request_id})"
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the response, besides those of every one."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
