"""Every error that this program raises on purpose, and the exit code each one means.

CnnDemoError            exit 1: our side (disk, network, a run that another process holds)
├── DownloadError       a data set could not be brought
├── DiskError           a checkpoint or a log line could not be written
├── HubError            the Hugging Face Hub could not do what was asked
└── InputError          exit 2: what was given cannot be used
    ├── ConfigError     a field of a run's configuration
    ├── DataError       a data folder, or a picture
    ├── CheckpointError a checkpoint
    └── RunError        a run id, or what was asked of a run

A message says what was given, what is allowed, and what to do; it is shown to the person as it is.
"""


class CnnDemoError(Exception):
    """Raised when something on our side fails in a way that a sentence can explain."""

    exit_code = 1


class DownloadError(CnnDemoError):
    """Raised when a data set cannot be brought, or is not what it should be."""


class DiskError(CnnDemoError):
    """Raised when a file cannot be written. What was there before is still there."""


class HubError(CnnDemoError):
    """Raised when the Hugging Face Hub could not be reached, or refused. What is on this machine is untouched.

    `answered` tells whether it was reached.
    """

    def __init__(self, message: str, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class InputError(CnnDemoError):
    """Raised when what a person gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """Raised when a field of a configuration has a value that is not allowed.

    `field` is the field's name, so that a form can show the sentence beside its control.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class DataError(InputError):
    """Raised when a data folder or a picture is missing, damaged or something else."""


class CheckpointError(InputError):
    """Raised when a checkpoint is missing, damaged, or made for another network."""


class RunError(InputError):
    """Raised when a run does not exist, or cannot do what was asked of it."""
