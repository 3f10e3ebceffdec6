"""`python -m equipoise`: the command, where its script is not on the path."""

from equipoise.replay.cli import main

if __name__ == "__main__":
    main()
