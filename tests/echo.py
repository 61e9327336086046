"""Tells where it is and does what it is told, for test_processes.py: STATEMENT."""

import os
import signal
import sys

if __name__ == "__main__":
    at_ease = signal.getsignal(signal.SIGINT) is signal.default_int_handler and not sys.stdin.read()
    print(os.getcwd(), os.environ["SAID"], sys.argv[1:], sys.path[0] == os.getcwd(), sys.stdout.isatty(), at_ease)
    exec(sys.argv[1])
