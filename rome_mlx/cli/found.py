"""What `rome-mlx diff` and `rome-mlx audit` share: whom to look for, and what was found."""

from pathlib import Path

from ..errors import RomeError
from .common import check_file, check_moments_corpus


def checked_subjects(args) -> list[str] | None:
    """The names in --subjects, None without. Raises RomeError for it and for any other file that
    cannot be read or written."""
    from ..editing.adapter import check_destination

    check_moments_corpus(args)
    check_file(args.json)
    check_file(args.report)
    if args.save_path:
        check_destination(args.save_path)
    return _names(args.subjects) if args.subjects else None


def save(edit, path: str | None, nothing: str, does: str) -> None:
    """Save the edit where a path is given; nothing, does: what to say without one, and of it."""
    if path is None:
        return
    if edit is None:
        print(f"There is nothing {nothing}: no edit was saved.")
    else:
        edit.save(path)
        print(f"The edit that {does} is in {path}.")


def _names(path: str) -> list[str]:
    """The lines of a file. Raises RomeError where there are none."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RomeError(f"cannot read the subjects in {path!r} ({error}); give a text file with "
                        "one name a line") from error
    if not (names := [line.strip() for line in lines if line.strip()]):
        raise RomeError(f"{path!r} has no line with a name; give one name a line")
    return names


def tell_fact(fact) -> None:
    """Print a FoundFact: the object, and the prompts that show it."""
    print(f"\n{fact.subject}: {fact.object}  (score {fact.subject_score:.2f}, others up to "
          f"{fact.chance:.2f})")
    for one in fact.prompts:
        print(f"  {one.prompt:<48.48} {one.base.strip():>10.10} → {one.model.strip():<10.10}"
              f" {one.probability:.2f}")
