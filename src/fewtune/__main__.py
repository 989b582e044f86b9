"""`python -m fewtune`, which is what torchrun, or `accelerate launch` on accelerators, starts."""

from fewtune.cli.app import main

if __name__ == "__main__":
    main()
