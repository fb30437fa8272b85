"""Runs the release binary on a given or free loopback port in a temporary directory."""
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
BINARY = CHECKOUT / "target/release/opensecureconf"


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(variables):
    """Yields the URL and the directory of a server. A server that dies or does not exit with 0 fails the check."""
    port = int(variables.get("OSC_HOST_PORT") or free_port())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OSC_")}
    environment |= {"OSC_HOST_PORT": str(port)} | variables
    with tempfile.TemporaryDirectory() as directory:
        server = subprocess.Popen([BINARY], cwd=directory, env=environment)
        try:
            while not listens(port):
                if server.poll() is not None:
                    sys.exit("the server does not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", directory
            server.terminate()
            if server.wait(30) != 0:
                sys.exit(f"the server exited with {server.returncode}")
        finally:
            server.kill()
            server.wait()
