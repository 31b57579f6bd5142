# SPDX-License-Identifier: Apache-2.0
"""ApiTester: talks to any server with OpenAI's HTTP interface."""

import concurrent.futures
import time

import requests


class ApiTester:
    """One server. Errors: requests.HTTPError, with the server's answer in its message.

    Threads: any; each call has a connection of its own.
    """

    def __init__(self, base_url: str, model: str | None = None, timeout_seconds: float = 120):
        """base_url: such as http://127.0.0.1:8000, with or without /v1. model: the server's first one if None."""
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.timeout_seconds = timeout_seconds
        self.model = model or self.models()[0]

    def _ask(self, method: str, path: str, **arguments) -> requests.Response:
        answer = requests.request(method, self.base_url + path, timeout=self.timeout_seconds, **arguments)
        if not answer.ok:
            raise requests.HTTPError(f"{path}: {answer.status_code} {answer.text[:500]}", response=answer)
        return answer

    def models(self) -> list[str]:
        return [model["id"] for model in self._ask("GET", "/v1/models").json()["data"]]

    def complete(self, prompt, max_tokens: int, **fields) -> str:
        """The greedy completion of a text or of a list of token ids. fields: further ones of the request."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
        return self._ask("POST", "/v1/completions", json=body).json()["choices"][0]["text"]

    def chat(self, messages: list[dict], max_tokens: int, **fields) -> str:
        """The greedy answer to [{"role": ..., "content": ...}, ...]."""
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **fields}
        return self._ask("POST", "/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    def complete_all(self, prompts: list, max_tokens: int, concurrency: int, **fields) -> list[str]:
        """complete() for each prompt, at most `concurrency` at a time; answers in the order of the prompts."""
        with concurrent.futures.ThreadPoolExecutor(concurrency) as threads:
            return list(threads.map(lambda prompt: self.complete(prompt, max_tokens, **fields), prompts))

    def reset_prefix_cache(self, external: bool = False, tries: int = 50):
        """Empties vLLM's prefix cache, and the connector's with `external`. The server has to be in development mode.

        The server refuses while requests hold blocks. Raises TimeoutError when it still does after `tries`.
        """
        for _ in range(tries):
            answer = self._ask("POST", "/reset_prefix_cache", params={"reset_external": str(external).lower()})
            if answer.json()["success"]:
                return
            time.sleep(0.1)
        raise TimeoutError(f"the server still holds blocks after {tries} tries")

    def metrics(self) -> dict[str, float]:
        """The server's own metrics: see parse_metrics."""
        from metrics_text import parse_metrics

        return parse_metrics(self._ask("GET", "/metrics").text)
