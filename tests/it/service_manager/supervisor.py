"""A service manager that keeps the sockets: binds two ports of 127.0.0.1, hands them over to the program of its arguments
(`{clients}` and `{admins}` in them are replaced by the addresses), prints the two addresses, and with each line on
standard input ends the program by SIGTERM and starts it again. Ends with its input."""

import fcntl
import os
import socket
import subprocess
import sys

# A program expects them from 3 on (sd_listen_fds(3)).
FIRST = 3

sockets = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(2)]
addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
out_of_the_way = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for one in sockets]
for place, one in enumerate(out_of_the_way):
    os.dup2(one, FIRST + place)
names = dict(zip(("{clients}", "{admins}"), addresses))
arguments = [names.get(argument, argument) for argument in sys.argv[1:]]


def start():
    # A shell in between, for LISTEN_PID is the program's own.
    hand_over = 'LISTEN_FDS=2 LISTEN_PID=$$ exec "$0" "$@"'
    return subprocess.Popen(["bash", "-c", hand_over, *arguments], pass_fds=range(FIRST, FIRST + len(sockets)), stdin=subprocess.DEVNULL)


program = start()
try:
    print(*addresses, flush=True)
    for _ in sys.stdin:
        program.terminate()
        program.wait()
        program = start()
        print("started again", flush=True)
finally:
    program.terminate()
    program.wait()
