"""A model folder -> the Hugging Face Hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toto_train.hub import check_folder

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def push_to_hub(
    folder: str | Path, repo_id: str, private: bool = False, dry_run: bool = False, revision: str | None = None
) -> str:
    """Upload a folder that `hub.save_pretrained` wrote; returns what was sent, or would be, as text.

    The repository and the branch `revision` are made where they are not there. Weights of a former upload that the
    folder does not have (other shards) are deleted in the same commit. dry_run: no network, no token.
    Raises ValueError where the request is wrong, OSError where the Hub refuses or cannot be reached.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    check_folder(folder)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes = {name: size for name, size in sizes.items() if not name.startswith(".")}
    where = f"{repo_id}{f' (branch {revision})' if revision else ''}"
    url = "nothing was sent" if dry_run else _upload(folder, repo_id, private, revision, list(sizes))
    width = max(map(len, sizes))
    lines = [f"{'would send' if dry_run else 'sent'} to {'the private ' if private else ''}{where}:"]
    lines += [f"  {name:<{width}}  {size:>15,} bytes" for name, size in sizes.items()]
    lines += [f"  {f'total, {len(sizes)} files':<{width}}  {sum(sizes.values()):>15,} bytes", f"  {url}"]
    return "\n".join(lines)


def check_repo_id(repo_id: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise ValueError(
            f"push_to={repo_id!r} must be ORG/NAME: letters, digits, '-', '_' and '.', none of the last two at an end"
        ) from None


def check_token() -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise ValueError("pushing needs a token that may write: set HF_TOKEN, or run `hf auth login`")


def _upload(folder: Path, repo_id: str, private: bool, revision: str | None, names: list[str]) -> str:
    """Address of the commit."""
    from huggingface_hub import HfApi

    check_token()
    api = HfApi()
    with _in_one_line(folder, repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        public = private and not api.model_info(repo_id).private  # one that was there keeps its visibility
    if public:
        raise ValueError(f"{repo_id} is there already and public; make it private, or leave out private=true")
    with _in_one_line(folder, repo_id):
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            revision=revision,
            commit_message="Upload model",
            allow_patterns=names,
            delete_patterns=list(WEIGHTS),
        )
    return str(commit.commit_url)


@contextmanager
def _in_one_line(folder: Path, repo_id: str) -> Iterator[None]:
    """Whatever the client raises (its own errors, its HTTP library's, RuntimeError from its threads) as one OSError."""
    try:
        yield
    except Exception as error:
        way_out = f"{folder} is whole and the same command tries again"
        raise OSError(f"{repo_id} was not pushed: {_reason(error)}; {way_out}") from error


def _reason(error: BaseException) -> str:
    """What went wrong on the way to the Hub, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and error.__cause__:  # of an upload thread
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = error.server_message or next(iter(str(error).splitlines()), "")
        hint = " (is the token one that may write there? HF_TOKEN, `hf auth login`)" if status in (401, 403) else ""
        return f"{constants.ENDPOINT} answered {status}: {said}{hint}"
    said = next(iter(str(error).splitlines()), "")
    network = isinstance(error, OSError) or type(error).__module__.startswith("http")
    return f"{constants.ENDPOINT} {'cannot be reached' if network else 'failed'}: {type(error).__name__}: {said}"
