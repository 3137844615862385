"""`python -m service`: the same program as the `featuremaps` command."""

from service.cli.program import main

if __name__ == "__main__":
    main()
