"""The exceptions of fewtune. Each says what was expected, what came, where, and what to do; nothing here knows any caller.

FewtuneError
├── InputError            the user's input or arguments are wrong (the command line ends with exit code 2)
│   ├── DataError         a file, a column or a row; `where` is `file:line`
│   ├── SpecError         a name, a field or a value in a recipe, a flag or a TOML file; `where` is the key path
│   ├── TaskError         labels, label words or a template that do not fit the task
│   ├── ArtifactError     a folder that is not the artifact it claims to be
│   ├── BackboneError     a PLM that is unknown, unsupported or unfit for what is asked of it
│   └── MissingExtraError an optional package that is not installed
├── DownloadError         a PLM could not be fetched or does not have the expected hash
└── Interrupted           stopped by the user; what is done is kept
"""

from __future__ import annotations


class FewtuneError(Exception):
    """An error with four answers: what was expected, what came instead, where, and what to do."""

    def __init__(self, *, expected: str, got: str, where: str, fix: str) -> None:
        super().__init__(expected, got, where, fix)
        self.expected, self.got, self.where, self.fix = expected, got, where, fix

    def __str__(self) -> str:
        return " ".join(f"{self.where}: expected {self.expected}, got {self.got}. {self.fix}".split("\n"))

    def __reduce__(self) -> tuple[object, ...]:
        """Keyword-only arguments need a hand to survive a trip between processes."""
        return _rebuild, (type(self), self.expected, self.got, self.where, self.fix)


def _rebuild(kind: type[FewtuneError], expected: str, got: str, where: str, fix: str) -> FewtuneError:
    return kind(expected=expected, got=got, where=where, fix=fix)


class InputError(FewtuneError):
    """The user's input or arguments are wrong."""


class DataError(InputError):
    """A file, a column or a row cannot be used."""


class SpecError(InputError):
    """A name, a field or a value is unknown or out of range."""


class TaskError(InputError):
    """Labels, label words or a template do not fit the task."""


class ArtifactError(InputError):
    """A folder is not the artifact it claims to be."""


class BackboneError(InputError):
    """A PLM is unknown, unsupported or unfit for what is asked of it."""


class MissingExtraError(InputError):
    """An optional package is not installed."""


class DownloadError(FewtuneError):
    """A PLM could not be fetched or does not have the expected hash."""


class Interrupted(FewtuneError):
    """Stopped by the user; what is done is kept."""
