"""`python -m fewtune`, which is what torchrun and `accelerate launch` start."""

from fewtune.cli.app import main

if __name__ == "__main__":
    main()
