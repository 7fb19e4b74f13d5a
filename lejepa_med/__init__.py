from lejepa_med._version import __version__ as __version__
