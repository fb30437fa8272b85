"""What the checks of deploy/ share: faults that are gathered, and servers that are asked."""
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
# Beside the image's port, on a node of a cluster.
CLUSTER_PORT = 9001
# For probes; beside the other two.
ADMIN_PORT = 9002

faults = []


def expect(condition, fault):
    if not condition:
        faults.append(fault)
        print("FAULT", fault)


def finish():
    if faults:
        sys.exit("\n".join(["", "deploy/ has faults:", *faults]))


def check_nodes(name, environments, addresses):
    """Every node must name every other one, and each has a name of its own."""
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
    """Nothing of ours but what is given."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OSC_")} | environment


def check_config(name, environments):
    for environment in environments:
        with tempfile.TemporaryDirectory() as directory:
            command, environment = [BINARY, "check-config"], run_environment(environment)
            done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            # All nodes would say the same.
            return expect(False, f"{name}: check-config ends with {done.returncode}: {done.stderr.strip()}")
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
    """(status, body) as a client gets them; the status is None when nobody answers."""
    headers = {"X-API-Key": API_KEY, "X-User-Key": "a-user-key", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers), timeout=15
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return None, str(error).encode()


def becomes(wanted, port, path, server):
    """Whether the answer becomes this status within 20 s."""
    for _ in range(200):
        answer = request(port, path)
        if answer[0] == wanted or server.poll() is not None:
            break
        time.sleep(0.1)
    return answer[0] == wanted
