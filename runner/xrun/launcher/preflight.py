"""What only a network can tell before money is spent: accounts, permissions, names. Every problem
at once.

The same questions are asked by `xrun check --online`, and by a launch about what it is going to
need.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import environment
from ..bar import bar
from ..errors import CheckpointError, CloudUnavailable, LaunchError, Problem, RecipeError, XrunError
from ..libraries import HUB, is_here, require
from ..recipe.schema import Recipe
from ..run.folder import RunFolder
from ..run.locked import asked
from ..run.plan import Plan, older_rules
from ..run.record import RunRecord
from ..run.stores import open_store
from ..store.address import Address
from .bucket import check_bucket
from .job import as_begun, next_unused, refuse_another

TOKEN_HINT = "Run `hf auth login` or set HF_TOKEN (https://huggingface.co/settings/tokens)"  # noqa: S105  a sentence
_WANDB_SECONDS = 60.0


@dataclass(frozen=True)
class Online:
    """The plan with the Hub's names in it, everything that is wrong, where the run can be seen, and
    what is no obstacle and worth a word."""

    plan: Plan
    problems: tuple[Problem, ...]
    links: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def check_online(
    recipe: Recipe,
    plan: Plan,
    *,
    everything: bool = True,
    unknown_here: bool = False,
    another: bool = False,
) -> Online:
    """Ask the Hub, the bucket and Weights & Biases about a recipe; without `everything` only about
    where its state, model and metrics go.

    `unknown_here`: no folder of this machine tells whether the run exists, so its store is asked by
    which rule it has its id. `another`: the run is to be one of which the store has nothing.

    Raises:
        LaunchError: the library that asks the Hub or the bucket is not installed.
        CloudUnavailable: one of them cannot be reached.
        StoreUnavailable: nobody can tell which run the store holds.
    """
    far_away = plan.address.durable
    asked = plan.address.on_hub or plan.publish or everything
    hub = _Hub(plan.recipe_path) if asked else None
    problems: list[Problem] = []
    links: list[str] = []
    warnings: list[str] = []
    if far_away:
        on_hub = hub if plan.address.on_hub else None
        plan, wrong = on_hub.place(plan) if on_hub else (plan, check_bucket(plan))
        plan = _as_begun(plan) if unknown_here and not wrong else plan
        plan = _unused(plan) if another and not wrong else plan
        problems += wrong
        links.append(on_hub.link(plan.address) if on_hub else plan.where)
    if hub is not None and plan.publish:
        plan, wrong = hub.publish(plan)
        problems += [each for each in wrong if each.what not in {known.what for known in problems}]
        links.append(hub.link(plan.repository))
    if everything and hub is not None:
        problems += hub.sources(recipe)
        plan = _locked(plan, hub.commits)
    if plan.wandb is not None and plan.wandb.online:
        wrong, url, silent = _wandb(plan)
        problems += wrong
        links += [url] if url else []
        if silent:
            warnings.append(_without_wandb(plan, silent))
    return Online(plan, tuple(problems), tuple(dict.fromkeys(links)), tuple(warnings))


def place(plan: Plan, *, chosen: bool, another: bool = False) -> Online:
    """The plan with the addresses that only the Hub can tell, once it is certain that the run may
    write there. `chosen`: the person has said which run it is; `another`: one that is nowhere yet,
    also on no other machine.

    Raises:
        RecipeError: what the recipe names is not there.
        LaunchError: an account may not do what the recipe asks for.
    """
    if not (plan.on_clouds or plan.address.durable or plan.publish) and plan.wandb is None:
        return Online(plan, (), ())
    unknown = not chosen and not RunFolder(plan.folder).plan_file.exists()
    recipe = plan.load_recipe()
    with bar("Asking where the run's state and metrics go"):
        online = check_online(
            recipe, plan, everything=plan.on_clouds, unknown_here=unknown, another=another
        )
    refuse(online)
    return online


def _locked(plan: Plan, commits: Mapping[str, str]) -> Plan:
    """The plan with what the names that move are now; what was fixed before holds on."""
    lock = replace(plan.locked, hub={**commits, **plan.locked.hub})
    return replace(plan, lock=lock.to_json())


def _as_begun(plan: Plan) -> Plan:
    """The plan by the rule of the run that the store holds; as it is, if the store holds none.

    Raises:
        CheckpointError: it holds one that was trained with another recipe.
    """
    by_run = not plan.load_recipe().checkpoint.store.name
    others: dict[str, RunRecord] = {}
    for meant in (plan, *older_rules(plan)):
        if by_run:
            meant = replace(meant, store=str(Address("hub"))).placed(plan.owner)
        # A repository may be any run's; in a bucket each run has a place of its own.
        asked = meant if meant.address.in_bucket else replace(meant, run="")
        head = open_store(asked, "reader", create=False).head()
        if head is None:
            continue
        record = RunRecord.of(head)
        if head.run == meant.run:
            return as_begun(meant, record)
        others[head.run] = record
    for run, record in others.items():
        refuse_another(plan, record, f"the run {run} at {plan.where}")
    return plan


def _unused(plan: Plan) -> Plan:
    """The plan under the first id of which its store has nothing."""
    if plan.address.on_hub and plan.load_recipe().checkpoint.store.name:
        return plan  # one repository, whatever the id: the attempt says whose it is
    while _is_used(plan):
        plan = replace(plan, run=next_unused(plan))
        if plan.address.on_hub:
            plan = replace(plan, store=plan.address.kind).placed(plan.address.owner)
    return plan


def _is_used(plan: Plan) -> bool:
    """Raises StoreUnavailable where nobody can tell."""
    try:
        return open_store(plan, "reader", create=False).head() is not None
    except CheckpointError:  # something is there, and damaged
        return True


def refuse(online: Online) -> Plan:
    """The plan, if nothing is wrong.

    Raises:
        RecipeError: what the recipe names is not there.
        LaunchError: an account may not do what the recipe asks for.
    """
    if not online.problems:
        return online.plan
    if all(problem.key.startswith(("model", "dataset")) for problem in online.problems):
        raise RecipeError(online.problems)
    raise LaunchError("\n".join(str(problem) for problem in online.problems))


class _Hub:
    """The Hugging Face Hub, as the person who launches sees it."""

    def __init__(self, path: str) -> None:
        require(HUB)
        from huggingface_hub import get_token

        from ..store.hub.client import hub_api

        self.path = path
        self.commits: dict[str, str] = {}
        self.token = get_token()
        self.api = hub_api(self.token)

    def place(self, plan: Plan) -> tuple[Plan, list[Problem]]:
        """The plan with its store's full address and the Hub's user as the owner of the lease."""
        key, instead = "checkpoint.store", "keep the state here with -s checkpoint.store=local"
        who, problems = self._who(key, plan.store, instead)
        if who is None:
            return plan, problems
        plan = plan.placed(who["name"])
        return plan, list(self._may_write(key, plan.address, who))

    def publish(self, plan: Plan) -> tuple[Plan, list[Problem]]:
        """The plan with the full address of its model's repository."""
        key, instead = "publish", "keep the model here with -s publish=null"
        who, problems = self._who(key, plan.publish, instead)
        if who is None:
            return plan, problems
        plan = plan.published(who["name"])
        return plan, list(self._may_write(key, plan.repository, who))

    def _who(self, key: str, got: str, instead: str) -> tuple[dict[str, Any] | None, list[Problem]]:
        """Whose the token is, or what is wrong with it."""
        from ..store.hub.client import account

        if not self.token:
            hint = f"{TOKEN_HINT}, or {instead}."
            return None, [self._problem(key, "there is no Hugging Face token here", got, hint)]
        who = account(self.api)
        if who is None:
            what = "the Hugging Face token is not valid"
            return None, [self._problem(key, what, got, f"{TOKEN_HINT}.")]
        return who, []

    def link(self, address: Address) -> str:
        """Where people see it."""
        return f"{self.api.endpoint}/{address.name}"

    def sources(self, recipe: Recipe) -> list[Problem]:
        """The model and the dataset that a recipe takes from the Hub exist at their revision and
        may be read."""
        found: list[Problem] = []
        for key, kind, args in named_on_hub(recipe):
            name = args.get("name")
            if isinstance(name, str) and not Path(name).expanduser().exists():
                found += self._may_read(key, kind, name, args.get("revision"))
        return found

    def _may_write(self, key: str, address: Address, who: dict[str, Any]) -> Iterator[Problem]:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        repo = address.name
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            yield self._problem(key, "this is not a valid repository name", repo, str(error))
            return
        own = {who["name"], *(organisation["name"] for organisation in who.get("orgs", []))}
        if address.owner not in own:
            hint = f"Your token is {who['name']}'s: use `hub`, or one of {', '.join(sorted(own))}."
            what = "your token has no access to this owner"
            yield self._problem(key, what, repo, hint)
        elif not _token_writes(who.get("auth", {}).get("accessToken", {}), address.owner):
            hint = "Make a token with write access: https://huggingface.co/settings/tokens."
            what = "the Hugging Face token may not write there"
            yield self._problem(key, what, repo, hint)

    def _may_read(self, key: str, kind: str, name: str, revision: str | None) -> Iterator[Problem]:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        from ..store.hub.client import reaching

        try:
            with reaching():
                info = self.api.repo_info(name, repo_type=kind, revision=revision)
                if info.sha and info.sha != revision:
                    self.commits[asked(kind, name, revision)] = info.sha
                self.api.auth_check(name, repo_type=kind)
        except GatedRepoError:
            yield self._problem(
                key,
                "the repository is gated: this token has no access",
                name,
                f"Request access at {self.api.endpoint}/{name}.",
            )
        except RevisionNotFoundError:
            yield self._problem(
                key,
                f"it has no revision {revision}",
                name,
                "Look at its branches and commits on the Hub.",
            )
        except RepositoryNotFoundError:
            hint = "Check the spelling; a private one needs a token that may read it."
            yield self._problem(
                key, f"the Hub has no such {kind}, or this token may not see it", name, hint
            )
        except HFValidationError as error:
            yield self._problem(key, "this is not a valid repository name", name, str(error))
        except HfHubHTTPError as error:
            raise CloudUnavailable(
                f"The Hugging Face Hub does not answer: {error}.", "Try again."
            ) from error

    def _problem(self, key: str, what: str, got: str, hint: str) -> Problem:
        return Problem(self.path, 0, 0, key, what, got, hint)


def named_on_hub(recipe: Recipe) -> list[tuple[str, str, dict[str, Any]]]:
    """What a recipe may take from the Hub: the key that names it, model or dataset, and `name` and
    `revision`, where there are such."""
    model, dataset = recipe.model, recipe.dataset
    of_dataset = dataset.args if dataset.name.startswith("hub_") else {}
    return [
        ("model.args.name", "model", model.args if model.name == "hub" else {}),
        ("model.init_from", "model", _warm_start(recipe)),
        ("dataset.args.name", "dataset", of_dataset),
        ("dataset.args.tokenizer", "model", _tokenizer(recipe)),
    ]


def _token_writes(token: dict[str, Any], owner: str) -> bool:
    """Whether an access token, as whoami describes it, may write to this user's or organisation's
    repositories."""
    if token.get("role") != "fineGrained":
        return token.get("role") != "read"
    scopes = token.get("fineGrained", {}).get("scoped", [])
    return any(
        "repo.write" in scope.get("permissions", [])
        and scope.get("entity", {}).get("name") == owner
        for scope in scopes
    )


def _warm_start(recipe: Recipe) -> dict[str, Any]:
    source = recipe.model.init_from
    if not source or not re.fullmatch(r"[\w.-]+/[\w.-]+(@.+)?", source):
        return {}
    name, _, revision = source.partition("@")
    return {"name": name, "revision": revision or None}


def _tokenizer(recipe: Recipe) -> dict[str, Any]:
    args = recipe.dataset.args if recipe.dataset.name == "hub_text" else {}
    return {"name": args.get("tokenizer"), "revision": args.get("tokenizer_revision")}


def _without_wandb(plan: Plan, why: str) -> str:
    """What it means for the run that Weights & Biases does not answer: a warning for one that has
    committed something, as for the attempt itself.

    Raises:
        CloudUnavailable: nobody could tell that the run is new.
    """
    what = f"Weights & Biases does not answer ({why.rstrip('.')})"
    with contextlib.suppress(XrunError):
        head = open_store(plan, "reader", create=False).head()
        if RunRecord.of(head).newest_step >= 0:
            return f"{what}; the run goes by its store alone, and the points are sent later."
    raise CloudUnavailable(f"{what}.", "Try again, or -s tracking.wandb=null.")


def _wandb(plan: Plan) -> tuple[list[Problem], str, str]:
    """What Weights & Biases says of the key, the entity and the project, the run's page, and why it
    says nothing; asked by a process, which may import its library."""
    if not is_here("wandb"):
        return [], "", ""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(plan.to_json())
        file.flush()
        command = [*environment.PYTHON, "-m", "xrun.tracker.wandb.witness", file.name, "--account"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_WANDB_SECONDS, check=False
            )
            answer = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            return [], "", f"no answer within {_WANDB_SECONDS:.0f} s"
        except (IndexError, ValueError):
            return [], "", "its library has failed"
    key = "tracking.wandb"
    return (
        [
            Problem(plan.recipe_path, 0, 0, key, wrong["what"], "", wrong["hint"])
            for wrong in answer["problems"]
        ],
        answer["url"],
        answer["silent"],
    )
