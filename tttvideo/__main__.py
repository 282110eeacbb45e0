"""`python -m tttvideo` is the command `tttvideo`."""

import os
import sys

if __name__ == "__main__":
    # Python puts the working directory first, where a downloaded folder may hold a safetensors.py of its own. (Of the
    # standard library, what is imported before this line could still be replaced; not so by the command `tttvideo` and
    # by `python -P -m tttvideo`.)
    here = os.path.realpath(os.curdir)
    if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0] or os.curdir) == here:
        sys.path.pop(0)
        if os.path.dirname(os.path.dirname(os.path.realpath(__file__))) == here:
            sys.path.append(here)  # a checkout that is not installed: workers need it

    from tttvideo.cli import main

    sys.exit(main())
