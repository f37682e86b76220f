"""``python -m featurectl``: the same as the command ``featurectl``."""

from featurectl.app import main

if __name__ == "__main__":
    main()
