"""`XrunStrategy`: SkyPilot's job controller asks it for machines, at first and after each loss, and
it asks the run's `Pilot` where."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sky
from sky import exceptions
from sky.jobs import recovery_strategy

from . import told
from .assignment import Assignment, Place
from .pilot import Pilot
from .policy import Candidate, Wait
from .remains import Head, read_head

NAME = "XRUN"
KEY = "xrun"
FOLDER = Path("~/.sky/xrun")
"""Where each job's file lies on the controller."""
LEAVE_AT, STAY, PRICES, BARREN = "XRUN_LEAVE_AT", "XRUN_STAY", "XRUN_PRICES", "XRUN_BARREN"
"""What the container is told: when to leave its machines, by what is known now and by what it will
know, what they cost, and what others before them have cost."""
_NO_MACHINES = (
    exceptions.ManagedJobReachedMaxRetriesError,
    exceptions.ProvisionPrechecksError,
    exceptions.ClusterSetUpError,
)


class XrunStrategy(recovery_strategy.EagerFailoverStrategyExecutor):  # type: ignore[misc]  # sky has no types
    """Launches and recovers where the policy says, one place at a time."""

    def set_strategy_config(self, config: dict[str, Any]) -> None:
        """See SkyPilot. Raises ValueError for a task that no xrun has made."""
        if KEY not in config:
            raise ValueError(f"job_recovery: {{strategy: {NAME}}} needs the key `{KEY}`.")
        self._pilot = Pilot(Assignment.from_json(config[KEY]), self.job_id, FOLDER.expanduser())
        self._codes: Sequence[int] = ()
        (first, *_) = self.dag.tasks[0].resources
        self._priority = {name: getattr(first, name) for name in ("priority", "priority_class")}

    def should_restart_on_failure(self, exit_codes: list[int] | None = None) -> bool:
        """See SkyPilot: the codes tell whether machines are left as they were told to be, and
        whether an attempt has begun on them."""
        self._codes = exit_codes or ()
        if not super().should_restart_on_failure(exit_codes):
            return False
        if why := self._pilot.ends(time.time(), self._codes):
            _say(why)
            self._telling = asyncio.ensure_future(self._tell("failed", why))
            return False
        return True

    async def launch(self) -> float:
        """See SkyPilot; where every place fails for a reason that no waiting can mend, it raises
        that."""
        return await self._land(recovery=False)

    async def recover(self) -> float:
        """See SkyPilot. A controller that was killed in the middle of it comes here again."""
        await asyncio.to_thread(self._cleanup_cluster)
        return await self._land(recovery=True)

    async def _land(self, *, recovery: bool) -> float:
        """Ask, wait and launch until machines are there; when the job started on them."""
        pilot, failed = self._pilot, dict[str, BaseException]()
        head = await asyncio.to_thread(self._head)
        if what := pilot.gone(time.time(), head, self._codes):
            _say(f"{what}.")
        self._codes = ()
        candidates = pilot.candidates(await asyncio.to_thread(self._prices))
        while True:
            step = pilot.next(time.time(), head, candidates)
            _say(f"{pilot.why(time.time(), head, step)}.")
            if isinstance(step, Wait):
                if news := pilot.news(time.time()):
                    await self._tell("stalled", news)
                await asyncio.sleep(step.seconds)
                candidates = pilot.candidates(await asyncio.to_thread(self._prices))
                continue
            try:
                submitted = await self._try(step.candidate, recovery=recovery)
            except _NO_MACHINES as error:
                failed[step.candidate.name] = error
                if not recovery and _hopeless(failed, candidates):
                    await self._tell("failed", f"No place gives machines. {_why(error)}")
                    raise
                submitted = None
            if submitted is not None:
                pilot.granted(time.time(), step.candidate)
                return submitted
            pilot.refused(time.time(), step.candidate)

    async def _try(self, candidate: Candidate, *, recovery: bool) -> float | None:
        """Launch at one place."""
        place, task = self._pilot.place_of(candidate), self.dag.tasks[0]
        wish = await asyncio.to_thread(_resources, place.resources)
        task.set_resources(wish.copy(**self._priority))
        task.num_nodes = place.nodes
        leave_at, stay = self._pilot.leave_at, self._pilot.stay
        barren = {"hours": self._pilot.barren_hours, "usd": self._pilot.barren_usd}
        task.update_envs(
            {
                PRICES: json.dumps([_price(place, candidate.usd_per_hour)]),
                LEAVE_AT: "" if leave_at is None else f"{leave_at:.0f}",
                STAY: stay.to_text() if stay else "",
                BARREN: json.dumps(barren),
            }
        )
        submitted = await self._launch(max_retry=1, raise_on_failure=True, recovery=recovery)
        return None if submitted is None else float(submitted)

    async def _tell(self, event: str, text: str) -> None:
        """Tell people, by the task's secrets: no machine of the run is there that could."""
        run = self._pilot.assignment.run
        for line in await asyncio.to_thread(told.tell, event, run, text, self._environ()):
            _say(line)

    def _head(self) -> Head | None:
        return read_head(self._pilot.assignment.state, self._environ())

    def _environ(self) -> dict[str, str]:
        """The task's variables, its secrets among them."""
        task = self.dag.tasks[0]
        secrets = {name: value.get_secret_value() for name, value in task.secrets.items()}
        return {**task.envs, **secrets}

    def _prices(self) -> list[float | None]:
        """Each place's dollars an hour by SkyPilot's catalogs of now."""
        return [_usd(place) for place in self._pilot.assignment.places]


def _hopeless(failed: Mapping[str, BaseException], candidates: Sequence[Candidate]) -> bool:
    """Whether every place has failed, and none for want of machines."""
    no_capacity = exceptions.ManagedJobReachedMaxRetriesError
    return len(failed) == len({each.name for each in candidates}) and not any(
        isinstance(error, no_capacity) for error in failed.values()
    )


def _why(error: BaseException) -> str:
    """What SkyPilot says of it; of prechecks that have failed only their reasons say anything."""
    reasons = getattr(error, "reasons", None) or [error]
    return "; ".join(map(str, reasons))[:600]


def _resources(wish: Mapping[str, Any]) -> Any:
    (made,) = sky.Resources.from_yaml_config(dict(wish))
    return made


def _usd(place: Place) -> float | None:
    """None where the catalogs do not know it now: the price of the launch counts on."""
    try:
        machine = _resources({**place.resources, "instance_type": place.instance})
        return round(float(machine.get_cost(3600)) * place.nodes, 4) or None
    except Exception as error:
        _say(f"no price for {place.shape} in {place.infra} now: {error}")
        return None


def _price(place: Place, usd: float) -> dict[str, Any]:
    """What the container is told of its machines' price."""
    cloud, region, zone = (*place.infra.split("/"), "", "")[:3]
    return {
        "cloud": cloud,
        "region": region,
        "zone": zone,
        "instance": place.instance,
        "accelerators": place.accelerators,
        "spot": place.spot,
        "usd_per_hour": usd,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "source": f"SkyPilot's prices for {cloud}, when these machines were asked for",
    }


def _say(text: str) -> None:
    """A line in the job's log; SkyPilot's own logger knows which job it is."""
    recovery_strategy.logger.info(f"xrun: {text}")
