"""`python -m tttvideo` is the command `tttvideo`."""

import os
import sys

if __name__ == "__main__":
    # Python puts the working directory first, where a downloaded folder may hold a safetensors.py of its own. (What is
    # imported before this line, the standard library, it could still replace: `tttvideo` and `python -P -m` leave none.)
    if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0] or os.curdir) == os.path.realpath(os.curdir):
        here = sys.path.pop(0)
        if os.path.realpath(os.path.dirname(os.path.dirname(__file__))) == os.path.realpath(here or os.curdir):
            sys.path.append(here)  # a checkout that is not installed: workers need it

    from tttvideo.cli import main

    sys.exit(main())
