"""The command ``jaxvae``, which listens for Ctrl-C before JAX is imported."""

import sys

from jaxvae import stopping


def main(*command: str) -> None:
    """Runs the command line of this process, behind the words of a command such as ``train``."""
    stopping.install()
    from jaxvae import command_line

    command_line.main([*command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
