"""Paths that other servers have and this one does not: what to use instead.

Programs that were written for Ollama, LM Studio or llama-server ask for them. The answer is 404,
with a message that names the way here.
"""

from __future__ import annotations

_OURS = ("chat/completions", "completions", "responses", "messages", "models", "conversations")
_NO_EMBEDDINGS = "gpt-oss gives no embeddings; they need a model made for them"
_NO_RANKING = "gpt-oss does not rank; that needs a model made for it"
_COUNT = "POST /v1/responses/input_tokens counts tokens; POST /v1/completions gives token ids"
_MODELS = "GET /v1/models lists the models and their context, GET /metrics has the counters"
_LM_STUDIO = "LM Studio's own API is not here; use /v1/chat/completions or /v1/responses"
_TEXT_ONLY = "this server has text alone, no sound and no pictures"
_NOT_STORED = "this server keeps responses and conversations, nothing else of that kind"

_SAID = {
    "/v1/embeddings": _NO_EMBEDDINGS,
    "/embedding": _NO_EMBEDDINGS,
    "/embeddings": _NO_EMBEDDINGS,
    "/api/embed": _NO_EMBEDDINGS,
    "/api/embeddings": _NO_EMBEDDINGS,
    "/rerank": _NO_RANKING,
    "/reranking": _NO_RANKING,
    "/v1/rerank": _NO_RANKING,
    "/v1/moderations": "there is no moderation model here",
    "/tokenize": _COUNT,
    "/detokenize": _COUNT,
    "/apply-template": _COUNT,
    "/props": _MODELS,
    "/slots": _MODELS,
    "/completion": "use POST /v1/completions",
    "/infill": "this model does not fill gaps",
}
_SAID_OF_METHOD = {
    "/v1/chat/completions": "chat completions are made by POST and not kept; "
    "/v1/responses keeps responses",
    "/v1/responses/compact": "conversations are not summarised here; use truncation: auto",
}
_SAID_BELOW = {
    "/v1/chat/completions/": _SAID_OF_METHOD["/v1/chat/completions"],
    "/api/v0/": _LM_STUDIO,
    "/api/v1/": _LM_STUDIO,
    "/api/": "of Ollama's own API only /api/version and /api/tags are here; "
    "use /v1/chat/completions or /v1/responses",
    "/v1/audio/": _TEXT_ONLY,
    "/v1/images/": _TEXT_ONLY,
    "/v1/realtime": _TEXT_ONLY,
    "/v1/files": _NOT_STORED,
    "/v1/batches": _NOT_STORED,
    "/v1/vector_stores": _NOT_STORED,
    "/v1/assistants": _NOT_STORED,
    "/v1/threads": _NOT_STORED,
}


def said_of_path(path: str) -> str:
    """Return the message for a path that is not here."""
    known = _SAID.get(path.rstrip("/"))
    known = known or next((it for at, it in _SAID_BELOW.items() if path.startswith(at)), None)
    if known is None and path.startswith("/v1/v1/"):
        known = "/v1 is there twice: the client's base URL must not end in /v1"
    if known is None and path.removeprefix("/").startswith(_OURS):
        known = "the path begins with /v1 here: the client's base URL must end in /v1"
    if known is None and path.endswith("/") and path != "/":
        known = "without the slash at the end it may exist"
    return f"no such path: {known or 'GET /openapi.json lists those that there are'}"


def said_of_method(path: str) -> str:
    """Return the message for a path that is here and does not take a request's method."""
    return _SAID_OF_METHOD.get(path, "this path does not take that method")
