"""Requests to the HTTP API of Prometheus, and the series selectors they carry."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

TRIES = 3
BACKOFF = 1.0
"""Seconds before the second try; twice as long before each further one."""
LONGEST_URL = 4000
"""Characters beyond which parameters travel in the body, since proxies cut long addresses."""

_TOKEN = re.compile(r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | `[^`]*` | [^"'`] """, re.VERBOSE | re.DOTALL)
_QUOTED = re.compile(r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | `[^`]*` """, re.VERBOSE | re.DOTALL)
_SELECTOR = re.compile(r"\s*([a-zA-Z_:][\w:]*)?\s*(?:\{(.*)\})?\s*", re.DOTALL | re.ASCII)


class PrometheusError(ValueError):
    """The server cannot be reached or refuses. status: that of HTTP, None where there was no usable answer."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Selector:
    """Matchers such as job="node", all of which a series must fulfil."""

    matchers: tuple[str, ...]

    def narrowed(self, matchers: tuple[str, ...]) -> Selector:
        return Selector(self.matchers + matchers)

    def __str__(self) -> str:
        return f"{{{','.join(self.matchers)}}}"


def quoted(value: str) -> str:
    """A string literal of PromQL."""
    return json.dumps(value, ensure_ascii=False)


def matcher(label: str, value: str) -> str:
    """label="value"; labels beyond the classic alphabet are quoted, which Prometheus 3 reads."""
    return f"{label if re.fullmatch('[a-zA-Z_][a-zA-Z0-9_]*', label) else quoted(label)}={quoted(value)}"


def parse_selectors(text: str) -> list[Selector]:
    """'a{b="c"};{d="e"}' -> selectors, in which a metric's name is a matcher too. ValueError for anything else.

    The matchers themselves are left to the server.
    """
    selectors = []
    for part in (p for p in _split(text, ";") if p.strip()):
        found = _SELECTOR.fullmatch(part)
        if not found:
            raise ValueError(
                f'source.match={text}: {part.strip()} is no series selector such as {{job="node"}} or node_load1; '
                "expressions are not taken"
            )
        name, inner = found.groups()
        matchers = [matcher("__name__", name)] if name else []
        for item in (m.strip() for m in _split(inner or "", ",") if m.strip()):
            matchers.append(f"__name__={item}" if _QUOTED.fullmatch(item) else item)  # {"name.of.metric"}
        if not matchers:
            raise ValueError(f"source.match={text}: {part.strip()} would match every series; name a label or a metric")
        selectors.append(Selector(tuple(matchers)))
    if not selectors:
        raise ValueError(f'source.match={text!r} holds no series selector; write {{job="node"}} or node_load1')
    return selectors


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators that stand outside string literals."""
    tokens, parts = _TOKEN.findall(text), [""]
    if "".join(tokens) != text:
        raise ValueError(f"source.match={text}: a quotation mark is not closed")
    for token in tokens:
        if token == separator:
            parts.append("")
        else:
            parts[-1] += token
    return parts


@dataclass(frozen=True)
class Api:
    """url without a slash at its end; token: name of the environment variable that holds it; timeout in seconds."""

    url: str
    token: str = ""
    timeout: float = 60.0

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of the answer of /api/v1/`path`. Warnings of the server are logged.

        PrometheusError, which names url and parameters, after an answer that will not change or TRIES that failed.
        """
        query = urllib.parse.urlencode(parameters)
        address = f"{self.url}/api/v1/{path}"
        if len(query) <= LONGEST_URL:
            request = urllib.request.Request(f"{address}?{query}" if query else address)
        else:
            request = urllib.request.Request(address, data=query.encode())
        request.add_header("Accept-Encoding", "gzip")
        if self.token:
            if not os.environ.get(self.token):
                raise ValueError("source.token= names an environment variable that is not set")
            # unredirected: a redirect to another host must not be told the token
            request.add_unredirected_header("Authorization", f"Bearer {os.environ[self.token]}")
        what = f"{address} ({', '.join(f'{k}={v}' for k, v in parameters.items())})" if parameters else address
        reply = self._tried(request, what)
        if not isinstance(reply, dict) or reply.get("status") != "success":
            raise PrometheusError(f"{what}: {_message(reply) or 'the answer is not that of a Prometheus server'}")
        for warning in reply.get("warnings") or ():
            log.warning("%s: %s", what, warning)
        return reply.get("data")

    def _tried(self, request: urllib.request.Request, what: str) -> Any:
        """The answer as JSON; errors that may pass are tried again."""
        status = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    status = response.status
                    body = response.read()
                    return json.loads(gzip.decompress(body) if response.headers["Content-Encoding"] == "gzip" else body)
            except urllib.error.HTTPError as error:
                status, problem = error.code, _refusal(error)
                if status != 429 and status < 500:
                    raise PrometheusError(f"{what}: {problem}", status) from error
            except json.JSONDecodeError as error:
                problem = f"the answer is not JSON, or was cut off ({error})"
            except (OSError, http.client.HTTPException, EOFError, zlib.error, UnicodeDecodeError) as error:
                problem = f"no whole answer ({getattr(error, 'reason', None) or error or type(error).__name__})"
            log.info("%s: %s, try %d of %d", what, problem, attempt + 1, TRIES)
        raise PrometheusError(f"{what}: {problem}, {TRIES} tries", status)


def _refusal(error: urllib.error.HTTPError) -> str:
    """The server's own message, with the way out where the answer would be too large."""
    try:
        body = error.read()
        message = _message(json.loads(gzip.decompress(body) if error.headers["Content-Encoding"] == "gzip" else body))
    except (OSError, ValueError, http.client.HTTPException, EOFError, zlib.error):
        message = ""
    hint = (
        "; lower source.slice_points"
        if re.search("maximum resolution|too many samples|query timed out", message)
        else ""
    )
    return f"HTTP {error.code}: {message or error.reason}{hint}"


def _message(reply: Any) -> str:
    return str(reply.get("error") or "") if isinstance(reply, dict) else ""
