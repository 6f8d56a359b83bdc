"""`python -m macaron`, for when the `macaron` command is not on the PATH."""

from macaron.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
