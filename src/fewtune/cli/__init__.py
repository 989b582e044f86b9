"""The command line; `fewtune.cli.app` has its door."""
