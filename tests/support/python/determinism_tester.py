# SPDX-License-Identifier: Apache-2.0
"""DeterminismTester: the same prompts give the same answers, whatever a server has in its caches."""

import dataclasses
import random

from api_tester import ApiTester


@dataclasses.dataclass
class DeterminismReport:
    """Answers of all rounds against the expected ones."""

    compared: int = 0
    different: list[tuple[int, int, str, str]] = dataclasses.field(default_factory=list)
    """(round, prompt, expected answer, answer)"""

    @property
    def success_rate(self) -> float:
        return 1 - len(self.different) / self.compared if self.compared else 0.0

    def __str__(self):
        lines = [f"{self.compared - len(self.different)} of {self.compared} answers are as expected"]
        lines += [
            f"round {number}, prompt {prompt}: {expected!r} became {answer!r}"
            for number, prompt, expected, answer in self.different[:5]
        ]
        return "\n".join(lines)


class DeterminismTester:
    """Asks a server the same prompts round after round, in another order each time, among other load."""

    def __init__(self, api: ApiTester, prompts: list, max_tokens: int = 16, concurrency: int = 6, seed: int = 1):
        self.api = api
        self.prompts = prompts
        self.max_tokens = max_tokens
        self.concurrency = concurrency
        self._random = random.Random(seed)

    def _noise(self, count: int) -> list:
        """Prompts that nobody compares: other mixtures of the words or token ids of the prompts."""
        noise = []
        for prompt in self._random.choices(self.prompts, k=count):
            if isinstance(prompt, str):
                words = prompt.split()
                self._random.shuffle(words)
                noise.append(" ".join(words))
            else:
                noise.append(self._random.sample(prompt, len(prompt)))
        return noise

    def answers(self, noise: int = 0, **fields) -> list[str]:
        """One round: the answers in the order of the prompts, with `noise` further prompts among them."""
        asked = [(i, prompt) for i, prompt in enumerate(self.prompts)]
        asked += [(-1, prompt) for prompt in self._noise(noise)]
        self._random.shuffle(asked)
        given = self.api.complete_all([prompt for _, prompt in asked], self.max_tokens, self.concurrency, **fields)
        found = [""] * len(self.prompts)
        for (i, _), answer in zip(asked, given):
            if i >= 0:
                found[i] = answer
        return found

    def check(self, expected: list[str], rounds: int, noise: int = 0, reset=None, **fields) -> DeterminismReport:
        """Plays rounds and compares. expected: answers of a server without kvbm. reset: called between the rounds,
        ApiTester.reset_prefix_cache of the same server if None."""
        if len(expected) != len(self.prompts):
            raise ValueError(f"{len(expected)} answers are expected for {len(self.prompts)} prompts")
        report = DeterminismReport()
        for number in range(rounds):
            for i, answer in enumerate(self.answers(noise, **fields)):
                report.compared += 1
                if answer != expected[i]:
                    report.different.append((number, i, expected[i], answer))
            (reset or self.api.reset_prefix_cache)()
        return report
