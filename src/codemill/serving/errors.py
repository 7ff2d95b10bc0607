"""Errors as clients of the OpenAI protocol read them."""

from __future__ import annotations

from typing import Any

from codemill.core.errors import CodemillError

_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 501: "not_supported_error", 503: "unavailable_error",
}  # fmt: skip


class ApiError(Exception):
    """Ends one request with a status and a message for its sender. `param` names the field, `code` the kind of fault."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {"retry-after": str(max(1, round(self.retry_after)))} if self.retry_after else {}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers

    @property
    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(reason: CodemillError | str, folder: str, model: str) -> ApiError:
    """A request that the engine or the tokenizer refuses: the sender's fault. Paths of the machine are not told."""
    message = str(reason).replace(folder, model)
    if message.startswith("request "):
        message = message.partition(": ")[2]
    code = "context_length_exceeded" if "do not fit" in message else None
    return ApiError(400, message, code=code)
