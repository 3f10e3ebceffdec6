"""The package `equipoise` itself: its version, and `python -m equipoise`.

`setup.py` installs this folder as `equipoise`, and the four folders of code as packages in it.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    # Read only when asked for: every start of the command imports this package.
    if name == "__version__":
        from importlib.metadata import version

        return version("equipoise")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
