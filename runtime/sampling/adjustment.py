"""Logit bias and penalties: changes of the logits before a token is drawn, in this order.

    logit_bias           is added to the logits of the tokens named
    repetition_penalty   r divides the logit of each token generated before, if above 0, and
                         multiplies it otherwise
    frequency_penalty    f is subtracted as often as the token was generated before
    presence_penalty     p is subtracted once if the token was generated before

Formulas and order are those of llama.cpp and vLLM. "Before" means in this generation, reasoning
included. The prompt is not counted: a penalty on the words of instructions and tool schemas would
keep the model from following them. Control tokens are not counted either, as they are what a reply
is built of. (llama.cpp counts the last ``repeat_last_n`` tokens, including those of the prompt and
control tokens; vLLM's repetition penalty counts the prompt.)
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from gptoss.runtime.engine.base import Logits
from gptoss.runtime.sampling.parameters import Sampling

_FIRST_ROOM = 256


class LogitAdjustment:
    """Logit bias and penalties of one generation. Not safe to share between threads."""

    def __init__(self, sampling: Sampling, counted: Container[int]) -> None:
        """``counted`` are the tokens that penalties apply to, the text tokens of a vocabulary."""
        self._bias_ids = np.array(list(sampling.logit_bias), np.intp)
        self._bias = np.array(list(sampling.logit_bias.values()), np.float32)
        self._repetition = np.float32(sampling.repetition_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._counted = counted
        self._has_penalty = bool(
            self._presence or self._frequency or sampling.repetition_penalty != 1
        )
        self._places: dict[int, int] = {}
        self._ids = np.empty(_FIRST_ROOM, np.intp)
        self._counts = np.empty(_FIRST_ROOM, np.float32)

    def apply(self, logits: Logits) -> None:
        """Change the logits of the whole vocabulary in place."""
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if self._places:
            n = len(self._places)
            ids, counts = self._ids[:n], self._counts[:n]
            some = logits[ids]
            if self._repetition != 1:
                some = np.where(some > 0, some / self._repetition, some * self._repetition)
            some -= counts * self._frequency + self._presence
            logits[ids] = some

    def count(self, token: int) -> None:
        """Count a generated token for the penalties on the next ones."""
        if not self._has_penalty or token not in self._counted:
            return
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == self._ids.size:
                self._ids = np.resize(self._ids, 2 * place)
                self._counts = np.resize(self._counts, 2 * place)
            self._ids[place] = token
            self._counts[place] = 0
        self._counts[place] += 1
