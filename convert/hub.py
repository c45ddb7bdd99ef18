"""Downloads files from the Hugging Face Hub, only the needed ones, into the Hub's own cache."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Errors of a folder that is not writable; network errors do not have these numbers.
UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.ENOENT, errno.ENOSPC, errno.EPERM, errno.EROFS)


class HubId(NamedTuple):
    repo: str
    file: str | None  # one file of the repository, or None for what `choose` picks
    revision: str | None  # branch, tag or commit


def parse(source: str) -> HubId | None:
    """Parses `owner/name[/path/to/file][@revision]`; None for any other text."""
    word = r"[A-Za-z0-9][\w.-]*"
    match = re.fullmatch(rf"({word}/{word})((?:/{word})+)?(?:@([\w./-]+))?", source)
    if match is None:
        return None
    repo, file, revision = match.groups()
    return HubId(repo, file and file[1:], revision)


def download(source: str, choose: Callable[[list[str]], list[str]]) -> Path:
    """The local folder of a Hub id (or file, if the id names one), downloaded if not cached.

    `choose` gets all file names of the repository and returns the needed ones. The Hub's client
    chooses the cache: HF_HUB_CACHE or HF_HOME, or else a folder in $XDG_CACHE_HOME or ~/.cache. If
    the Hub cannot be reached, a cached copy is used. Raises ValueError that names the id and the
    way out.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    wanted = parse(source)
    if wanted is None:
        raise ValueError(f"{source!r} is not a Hub id; expected owner/name")
    if constants.HF_HUB_CACHE.startswith("~"):  # the client would create a folder of that name
        raise ValueError(_unwritable(source, "there is no home folder"))
    where = {"repo_id": wanted.repo, "revision": wanted.revision}
    try:
        names = HfApi().list_repo_files(**where)
    except Exception as error:  # the Hub's client raises errors of several libraries
        return _cached(source, wanted, error)
    try:
        chosen = [wanted.file] if wanted.file else choose(names)
    except ValueError as error:
        raise ValueError(f"{source}: {error} (as {wanted.repo}/FILE)") from error
    if missing := sorted(set(chosen) - set(names)):
        raise ValueError(f"{wanted.repo} has no {', '.join(missing)}; it has {', '.join(names)}")
    try:
        folder = Path(snapshot_download(**where, allow_patterns=chosen))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise ValueError(_unwritable(source, error.strerror or str(error))) from error
        raise ValueError(_unreachable(source, wanted, error)) from error
    return folder / wanted.file if wanted.file else folder


def tokenizer_files(names: list[str]) -> list[str]:
    """The files of a tokenizer, at the root of a repository or in its `tokenizer` folder."""
    for folder in ("", "tokenizer/"):
        if chosen := [folder + name for name in TOKENIZER_FILES if folder + name in names]:
            return chosen
    raise ValueError(f"it has no tokenizer: looked for {', '.join(TOKENIZER_FILES)}")


def revision_of(path: Path) -> str | None:
    """The commit of a file or folder in the Hub's cache; None elsewhere."""
    before, _, after = path.as_posix().rpartition("/snapshots/")
    return after.split("/")[0] if before else None


def _cached(source: str, wanted: HubId, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(wanted.repo, revision=wanted.revision, local_files_only=True)
        )
    except Exception as error:
        raise ValueError(_unreachable(source, wanted, reason)) from error
    path = folder / wanted.file if wanted.file else folder
    if not path.exists():
        raise ValueError(_unreachable(source, wanted, reason)) from reason
    return path


def _unwritable(source: str, reason: str) -> str:
    from huggingface_hub import constants

    return (
        f"{source!r} cannot be downloaded into the Hub's cache, {constants.HF_HUB_CACHE} "
        f"({reason}): choose another folder with the environment variable HF_HOME"
    )


def _unreachable(source: str, wanted: HubId, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"{source!r} is not a local path, and was not found on the Hugging Face Hub ({reason}); "
        "check the name, or, if this machine is offline, run "
        f"`hf download {wanted.repo} --local-dir FOLDER` on one that is not, and pass that folder "
        "(a private or gated model needs `hf auth login` first)"
    )
