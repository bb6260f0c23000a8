"""Command-line studies; ``python -m studies`` lists them."""

import signal
import sys


# While Python imports what `python -m studies.NAME` needs, Ctrl-C ends it without a traceback;
# SentenceCommand takes it from there. Whoever else imports this package keeps their handler.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
