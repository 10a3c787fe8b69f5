"""SkyPilot's job controller: where it can run, what it costs, and where it keeps a job's files.

It is a machine of its own that looks after all jobs of a person; none where the API server has it
inside (`consolidation_mode`) or is somebody else's. What would fail there is told before a launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import LaunchError
from ..offers import Controller
from .client import enabled_clouds, first_line, name_of, skypilot

_INSIDE = (
    "or let the API server be the controller: `jobs: {controller: {consolidation_mode: true}}` in"
    " ~/.sky/config.yaml, then `sky api stop`"
)


def find_controller(wanted: Mapping[str, Any]) -> Controller | None:
    """The controller for a task with these resources (SkyPilot's YAML); None if it costs nothing.

    Raises:
        LaunchError: no enabled cloud can host it, or the storage for a job's files cannot be used.
    """
    clouds = enabled_clouds()
    with skypilot() as sky:
        from sky.server.common import is_api_server_local
        from sky.utils.controller_utils import Controllers, get_controller_resources

        if not is_api_server_local():
            return None
        inside = _is_inside()
        _check_storage(inside)
        if inside:
            return None
        task = sky.Resources.from_yaml_config(dict(wanted))
        resources = get_controller_resources(Controllers.JOBS_CONTROLLER, task)
        hosts = [cloud for cloud in clouds if _hosts(cloud)]
        if not hosts:
            raise _no_host(clouds)
        return _cheapest(list(_machines(resources, hosts)), hosts)


def _is_inside() -> bool:
    """Whether the API server here has the controller inside, or will when it starts."""
    from sky import skypilot_config
    from sky.utils.controller_utils import is_jobs_consolidation_mode

    asked = skypilot_config.get_nested(("jobs", "controller", "consolidation_mode"), False)
    return bool(is_jobs_consolidation_mode() or asked)


def _check_storage(inside: bool) -> None:
    """The bucket through which a job's files go, where the person has named one, is one that can be
    used. Without any object storage SkyPilot keeps them on the controller."""
    from sky import skypilot_config
    from sky.data import storage

    bucket = skypilot_config.get_nested(("jobs", "bucket"), None)
    off = skypilot_config.get_nested(("jobs", "force_disable_cloud_bucket"), False)
    if bucket is None or off:
        return
    try:
        cloud = storage.StoreType.get_fields_from_store_url(bucket)[0].to_cloud()
    except ValueError as error:
        raise LaunchError(
            f"`jobs.bucket` in SkyPilot's configuration is {bucket}: {first_line(error)}.",
            "Name a bucket that SkyPilot knows, or remove the line.",
        ) from error
    enabled = storage.get_cached_enabled_storage_cloud_names_or_refresh()
    if cloud in enabled or (inside and not enabled):
        return
    raise LaunchError(
        f"A job's files go through {bucket} (`jobs.bucket` in SkyPilot's configuration), and"
        f" SkyPilot has not enabled {cloud} for storage.",
        f"Run `sky check {cloud.lower()}`, or remove the line: then files go through what is"
        " enabled.",
    )


def _hosts(cloud: Any) -> bool:
    import sky
    from sky.clouds import CloudImplementationFeatures as Feature
    from sky.exceptions import NotSupportedError

    try:
        cloud.check_features_are_supported(sky.Resources(), {Feature.HOST_CONTROLLERS})
    except NotSupportedError:
        return False
    return True


def _machines(resources: Iterable[Any], hosts: Sequence[Any]) -> Iterable[Any]:
    """What SkyPilot's optimizer would take it from: each cloud's cheapest machine."""
    for wish in resources:
        for cloud in hosts:
            if wish.cloud is None or wish.cloud.is_same_cloud(cloud):
                here = wish.copy(cloud=cloud)
                yield from cloud.get_feasible_launchable_resources(here, 1).resources_list[:1]


def _cheapest(machines: Sequence[Any], hosts: Sequence[Any]) -> Controller:
    """Of those in SkyPilot's catalogs; without any the price is not known."""
    if not machines:
        return Controller(" or ".join(map(name_of, hosts)))
    best = min(machines, key=lambda machine: machine.get_cost(3600))
    price = round(best.get_cost(3600), 4)
    return Controller(name_of(best.cloud), best.instance_type, price)


def _no_host(clouds: Sequence[Any]) -> LaunchError:
    names = ", ".join(map(name_of, clouds))
    return LaunchError(
        f"No enabled cloud ({names}) can host SkyPilot's job controller, which starts the job again"
        " after a preemption.",
        f"`sky check` enables others; {_INSIDE}.",
    )
