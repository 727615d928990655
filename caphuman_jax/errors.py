"""Errors meant for the person at the keyboard: one line that says what is wrong and what to do."""


class CapHumanError(Exception):
    """Base of every error that the command line prints as one line, without a traceback."""


class PhotoError(CapHumanError):
    """A photo that cannot be read, or is not fit for what was asked."""


class NoFaceError(PhotoError):
    """No face was found where one is needed."""


class HeadError(CapHumanError):
    """A head that cannot be fitted, or was asked for in numbers that make no sense."""


class ModelFolderError(CapHumanError):
    """A model folder that is missing, incomplete, damaged or of another kind."""


class DataError(CapHumanError):
    """Records or training data that are missing, damaged or do not fit the configuration."""


class SettingError(CapHumanError):
    """A setting, such as the size or the number of steps, that cannot be used."""


class Terminated(KeyboardInterrupt):
    """SIGTERM. Whatever cleans up after Ctrl-C does so after it too; the exit code differs."""


RESTART, INTERRUPTED, HUNG = 75, 130, 142
"""Exit codes: after a SIGTERM (EX_TEMPFAIL of sysexits.h, "start me again"), after Ctrl-C, and of a
host whose steps hang (128 + SIGALRM).
"""
