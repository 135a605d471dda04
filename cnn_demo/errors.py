"""Every error raised on purpose. People read its message: what was given, what is allowed, what to do."""


class CnnDemoError(Exception):
    """Raised when something fails on our side in a way that one sentence can explain."""

    exit_code = 1


class DownloadError(CnnDemoError):
    """Raised when a data set cannot be downloaded, or the download is damaged."""


class DiskError(CnnDemoError):
    """Raised when a file cannot be written. The previous version of it is unchanged."""


class HubError(CnnDemoError):
    """Raised when the Hugging Face Hub fails, refuses or cannot be reached. Nothing on this machine was changed."""

    def __init__(self, message: str, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered  # whether its answer is final, so that a local copy must not stand in for it


class InputError(CnnDemoError):
    """Raised when something that a person entered cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """Raised when a field of a configuration has a value that is not allowed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field  # so that a form can show the message next to its control


class DataError(InputError):
    """Raised when a data folder or a picture is missing, damaged or of another kind."""


class CheckpointError(InputError):
    """Raised when a checkpoint is missing, damaged or made for another network."""


class RunError(InputError):
    """Raised when a run does not exist, or cannot do what was asked."""
