"""``python -m jaxdeploy``: the command line."""

from jaxdeploy.cli.main import main

main()
