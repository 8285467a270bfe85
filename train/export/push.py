"""Upload of an exported folder to the Hugging Face hub: `python -m train.export RUN OUT --push REPO`.

The token is the one that huggingface_hub finds: HF_TOKEN in the environment, or the one of `hf auth login`. It is in no
configuration, and no message contains it.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from train.config.errors import ConfigError
from train.data.summary import size

_BRANCH = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
_REFUSED = (401, 403)
# Of an earlier upload: a loader would prefer weights in one file to those of an index, and code may have changed names.
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "*.py"]


class Push(NamedTuple):
    """Where a folder is to be uploaded.

    Args:
        repo: OWNER/NAME.
        public: Whether everybody may see it; only for a new repository.
        revision: Branch; None: main.
    """

    repo: str
    public: bool = False
    revision: str | None = None


class PushError(RuntimeError):
    """An upload failed; the message states what happened and how to repeat it."""


def faults(push: Push) -> list[str]:
    """Return what is known to be wrong without a connection: the name, the branch, no token, offline mode."""
    found: list[str] = []
    try:
        validate_repo_id(push.repo)
        is_named = push.repo.count("/") == 1
    except HFValidationError:
        is_named = False
    if not is_named:
        found.append(f"--push: {push.repo!r} is not the name of a repository; write OWNER/NAME, as on the hub")
    if push.revision is not None and not re.fullmatch(_BRANCH, push.revision):
        found.append(f"--revision: {push.revision!r} cannot name a branch; use letters, digits, '.', '_', '-' and '/'")
    if constants.HF_HUB_OFFLINE:
        found.append("--push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or omit --push")
    elif get_token() is None:
        found.append("--push: there is no token; run `hf auth login`, or set HF_TOKEN to one that may write")
    return found


def refuse(push: Push) -> None:
    """Refuse an upload that cannot succeed.

    Raises:
        ConfigError: With every fault.
    """
    if found := faults(push):
        raise ConfigError(found)


def upload(folder: Path, push: Push) -> list[str]:
    """Upload a folder, into a new repository if there is none; return what was uploaded, a line each.

    Raises:
        ConfigError: The repository exists and is not as visible as was asked for; nothing was uploaded.
        PushError: The hub refused it or could not be reached. The folder is as before.
    """
    api = HfApi()
    try:
        with warnings.catch_warnings():  # of the hub, about optional metadata
            warnings.simplefilter("ignore")
            url = _uploaded(api, folder, push)
    except ConfigError as error:
        raise ConfigError([*error.faults, _remedy(folder, push)]) from None
    except Exception as error:  # of the hub's client and of the network below it: their classes have no common base
        raise PushError(f"{_reason(error, push)}\n{_remedy(folder, push)}") from error
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    seen_by = "public" if push.public else "private"
    return [
        f"uploaded {len(files)} files ({size(sum(sizes))}) to {push.repo}, {seen_by}, branch {push.revision or 'main'}",
        *(f"  {path.relative_to(folder)}  {size(bytes_)}" for path, bytes_ in zip(files, sizes, strict=True)),
        url,
    ]


def _uploaded(api: HfApi, folder: Path, push: Push) -> str:
    """Upload the folder in one commit, which is complete or absent, and return the commit's address."""
    is_public = _existing_visibility(api, push.repo)
    if is_public is None:
        api.create_repo(push.repo, private=not push.public, exist_ok=True)
    elif is_public and not push.public:
        raise ConfigError([f"--push: {push.repo} exists and is public; pass --public too, or name a private one"])
    elif push.public and not is_public:
        raise ConfigError(
            [f"--public: {push.repo} exists and is private; omit --public, or change it in its settings on the hub"]
        )
    if push.revision is not None:
        api.create_branch(push.repo, branch=push.revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=push.repo,
        folder_path=folder,
        revision=push.revision,
        commit_message="Export from periln",
        delete_patterns=_REPLACED,
    )
    return str(commit.commit_url)


def _existing_visibility(api: HfApi, repo: str) -> bool | None:
    """Return whether a repository is public; None if there is none that this token may see."""
    try:
        return not api.model_info(repo).private
    except RepositoryNotFoundError as error:
        if error.response.status_code in _REFUSED and _is_refused(api):
            raise
        return None


def _is_refused(api: HfApi) -> bool:
    """Return whether the hub accepts the token for nothing; it also answers 401 for repositories that do not exist."""
    try:
        api.whoami()
    except HfHubHTTPError as error:
        return error.response.status_code in _REFUSED
    return False


def _reason(error: Exception, push: Push) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    if token := get_token():
        first = first.replace(token, "***")  # a header that cannot be sent is quoted
    if status in _REFUSED:
        return f"the hub refused the token for {push.repo} ({status}); it must be valid and allowed to write there"
    return f"the upload to {push.repo} failed: {first}"


def _remedy(folder: Path, push: Push) -> str:
    visibility = "" if push.public else " --private"
    revision = "" if push.revision is None else f" --revision {push.revision}"
    return f"{folder} is complete; to upload it again: hf upload {push.repo} {folder} .{visibility}{revision}"
