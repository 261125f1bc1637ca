"""``python -m fanin`` is ``fanin``."""

from fanin.cli import main

if __name__ == "__main__":
    main()
