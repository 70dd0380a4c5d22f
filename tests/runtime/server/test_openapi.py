"""The OpenAPI document covers every path of the APIs; the page's own paths are private to it."""

from __future__ import annotations

import re

from gptoss.runtime.server.app import DOCUMENT, ROUTES
from gptoss.runtime.server.page.endpoint import ROUTES as PAGE_ROUTES


def test_every_operation_is_described() -> None:
    routed = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in ROUTES
        if route not in PAGE_ROUTES
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {
        (path, method) for path, operations in DOCUMENT["paths"].items() for method in operations
    }
    assert described == routed


def test_every_parameter_in_a_path_is_described() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            named = [it["name"] for it in operation.get("parameters", ()) if it["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path)
