"""`Stay`: when machines that a run was given are left again, asked by whoever knows how much of the
run is left.

The pilot asks as it asks for the machines, by what is known then; the attempt on them asks again
and again, since it knows its own speed: a run that was believed to be slow, and so went on demand,
finds that it has slack.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf

from .policy import Candidate, Policy, Terms

LEFT = "left for other machines"
"""The reason that the record of an attempt has which ended because of this."""


@dataclass(frozen=True)
class Stay:
    """The policy before the machines were given, these machines, and what it went by."""

    policy: Policy
    candidate: Candidate
    candidates: Sequence[Candidate]
    terms: Terms

    def until(self, there: float, left: float) -> float:
        """When to leave machines that have worked since `there`, when so many seconds of work for
        speed 1 were left; infinite for never."""
        after = self._there(there).leave_after(there, left, self.candidates, self.terms)
        return inf if after is None else there + after

    def is_over(self, now: float, there: float, left: float) -> bool:
        """Whether to leave them now, with so much work left now.

        The moment is that of `until`, however late somebody asks: how likely spot machines are to
        be found follows from the time since there were none. By then it has to be worth a start,
        and in time, all the same.
        """
        before = left + (now - there) * self.candidate.speed
        if now < self.until(there, before):
            return False
        policy = self._there(there)
        return self.candidate.spot or policy.may_leave(now, left, self.candidates, self.terms)

    def to_text(self) -> str:
        """For `from_text`, on the machines."""
        told = {**asdict(self), "policy": self.policy.to_json()}
        return json.dumps(told, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Stay:
        """Raises ValueError for what `to_text` has not written."""
        try:
            told = json.loads(text)
            return cls(
                Policy.from_json(told["policy"]),
                Candidate(**told["candidate"]),
                [Candidate(**each) for each in told["candidates"]],
                Terms(**told["terms"]),
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no stay of xrun's: {error}") from None

    def _there(self, there: float) -> Policy:
        policy = Policy.from_json(self.policy.to_json())
        policy.granted(there, self.candidate)
        return policy
