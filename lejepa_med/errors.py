"""Errors that a person can act on: one sentence that says what, where, got, expected and what to do.

    UserError                     shown without a traceback, exit code 2
    ├── ConfigError               a YAML file or an override is wrong
    ├── DataError                 scans, label files, indexes and caches
    ├── WeightsError              a weight file does not fit or is damaged
    └── OutputExistsError         the output folder already holds something
Everything else keeps its traceback: it is a defect of ours. No message holds a path inside the archive, a header text
or any other thing that identifies a patient; a series is named by its key.
"""


class UserError(Exception):
    """A mistake in what the user gave; its text is one sentence."""


class ConfigError(UserError):
    """A config file, key or override that is not understood."""


class DataError(UserError):
    """Scans, labels, an index or a cache that cannot be used as asked."""


class WeightsError(UserError):
    """Weights that are damaged, foreign or of another architecture."""


class OutputExistsError(UserError):
    """The output folder is in use; nothing was written."""
