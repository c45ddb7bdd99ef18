"""Files from the Hugging Face Hub, the needed ones alone, in the Hub's own cache."""

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
# Of a folder that cannot be written; an error of the network has no such number.
UNWRITABLE = (errno.EACCES, errno.EDQUOT, errno.ENOENT, errno.ENOSPC, errno.EPERM, errno.EROFS)


class HubId(NamedTuple):
    repo: str
    file: str | None  # one file of the repository, or None for what `choose` picks
    revision: str | None  # branch, tag or commit


def parse(source: str) -> HubId | None:
    """`owner/name[/path/to/file][@revision]`; None if the text has another form."""
    word = r"[A-Za-z0-9][\w.-]*"
    match = re.fullmatch(rf"({word}/{word})((?:/{word})+)?(?:@([\w./-]+))?", source)
    if match is None:
        return None
    repo, file, revision = match.groups()
    return HubId(repo, file and file[1:], revision)


def download(source: str, choose: Callable[[list[str]], list[str]]) -> Path:
    """The local folder (or file, where the id names one) of a Hub id, downloaded where not cached.

    `choose` gets all file names of the repository and returns those that are needed. The Hub's
    client keeps them by its own rules: where HF_HUB_CACHE or HF_HOME says, or else in a folder of
    $XDG_CACHE_HOME or ~/.cache. Where the Hub cannot be reached, a copy in its cache is taken.
    Raises ValueError that names the id and the way out.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    wanted = parse(source)
    if wanted is None:
        raise ValueError(f"{source!r} is not a Hub id; one looks like owner/name")
    if constants.HF_HUB_CACHE.startswith("~"):  # the client would make a folder of that name
        raise ValueError(_unwritable(source, "there is no home folder"))
    where = {"repo_id": wanted.repo, "revision": wanted.revision}
    try:
        names = HfApi().list_repo_files(**where)
    except Exception as error:  # the Hub's client lets through errors of several libraries
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
    raise ValueError(f"no tokenizer in it: looked for {', '.join(TOKENIZER_FILES)}")


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
        f"{source!r}: its files cannot be kept in the Hub's cache, {constants.HF_HUB_CACHE} "
        f"({reason}): name another folder with the environment variable HF_HOME"
    )


def _unreachable(source: str, wanted: HubId, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"{source!r} is not a local path, and the Hugging Face Hub did not have it ({reason}); "
        "check the name, or, where the machine has no network, run "
        f"`hf download {wanted.repo} --local-dir FOLDER` on one that has, and give that folder "
        "(a private or gated model needs `hf auth login` first)"
    )
