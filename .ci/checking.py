"""Common functions of the checks of deploy/: collected errors, and requests to servers."""
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import dockerfile

CHECKOUT = dockerfile.CHECKOUT
DEPLOY = CHECKOUT / "deploy"
BINARY = CHECKOUT / "target/release/opensecureconf"
API_KEY = "an-api-key-that-only-this-check-has"
CLUSTER_SECRET = "a-cluster-secret-that-only-this-check-has"
# Port between the nodes of a cluster.
CLUSTER_PORT = 9001
# Port for probes and monitoring.
ADMIN_PORT = 9002

errors = []


def expect(condition, error):
    if not condition:
        errors.append(error)
        print("ERROR", error)


def finish():
    if errors:
        sys.exit("\n".join(["", "errors in deploy/:", *errors]))


def check_nodes(name, environments, addresses):
    """Checks that every node lists all nodes, and that all node names differ."""
    for environment in environments:
        listed = [item.strip() for item in environment["OSC_CLUSTER_NODES"].split(",")]
        expect(listed == addresses, f"{name}: OSC_CLUSTER_NODES is {listed}, the nodes are {addresses}")
        expect(environment.get("OSC_CLUSTER_SECRET") == CLUSTER_SECRET, f"{name}: a node has no cluster secret")
        listen = environment.get("OSC_CLUSTER_LISTEN", "")
        expect(listen.endswith(f":{CLUSTER_PORT}"), f"{name}: OSC_CLUSTER_LISTEN is \"{listen}\"")
    names = {environment["OSC_CLUSTER_NODE_ID"] for environment in environments}
    expect(len(names) == len(environments), f"{name}: two nodes have the same name")
    modes = {environment["OSC_CLUSTER_MODE"] for environment in environments}
    expect(modes == {name.split()[1]}, f"{name}: the mode is {modes}")


def run_environment(environment):
    """Returns the process environment with these OSC_* variables and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OSC_")} | environment


def check_config(name, environments):
    for environment in environments:
        with tempfile.TemporaryDirectory() as directory:
            command, environment = [BINARY, "check-config"], run_environment(environment)
            done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            # The other nodes would report the same error.
            return expect(False, f"{name}: check-config exits with {done.returncode}: {done.stderr.strip()}")
        shown = done.stdout + done.stderr
        expect(API_KEY not in shown and CLUSTER_SECRET not in shown, f"{name}: check-config shows a secret")
    print(f"{name}: check-config accepts the environment of {len(environments)} nodes")
    return True


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def request(port, path, body=None):
    """Sends a request as a client; returns (status, body), with None as the status if there is no response."""
    headers = {"X-API-Key": API_KEY, "X-User-Key": "a-user-key", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers), timeout=15
        ) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return None, str(error).encode()


def becomes(wanted, port, path, server):
    """Returns whether the response has this status within 20 s."""
    for _ in range(200):
        status, _ = request(port, path)
        if status == wanted or server.poll() is not None:
            break
        time.sleep(0.1)
    return status == wanted
